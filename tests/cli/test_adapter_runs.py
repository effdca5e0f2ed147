"""Students with adapters: whole runs from local files through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM

from hfdistill import cli
from hfdistill.card import distillation_card
from hfdistill.doctor import diagnose
from hfdistill.recipe import RecipeError, load_recipe
from hfdistill.run_card import run_card_facts
from hfdistill.run_folder import read_run
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.run import Run
from hfdistill.stages.training import EpochOf
from tests import tiny
from tests.cli.small_run import small_recipe
from tests.recipes import inputs

LORA: dict[str, Any] = {"r": 2, "target_modules": ["query", "value"]}


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def recipe_file(folder: Path, peft: dict[str, Any] = LORA, **sections: dict[str, Any]) -> Path:
    """A BERT of two layers teaches adapters of one layer whose head it has never seen."""
    splits = {name: inputs.texts(rows, ["text"], seed=rows) for name, rows in (("train", 30), ("test", 20))}
    base = inputs.model_folder(folder / "base", "bert", layers=1, num_labels=5, seed=1)
    return small_recipe(
        folder,
        teacher={"model": inputs.model_folder(folder / "teacher", "bert")},
        student={"config": None, "model": base, "peft": peft} | sections.pop("student", {}),
        data={"dataset": inputs.data_folder(folder / "texts", splits), "validation_split": None},
        **sections,
    )


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stage.json").read_text())  # type: ignore[no-any-return]


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(recipe_file(tmp_path, student={"finetune": {"max_steps": 2}}))
    assert cli.main(["run", file]) == cli.OK
    output = tmp_path / "runs" / "small"
    student = output / "seed-42" / "student"
    for name in ("control", "student", "finetuned"):
        held = {path.name for path in (student.parent / name).iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer_config.json"} <= held
        assert not {"model.safetensors", "README.md"} & held
    tensors = load_file(student / "adapter_model.safetensors")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    body = sum(value.numel() for name, value in base.named_parameters() if not name.startswith("classifier"))
    learnt = sum(value.numel() for value in tensors.values())
    assert facts(student)["trained_parameters"] == learnt
    assert facts(student)["parameters"] == body + learnt and facts(student)["bytes"] == 4 * (body + learnt)
    assert "trained_parameters" not in facts(output / "teacher")
    assert f"{body + learnt:,}, {learnt:,} of them trained" in (output / "report.md").read_text()
    # What the run has measured is what its folder gives, head and names of the classes included.
    config = AutoConfig.from_pretrained(student)
    assert config.architectures == ["BertForSequenceClassification"] and config.id2label[2] == "class_2"
    whole = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", config=config, ignore_mismatched_sizes=True
    )
    whole = PeftModel.from_pretrained(whole, student).eval()
    test = datasets.load_dataset(str(tmp_path / "texts"))["test"]["text"][:]
    with torch.no_grad():
        logits = whole(**inputs.tokenizer()(test, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits, load_file(student / "predictions.safetensors")["logits"], rtol=1e-4, atol=1e-5)
    finetuned = load_file(output / "seed-42" / "finetuned" / "adapter_model.safetensors")
    moved = [float((finetuned[name] - value).abs().max()) for name, value in tensors.items()]
    assert 0 < max(moved) < 0.1
    card = distillation_card(run_card_facts(read_run(output), read_run(output).of("student")[42], "me/it"))
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-classification"
    assert 'PeftModel.from_pretrained(base, "me/it")' in card.text and "BertForSequenceClassification" in card.text
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    assert cli.main(["run", file]) == cli.OK
    assert "Finished before: teacher, control (seed 42), student (seed 42)" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}


def test_control_and_student_have_the_same_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    # With no share for the teacher the student has to become the control, to the last bit.
    recipe = load_recipe(recipe_file(tmp_path, LORA | {"lora_dropout": 0.1}, objective={"alpha": 0.0}))
    run_recipe(recipe, tmp_path / "out", Reporter(silent=True))
    files = [tmp_path / "out" / "seed-42" / name / "adapter_model.safetensors" for name in ("control", "student")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dora_on_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    for name, layers in (("base", 1), ("teacher", 2)):
        config = tiny.config("llama", layers=layers)
        config.vocab_size = 384
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    texts = datasets.Dataset.from_dict({"text": ["abc def ghi jkl " * 20] * 8})
    folder = inputs.data_folder(tmp_path / "texts", {"train": texts, "validation": texts, "test": texts})
    adapters = {"peft_type": "LORA", "r": 2, "use_dora": True, "target_modules": "all-linear"}
    file = small_recipe(
        tmp_path,
        teacher={"model": str(tmp_path / "teacher"), "processor": "bytes"},
        student={"config": None, "model": str(tmp_path / "base"), "processor": "bytes", "peft": adapters},
        data={"dataset": folder, "task": "causal_lm", "max_length": 16},
    )
    run_recipe(load_recipe(file), tmp_path / "out", Reporter(silent=True))
    student = tmp_path / "out" / "seed-42" / "student"
    assert any("lora_magnitude_vector" in name for name in load_file(student / "adapter_model.safetensors"))
    assert json.loads((student / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), student).eval()
    ids = [1 if each == "\x01" else ord(each) + 3 for each in "".join(f"{text}\x01" for text in texts["text"])]
    blocks = torch.tensor(ids[: len(ids) // 16 * 16]).reshape(-1, 16)
    with torch.no_grad():
        loss = float(model(input_ids=blocks, labels=blocks).loss)
    assert loss == pytest.approx(facts(student)["metrics"]["loss"], rel=1e-5)


def test_an_interrupted_run_goes_on_with_the_same_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    training = {"save_strategy": "steps", "save_steps": 2}
    recipe = load_recipe(recipe_file(tmp_path, LORA | {"lora_dropout": 0.1}, training=training))
    run_recipe(recipe, tmp_path / "whole", Reporter(silent=True))

    def stop(self: EpochOf, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochOf, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "cut", Reporter(silent=True))
    assert (tmp_path / "cut" / "seed-42" / "control" / "checkpoints" / "checkpoint-2").is_dir()
    monkeypatch.undo()
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    run_recipe(recipe, tmp_path / "cut", Reporter(silent=True))
    for name in ("control", "student"):
        files = [tmp_path / run / "seed-42" / name / "adapter_model.safetensors" for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_doctor_counts_what_learns(tmp_path: Path) -> None:
    found = {check.name: check for check in diagnose(load_recipe(recipe_file(tmp_path)), Reporter(silent=True)).checks}
    assert "of them in adapters" in found["student"].finding
    assert found["one batch"].state == "good", found


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"peft_type": "lorra"}, "did you mean 'lora'"),
        ({"rank": 8}, r"student\.peft\.rank: there is no such key"),
        ({"r": 2, "target_module": []}, "did you mean 'target_modules'"),
        ({"r": 2, "use_dora": True, "megatron_config": {}, "target_modules": ["query"], "layers_pattern": "a"}, "peft"),
    ],
)
def test_wrong_settings_are_refused_when_the_recipe_is_read(peft: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(tmp_path, peft))


def test_adapters_need_a_model_that_others_have_too(tmp_path: Path) -> None:
    file = recipe_file(tmp_path)
    content = yaml.safe_load(file.read_text())
    content["student"] |= {"model": None, "config": {"model_type": "bert"}}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=r"student\.peft: adapters alone are saved"):
        load_recipe(file)
    content["student"] |= {"model": str(tmp_path / "base"), "config": None, "peft": {"target_modules": ["nothing"]}}
    file.write_text(yaml.safe_dump(content))
    assert cli.main(["run", str(file)]) == cli.FAILED
