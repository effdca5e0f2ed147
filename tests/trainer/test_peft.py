"""Students with adapters: adapters alone learn, are saved, resumed and brought back, whatever they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, OwnBase
from hfdistill.contract import check_trained
from hfdistill.hub import push_folder
from tests import tiny
from tests.by_sgd import seen_in
from tests.trainer.adapter_runs import KINDS, batch, data, loaded, lora, run, saved
from tests.trainer.trajectory import assert_same

BACK = {
    "llama": peft.AutoPeftModelForCausalLM,
    "bert": peft.AutoPeftModelForSequenceClassification,
    "vit": peft.AutoPeftModel,
}


def learning(model: torch.nn.Module) -> set[str]:
    """The names of what learns, without those of the model around."""
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    return {name.removeprefix("base_model.model.") for name in names}


def logits(model: torch.nn.Module, kind: str) -> torch.Tensor:
    """What a model says about a fixed batch."""
    with torch.no_grad():
        return model.eval()(**batch(kind)).logits


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_learn_are_saved_and_come_back(kind: str, tmp_path: Path) -> None:
    trainer = run(kind, tmp_path, lora(kind))
    trainer.train()
    trainer.save_model()
    base, model = loaded(kind, tmp_path / "base"), trainer.model
    before = dict(base.named_parameters())
    for name, value in model.get_base_model().named_parameters():
        original = name.replace(".base_layer", "").replace(".original_module", "")
        if original in before:
            assert torch.equal(value, before[original]) and not value.requires_grad, name
    head = set() if kind == "llama" else {"classifier.modules_to_save.default.weight"}
    assert head < learning(model)
    assert all(".lora_" in name or name.startswith("classifier.modules_to_save.") for name in learning(model))
    folder = tmp_path / "out"
    assert not (folder / "model.safetensors").exists() and not (folder / "config.json").exists()
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum(value.numel() for value in tensors.values()) == sum(
        value.numel() for value in model.parameters() if value.requires_grad
    )
    assert (folder / "adapter_model.safetensors").stat().st_size < 0.2 * (
        tmp_path / "base" / "model.safetensors"
    ).stat().st_size
    expected = logits(model, kind)
    assert not torch.equal(expected, logits(base, kind))
    torch.testing.assert_close(logits(BACK[kind].from_pretrained(folder), kind), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(base, folder), kind), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing(kind: str, tmp_path: Path) -> None:
    both = []
    for cut in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}):
        trainer = run(kind, tmp_path, lora(kind), **cut)
        trainer.train()
        both.append(seen_in(trainer))
    assert_same(*both)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(kind: str, tmp_path: Path) -> None:
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    config = lora(kind, lora_dropout=0.2)
    whole = run(kind, tmp_path, config, output_dir=str(tmp_path / "whole"), **arguments)
    whole.train()
    cut = run(kind, tmp_path, config, **{**arguments, "max_steps": 2})
    cut.train()
    again = run(kind, tmp_path, config, seed=7, data_seed=42, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert learning(again.model) == learning(whole.model)
    for name, value in again.model.named_parameters():
        assert torch.equal(value, dict(whole.model.named_parameters())[name]), name
    held = {file.name for file in (tmp_path / "out" / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in held and "model.safetensors" not in held


def test_resuming_with_other_adapters_is_refused(tmp_path: Path) -> None:
    run("bert", tmp_path, lora("bert"), max_steps=1, save_strategy="steps", save_steps=1).train()
    for other in (lora("bert", r=3), lora("bert", target_modules=["query"])):
        with pytest.raises(HfDistillError, match="do not fit the student's"):
            run("bert", tmp_path, other).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))


def test_best_adapters_are_the_saved_ones(tmp_path: Path) -> None:
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    # The highest loss counts as best, so that the best checkpoint is the first and not the last.
    best_first = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = run("bert", tmp_path, lora("bert"), learning_rate=0.1, **often, **best_first)
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)
    kept = load_file(tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors")
    now = peft.get_peft_model_state_dict(trainer.model)
    assert all(torch.equal(now[name], value) for name, value in kept.items())


@pytest.mark.parametrize(("kind", "reentrant"), [("llama", True), ("vit", True), ("bert", False)])
def test_checkpointing_changes_nothing(kind: str, reentrant: bool, tmp_path: Path) -> None:
    plain = run(kind, tmp_path, lora(kind), max_steps=2)
    names = {field for field in vars(plain.args) if field.endswith("_checkpointing")}
    switch = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    checkpointed = run(
        kind, tmp_path, lora(kind), max_steps=2, **{switch: True, f"{switch}_kwargs": {"use_reentrant": reentrant}}
    )
    plain.train()
    checkpointed.train()
    assert_same(seen_in(plain), seen_in(checkpointed))


@pytest.mark.parametrize(
    "config",
    [
        lora("llama", use_dora=True),
        lora("llama", use_rslora=True),
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ],
    ids=["dora", "rslora", "ia3", "prefix"],
)
def test_other_adapters_work_too(config: peft.PeftConfig, tmp_path: Path) -> None:
    trainer = run("llama", tmp_path, config, max_steps=1)
    trainer.train()
    trainer.save_model()
    assert trainer.state.log_history[0]["grad_norm"] > 0
    back = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(back, "llama"), logits(trainer.model, "llama"), rtol=0, atol=0)


def test_a_peft_model_is_taken_as_it_is(tmp_path: Path) -> None:
    config = lora("bert", task_type="SEQ_CLS")
    torch.manual_seed(42)
    student = peft.get_peft_model(loaded("bert", saved("bert", tmp_path / "base")), config)
    given = run("bert", tmp_path, student=student)
    # Adapters that the trainer makes follow from args.seed alone, which is 42.
    torch.manual_seed(7)
    wrapped = run("bert", tmp_path, config)
    assert given.model is student
    assert given.task.name == "single_label_classification"
    given.train()
    wrapped.train()
    assert_same(seen_in(given), seen_in(wrapped))


def test_the_config_of_the_caller_stays_as_it_is(tmp_path: Path) -> None:
    config = lora("bert")
    before = config.to_dict()
    trainer = run("bert", tmp_path, config)
    assert config.to_dict() == before
    assert str(trainer.model.peft_config["default"].task_type) == "SEQ_CLS"
    assert trainer.model.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")


def test_everything_that_no_checkpoint_held_learns(tmp_path: Path) -> None:
    tiny.model("distilbert").save_pretrained(tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "body")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body")
    trainer = run("bert", tmp_path, lora("bert", target_modules=["q_lin"]), student=student)
    for name in ("pre_classifier", "classifier"):
        assert f"{name}.modules_to_save.default.weight" in learning(trainer.model)
    body = loaded("bert", saved("bert", tmp_path / "base")).bert
    del body.pooler
    body.save_pretrained(tmp_path / "no pooler")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "no pooler")
    trainer = run("bert", tmp_path, lora("bert"), student=student)
    assert "bert.pooler.dense.modules_to_save.default.weight" in learning(trainer.model)
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "no pooler")
    with pytest.raises(HfDistillError, match=r"modules_to_save=\['bert\.pooler\.dense'\]"):
        run("bert", tmp_path, lora("bert", modules_to_save=["classifier"]), student=student)
    mute = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "no pooler"), lora("bert"))
    with pytest.raises(HfDistillError, match=r"'bert\.pooler\.dense', 'classifier'"):
        run("bert", tmp_path, student=mute)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    student = peft.get_peft_model(loaded("bert", saved("bert", tmp_path / "base")), lora("bert"))
    with pytest.raises(HfDistillError, match="has adapters already, and peft_config came too"):
        run("bert", tmp_path, lora("bert"), student=student)
    student.save_pretrained(tmp_path / "adapters")
    frozen = peft.PeftModel.from_pretrained(loaded("bert", tmp_path / "base"), tmp_path / "adapters")
    with pytest.raises(HfDistillError, match="is_trainable=True"):
        run("bert", tmp_path, student=frozen)
    with pytest.raises(
        HfDistillError, match=r"do not fit the student \(BertForSequenceClassification\): No modules were"
    ):
        run("bert", tmp_path, lora("bert", target_modules=["nothing"]))
    same = loaded("bert", tmp_path / "base")
    with pytest.raises(HfDistillError, match=r"teacher_model=OwnBase\(\)"):
        run("bert", tmp_path, lora("bert"), student=same, teacher=same)


def test_a_base_without_a_name_is_said_to_be_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("bert", tmp_path, lora("bert"), student=tiny.model("bert", layers=1))
    assert "The student comes from no checkpoint" in caplog.text


def test_a_teacher_may_have_adapters(tmp_path: Path) -> None:
    body = loaded("bert", saved("bert", tmp_path / "base")).bert
    body.save_pretrained(tmp_path / "body")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body")
    run("bert", tmp_path, lora("bert"), student=student, max_steps=1, save_strategy="steps", save_steps=1).train()
    # Its base has a fresh head, which the trained copy replaces.
    fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body")
    teacher = peft.PeftModel.from_pretrained(fresh, tmp_path / "out" / "checkpoint-1")
    check_trained(teacher)
    trainer = run("bert", tmp_path, lora("bert"), teacher=teacher)
    trainer.train()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_student_built_anew_gets_adapters_too(tmp_path: Path) -> None:
    saved("bert", tmp_path / "base")
    arguments = DistillationConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = DistillationTrainer(
        None,
        arguments,
        teacher_model=OwnBase(),
        model_init=lambda: loaded("bert", tmp_path / "base"),
        peft_config=lora("bert"),
        train_dataset=data("bert"),
    )
    first = trainer.model
    trainer.train()
    assert isinstance(trainer.model, peft.PeftModel) and trainer.model is not first
    assert trainer.teacher.student() is trainer.model


def named_student(folder: Path, **options: Any) -> peft.PeftModel:
    """A student whose base has a name on the Hub."""
    base = loaded("bert", saved("bert", folder / "base"))
    base.name_or_path = base.config._name_or_path = "somebody/base"
    return peft.get_peft_model(base, lora("bert", task_type="SEQ_CLS", **options))


@pytest.mark.filterwarnings("ignore:Could not find a config file in somebody/base:UserWarning")
def test_the_card_names_the_base_of_the_adapters(tmp_path: Path) -> None:
    trainer = run("bert", tmp_path, student=named_student(tmp_path), max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="student")
    head = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert head["base_model"] == "somebody/base"
    assert head["base_model_relation"] == "adapter"
    assert head["library_name"] == "peft"
    assert {"knowledge-distillation", "hfdistill", "lora"} <= set(head["tags"])


@pytest.mark.filterwarnings("ignore:Could not find a config file in somebody/base:UserWarning")
def test_adapters_of_a_base_on_this_machine_are_not_pushed(tmp_path: Path) -> None:
    run("bert", tmp_path, lora("bert")).save_model()
    folder = tmp_path / "out"
    with pytest.raises(HfDistillError, match="which nobody else has; publish the base"):
        push_folder(folder, "tester/student")
    named_student(tmp_path).save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/base"
    with pytest.raises(HfDistillError, match="without a processor"):
        push_folder(folder, "tester/student")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(HfDistillError, match="without weights"):
        push_folder(folder, "tester/student")
    shutil.rmtree(folder)
