"""Losses over a vocabulary without its logits: the same training, and less memory."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from hfdistill import CachedTeacher, DistillationTrainer, HfDistillError, HiddenStates, Logits, Objective, TaskLoss
from hfdistill.heads import head_of
from hfdistill.shards import whole_state
from tests import by_sgd
from tests.features.sharded_runs import shard_on_cpu, zero
from tests.tasks import token_models
from tests.tasks.trajectory import examples
from tests.trainer.test_vocabulary import FAMILY, WORDS, tokenizer
from tests.trainer.trajectory import assert_same

ROOT = Path(__file__).parents[2]
OWN = ("objective", "model", "peft_config", "processing_class", "teacher_processing_class")
SEVERAL = {"ddp": ("llama", "bert_masked"), "fsdp": ("llama",), "zero2": ("llama",), "zero3": ("llama", "bert_masked")}
WITHOUT_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="no DeepSpeed here")
HEADS = ["llama", "gpt2", "bert_masked", "t5", "bart", "whisper"]


def trainer_of(name: str, folder: Path, given: Any = None, **options: Any) -> DistillationTrainer:
    """A trainer of three optimizer steps; what is no option of DistillationTrainer goes to its arguments."""
    own = {key: options.pop(key) for key in OWN if key in options}
    rows = options.pop("rows", None) or examples(name)
    settings = {"learning_rate": 0.2, "alpha": 0.6, "temperature": 2.0, **options}
    return DistillationTrainer(
        own.pop("model", None) or token_models.model(name, seed=1),
        by_sgd.arguments(folder, **settings),
        teacher_model=given or token_models.model(name, layers=2, seed=2),
        train_dataset=rows,
        data_collator=token_models.padded,
        **own,
    )


def trained(name: str, folder: Path, given: Any = None, **options: Any) -> dict[str, torch.Tensor]:
    """Train; parameters, gradient norms and logged parts by name."""
    trainer = trainer_of(name, folder, given, **options)
    trainer.train()
    return by_sgd.seen_in(trainer)


@pytest.mark.parametrize("name", HEADS)
def test_it_is_the_same_training(name: str, tmp_path: Path) -> None:
    """Also with accumulation and smoothed labels; every fifth example has no labels."""
    plain = trained(name, tmp_path, fused_head=False, label_smoothing_factor=0.1)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert_same(plain, trained(name, tmp_path, fused_head=True, label_smoothing_factor=0.1))
    assert_same(plain, trained(name, tmp_path, fused_head=True, label_smoothing_factor=0.1, **cut))


@pytest.mark.parametrize(
    "terms",
    [
        lambda: [TaskLoss()],
        lambda: [Logits("reverse_kl", temperature=1.5)],
        lambda: [TaskLoss(0.3), Logits("jensen_shannon", beta=0.3), HiddenStates("cosine_distance")],
        lambda: [TaskLoss(0.0), Logits("skew_kl", skew=0.2, reverse=True)],
    ],
    ids=["labels", "reverse KL", "Jensen-Shannon and hidden states", "skewed, labels looked at"],
)
def test_each_divergence_beside_other_terms(terms: Callable[[], list[Any]], tmp_path: Path) -> None:
    plain, fused = (
        trained("llama", tmp_path, objective=Objective(terms()), fused_head=asked) for asked in (False, True)
    )
    assert_same(plain, fused)


def other(kind: str, seed: int) -> PreTrainedModel:
    """A decoder that changes its logits after the head, by a softcap or a scale."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": seed, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": token_models.VOCABULARY, "pad_token_id": 0}
    torch.manual_seed(seed)
    model: PreTrainedModel = (
        Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=0.5))
        if kind == "gemma2"
        else CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.25))
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(("kind", "scale", "softcap"), [("gemma2", 1.0, 0.5), ("cohere", 0.25, None)])
def test_softcaps_and_scales_are_found(kind: str, scale: float, softcap: float | None, tmp_path: Path) -> None:
    """By trying, not by the name of the model."""
    trainer = trainer_of("llama", tmp_path, other(kind, 2), model=other(kind, 1), fused_head=True)
    head = head_of(other(kind, 1), trainer.task)
    assert head is not None
    assert (head.scale, head.softcap) == (scale, softcap)
    plain, fused = (
        trained("llama", tmp_path, other(kind, 2), model=other(kind, 1), fused_head=asked) for asked in (False, True)
    )
    assert_same(plain, fused)


