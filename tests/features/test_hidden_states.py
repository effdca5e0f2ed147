"""Terms on hidden states and modules inside the trainer: values, invariance, projectors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMultipleChoice

from hfdistill import HfDistillError, Objective, TaskLoss
from hfdistill.features import HiddenStates, Module, Relations, Span, Window
from tests import tiny
from tests.features.runs import trained
from tests.trainer.trajectory import assert_same, examples

ROOT = Path(__file__).parents[2]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCHITECTURES = ["bert", "vit", "resnet", "deit", "convnext"]


def test_the_mean_is_over_valid_tokens(tmp_path: Path) -> None:
    """One step at learning rate 0: the logged part is the hint over attended tokens, worked out by hand."""
    terms = Objective([TaskLoss(), HiddenStates("hint", layers={0: 0}, projector=None, name="embeddings")])
    student, teacher = (tiny.model("bert", layers=1, num_labels=3, seed=seed) for seed in (1, 2))
    rows = examples("bert", "single_label_classification", unlabelled=False)[:8]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    with torch.no_grad():
        ours, theirs = (
            model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True).hidden_states[
                0
            ]
            for model in (student, teacher)
        )
    valid = batch["attention_mask"].bool()
    assert not valid.all()
    expected = (ours - theirs)[valid].square().mean()
    _, seen = trained("bert", tmp_path, terms, pair=(student, teacher), rows=rows, learning_rate=0.0, max_steps=1)
    torch.testing.assert_close(seen["step 1 loss/embeddings"].float(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_update_does_not_depend_on_the_cut(architecture: str, tmp_path: Path) -> None:
    _, whole = trained(architecture, tmp_path)
    _, cut = trained(architecture, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(whole, cut)
    assert any(name.startswith("projector") for name in whole) == (architecture != "resnet")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DistributedDataParallel averages the projectors' gradients too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29531"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "tests.features.runs", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for architecture in ("bert", "resnet", "vit"):
        both = load_file(tmp_path / f"{architecture}.safetensors")
        assert both.pop("processes") == 2
        _, alone = trained(architecture, tmp_path / "alone")
        assert_same(alone, both)


def test_projectors_learn_are_saved_beside_and_leave(tmp_path: Path) -> None:
    trainer, seen = trained("bert", tmp_path, save_strategy="steps", save_steps=1)
    fresh, _ = trained("bert", tmp_path / "other", learning_rate=0.0)
    name = next(name for name in seen if name.startswith("projector"))
    start = dict(fresh.features.projectors.modules.named_parameters())[name.removeprefix("projector ")]
    assert not torch.equal(seen[name], start)
    checkpoint = tmp_path / "checkpoint-3"
    saved = load_file(checkpoint / "distillation" / "projectors.safetensors")
    assert torch.equal(saved[name.removeprefix("projector ")], seen[name])
    assert not any("distillation" in key for key in load_file(checkpoint / "model.safetensors"))
    assert not any("distillation" in key for key in trainer.model.state_dict())
    trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "distillation").exists()
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]


def test_a_resumed_training_goes_on_exactly(tmp_path: Path) -> None:
    _, whole = trained("bert", tmp_path / "a", optim="adamw_torch", save_strategy="steps", save_steps=1)
    _, resumed = trained(
        "bert",
        tmp_path / "b",
        optim="adamw_torch",
        resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"),
    )
    for name, value in whole.items():
        if not name.startswith("step"):
            assert torch.equal(value, resumed[name]), name
    (tmp_path / "a" / "checkpoint-2" / "distillation" / "projectors.safetensors").unlink()
    with pytest.raises(HfDistillError, match="holds no projectors"):
        trained("bert", tmp_path / "c", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


def test_the_projectors_gradient_is_clipped(tmp_path: Path) -> None:
    """At learning rate 1 a clipped SGD step is as long as max_grad_norm, over student and projectors together."""
    once = {"max_steps": 1, "max_grad_norm": 0.01}
    _, start = trained("bert", tmp_path, learning_rate=0.0, **once)
    _, after = trained("bert", tmp_path, learning_rate=1.0, **once)
    moved = {name: (after[name] - start[name]).square().sum() for name in start if not name.startswith("step")}
    assert sum(value for name, value in moved.items() if name.startswith("projector")) > 0
    torch.testing.assert_close(torch.stack(list(moved.values())).sum().sqrt(), torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (HiddenStates(layers={9: 1}), "layer 9 of the student, which has 1"),
        (HiddenStates(layers="skip:5"), "expected at most 'skip:2'"),
        (HiddenStates(part="decoder"), "'decoder' were asked for"),
        (HiddenStates(projector=None), "16 wide and the teacher's 24"),
        (Module("bert.encoder.layer.0.outputs"), "did you mean 'bert.encoder.layer.0.output'"),
        (HiddenStates(region=Window(0, 0, 0.5, 0.5)), "came for tokens"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_construction(term: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=message):
        trained("bert", tmp_path, Objective([term]), max_steps=0)


def test_wrong_options_are_refused_at_once() -> None:
    with pytest.raises(HfDistillError, match="layers='every'"):
        HiddenStates(layers="every")
    with pytest.raises(HfDistillError, match="prefix='cls'"):
        HiddenStates(prefix="cls")  # type: ignore[arg-type]
    with pytest.raises(HfDistillError, match="pool='max'"):
        Relations(pool="max")  # type: ignore[arg-type]
    with pytest.raises(HfDistillError, match="no loss 'hints'"):
        HiddenStates("hints")
    with pytest.raises(HfDistillError, match="0 <= start < end"):
        Span(3, 3)


def test_relations_need_examples_to_relate(tmp_path: Path) -> None:
    relations = Objective([TaskLoss(), Relations("relational_distance", pool="first")])
    with pytest.raises(HfDistillError, match="relates 3 or more examples"):
        trained("bert", tmp_path, relations, per_device_train_batch_size=2)
    _, seen = trained("bert", tmp_path, relations)
    assert seen["step 1 loss/relations"] > 0


@pytest.mark.parametrize("architecture", ["vit", "resnet"])
@pytest.mark.parametrize("loss", ["attention_transfer", "channel_wise_kl", "pkd"])
def test_maps_are_compared(architecture: str, loss: str, tmp_path: Path) -> None:
    _, seen = trained(architecture, tmp_path, Objective([TaskLoss(), HiddenStates(loss, layers="uniform")]))
    assert 0 < seen["step 3 loss/hidden"] < float("inf")


def test_choices_without_a_mask_are_read_as_examples_of_their_own(tmp_path: Path) -> None:
    """The same value as with a mask of ones."""
    config = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **NO_DROPOUT
    )
    parts = []
    for masked in (False, True):
        models = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            models.append(BertForMultipleChoice(config))
        ids = [torch.arange(12).reshape(3, 4) % 9 for _ in range(8)]
        mask = {"attention_mask": torch.ones(3, 4, dtype=torch.long)} if masked else {}
        rows = [{"input_ids": each, "labels": torch.tensor(1), **mask} for each in ids]
        only = Objective([TaskLoss(), HiddenStates("hint")])
        _, seen = trained("bert", tmp_path, only, pair=(models[0], models[1]), rows=rows, max_steps=1)
        parts.append(seen["step 1 loss/hidden"])
    torch.testing.assert_close(parts[0], parts[1])


def test_a_question_counts_once_however_many_choices_it_has(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **NO_DROPOUT
    )
    parts = []
    for choices in (2, 4):
        models = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            models.append(BertForMultipleChoice(config))
        # The same choices again: how the texts relate, and so the mean, stays as it is.
        ids = [(torch.arange(8).reshape(2, 4) + row).repeat(choices // 2, 1) % 9 for row in range(8)]
        rows = [{"input_ids": each, "labels": torch.tensor(1), "attention_mask": torch.ones_like(each)} for each in ids]
        only = Objective([TaskLoss(), Relations("similarity_preserving")])
        _, seen = trained("bert", tmp_path, only, pair=(models[0], models[1]), rows=rows, max_steps=1)
        parts.append(seen["step 1 loss/relations"])
    # Twice as many rows, each entry twice in them: the sum of squares doubles, the number of pairs is fourfold.
    torch.testing.assert_close(parts[0], parts[1] * 2, rtol=1e-3, atol=0)