def test_adapters_on_the_head(tmp_path: Path) -> None:
    """LoRA's product beside the frozen weight's."""
    lora = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)

    def run(asked: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return trained("llama", tmp_path, peft_config=lora, fused_head=asked, learning_rate=0.05)

    plain, fused = run(asked=False), run(asked=True)
    assert any("lm_head.lora_B" in name for name in fused)
    assert_same(plain, fused)


def test_the_most_likely_classes_of_a_cache(tmp_path: Path) -> None:
    """No teacher in memory, and no logits."""
    settings: dict[str, Any] = {"top_k": 7, "temperatures": (2.0,)}
    given = CachedTeacher(tmp_path / "cache", token_models.model("llama", layers=2, seed=2), **settings)
    trainer_of("llama", tmp_path, given).fill_cache(bar=lambda batches, title: batches)
    plain, fused = (
        trained("llama", tmp_path, CachedTeacher(tmp_path / "cache"), fused_head=asked) for asked in (False, True)
    )
    assert_same(plain, fused)


@pytest.mark.parametrize("top_k", [None, 6], ids=["live", "cached"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tokenizer(FAMILY), tokenizer([*FAMILY[:2], *reversed(WORDS)])),
        (tokenizer(FAMILY, ("<own>",)), tokenizer(FAMILY)),
    ],
    ids=["another order", "a token more"],
)
def test_other_vocabularies(ours: Any, theirs: Any, top_k: int | None, tmp_path: Path) -> None:
    """The teacher's tokens by the student's numbers, also those that a cache keeps; what one side lacks is left out."""
    words = {"processing_class": ours, "teacher_processing_class": theirs}
    rows = [{key: value.clamp(max=len(FAMILY) - 1) for key, value in row.items()} for row in examples("llama")]

    def run(asked: bool) -> dict[str, torch.Tensor]:
        student = token_models.model("llama", seed=1, vocabulary=26)
        given: Any = token_models.model("llama", layers=2, seed=2, vocabulary=24)
        if top_k:
            given = CachedTeacher(tmp_path / "cache", None if asked else given, top_k=top_k, temperatures=(2.0,))
        return trained("llama", tmp_path, given, model=student, rows=rows, fused_head=asked, **words)

    plain = run(asked=False)
    assert_same(plain, run(asked=True))


def test_no_logits_are_made_in_training_and_all_in_evaluation(tmp_path: Path) -> None:
    """Whatever reads predictions finds them there."""
    trainer = trainer_of("llama", tmp_path, fused_head=True)
    shapes: list[tuple[int, ...]] = []
    trainer.model.register_forward_hook(lambda module, given, output: shapes.append(tuple(output["logits"].shape)))
    trainer.train()
    # Batches of eight; at the start the head is tried on a few tokens.
    assert {shape[-1] for shape in shapes if shape[0] == 8} == {0}
    shapes.clear()
    predicted = trainer.predict(examples("llama")[1:5])  # type: ignore[arg-type]
    assert {shape[-1] for shape in shapes} == {token_models.VOCABULARY}
    assert predicted.predictions.shape[-1] == token_models.VOCABULARY


def test_an_evaluation_of_the_loss_alone_makes_none_either(tmp_path: Path) -> None:
    """And gives the same numbers."""
    found, shapes = [], []
    for asked in (False, True):
        trainer = trainer_of("llama", tmp_path, fused_head=asked)
        trainer.model.register_forward_hook(lambda module, given, output: shapes.append(output["logits"].shape[-1]))
        metrics = trainer.evaluate(examples("llama")[1:9])  # type: ignore[arg-type]
        found.append({name: value for name, value in metrics.items() if "loss" in name})
    assert shapes == [token_models.VOCABULARY, 0]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert "eval_loss/kd" in found[0]


def test_by_itself_from_many_classes_on(tmp_path: Path) -> None:
    """And not where logits are small."""

    def has_one(vocabulary: int) -> bool:
        student, teacher = (token_models.model("llama", seed=seed, vocabulary=vocabulary) for seed in (1, 2))
        return trainer_of("llama", tmp_path, teacher, model=student)._fused_head() is not None

    assert has_one(8192)
    assert not has_one(token_models.VOCABULARY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": Objective([TaskLoss(), Logits("dist")])}, "is not among the divergences that are fused"),
        ({"objective": Objective([Logits(), Logits("reverse_kl", name="b")])}, "several terms read the same logits"),
        ({"objective": Objective([TaskLoss(), Logits(weight="auto")])}, "a weight is found by measuring"),
        ({"torch_compile_backend": "eager"}, "a compiled model's head cannot be replaced"),
    ],
)
def test_what_cannot_be_fused_is_said_where_it_was_asked_for(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(HfDistillError, match=said):
        trainer_of("llama", tmp_path, fused_head=True, **options)


def test_heads_that_are_no_plain_product_compute_their_logits(tmp_path: Path) -> None:
    """One that does something else with them is not mistaken for a product."""

    class Bent(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden).abs()

    student = token_models.model("llama", seed=1)
    bent = Bent(student.lm_head.in_features, student.lm_head.out_features, bias=False)
    bent.weight = student.lm_head.weight
    student.lm_head = bent
    with pytest.raises(HfDistillError, match="the head of LlamaForCausalLM is not a plain product"):
        trainer_of("llama", tmp_path, model=student, fused_head=True)
    assert trainer_of("llama", tmp_path, model=student)._fused_head() is None


def test_an_approximate_gradient_trains_nearly_the_same(tmp_path: Path) -> None:
    """Losses, gradient norms and parameters within 2 %."""

    def run(threshold: float | None) -> dict[str, torch.Tensor]:
        models = [token_models.model("llama", seed=seed, vocabulary=8191) for seed in (1, 2)]
        for model in models:
            with torch.no_grad():
                model.lm_head.weight.normal_(std=2.0, generator=torch.Generator().manual_seed(4))
        options = {"fused_head": True, "fused_head_threshold": threshold, "learning_rate": 0.002}
        return trained("llama", tmp_path, models[1], model=models[0], **options)

    exact, near = run(None), run(2.0**-10)
    assert exact.keys() == near.keys()
    assert any(not value.equal(near[name]) for name, value in exact.items())
    for name, value in exact.items():
        assert float((near[name] - value).norm()) <= 0.02 * float(value.norm()), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fused_head_threshold": 0.0}, "fused_head_threshold is 0.0; expected a share above 0"),
        ({"fused_head_threshold": 1.0}, "fused_head_threshold is 1.0; expected a share above 0"),
        ({"fused_head_threshold": 0.1, "fused_head": False}, "fused_head_threshold is 0.1 beside fused_head=False"),
        ({"fused_head_compiled": True, "fused_head": False}, "fused_head_compiled is True beside fused_head=False"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=said):
        by_sgd.arguments(tmp_path, **options)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("liger_kernel", "triton")), reason="no Liger kernels here"
)
@pytest.mark.parametrize("asked", [False, True])
def test_beside_liger_kernels_in_the_body(asked: bool, tmp_path: Path, no_deprecated_calls: list[str]) -> None:
    """Liger's own fused head stays out of it: no labels reach the model. Its other kernels need a GPU."""
    kernels = {"fused_linear_cross_entropy": True, "rope": False, "rms_norm": False, "swiglu": False}
    given: dict[str, Any] = {"use_liger_kernel": True, "liger_kernel_config": kernels}
    plain = trained("llama", tmp_path, fused_head=asked)
    trainer = trainer_of("llama", tmp_path, fused_head=asked, **given)
    trainer.train()
    assert "liger" in trainer.model.forward.__module__
    assert_same(plain, by_sgd.seen_in(trainer))
    no_deprecated_calls.clear()  # Liger's own


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # inductor's own imports, torch 2.13
def test_compiled_sweeps_train_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With batches of different lengths."""
    plain = trained("llama", tmp_path, fused_head=True)
    assert_same(plain, trained("llama", tmp_path, fused_head=True, fused_head_compiled=True))
    assert not any("not compiled" in record.message for record in caplog.records)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp", *(pytest.param(f"zero{stage}", marks=WITHOUT_DEEPSPEED) for stage in (2, 3))]
)
def test_two_processes_train_as_one(strategy: str, tmp_path: Path) -> None:
    """DistributedDataParallel finds the head's gradient in the outputs; FSDP2, ZeRO-3 have it whole in the forward."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    if strategy.startswith("zero"):
        environment["DS_ACCELERATOR"] = "cpu"
    done = subprocess.run(
        [*command, "-m", "tests.trainer.test_fused_head", str(tmp_path), strategy],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in SEVERAL[strategy]:
        both = load_file(tmp_path / f"{name}.safetensors")
        assert both.pop("processes") == 2
        assert_same(trained(name, tmp_path / "alone", fused_head=False), both)


def saved(name: str, folder: Path) -> tuple[str, str]:
    """The folders of student and teacher, as names to load them by."""
    models = (token_models.model(name, seed=1), token_models.model(name, layers=2, seed=2))
    folders = [str(folder / f"{name}-{role}") for role in ("student", "teacher")]
    for model, each in zip(models, folders, strict=True):
        model.save_pretrained(each)
    PartialState().wait_for_everyone()
    return folders[0], folders[1]


def main(folder: Path, strategy: str) -> None:
    """Train on the processes of this launch."""
    torch.set_num_threads(1)
    pieces: dict[str, Any] = {}
    if strategy == "fsdp":
        shard_on_cpu()
        config = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
        pieces = {"fsdp": True, "fsdp_config": config}
    elif strategy.startswith("zero"):
        shard_on_cpu()
        pieces = zero(int(strategy[-1]))
    for name in SEVERAL[strategy]:
        options: dict[str, Any] = {"fused_head": True, "per_device_train_batch_size": 4, **pieces}
        given = None
        if strategy == "zero3":
            # Both models are in pieces from the beginning, and so are their heads when they are tried.
            options["model"], given = saved(name, folder)
            options["teacher_sharded"] = True
        trainer = trainer_of(name, folder / "out", given, **options)
        trainer.train()
        seen = by_sgd.seen_in(trainer)
        whole = {f"parameter {name}": tensor for name, tensor in whole_state(trainer.model).items()}
        seen = {name: whole.get(name, value) for name, value in seen.items()}
        assert trainer._fused_head() is not None
        seen["processes"] = torch.tensor(trainer.accelerator.num_processes)
        if trainer.is_world_process_zero():
            save_file(seen, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
