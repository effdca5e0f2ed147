"""A discriminator on features: what it learns, what the student learns from it, and where it is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hfdistill import Adversarial, HfDistillError, Logits, Objective, TaskLoss
from hfdistill.features.adversarial import OneOf, adversarial
from hfdistill.recipe.objective import terms_of
from hfdistill.recipe.values import RecipeError
from hfdistill.reversal import with_reversed_gradient
from tests import tiny
from tests.features.runs import trained
from tests.trainer.trajectory import assert_same, examples


def objective(**options: Any) -> Objective:
    return Objective([TaskLoss(0.5), Adversarial(**options)])


def discriminator(seen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in seen.items() if "discriminator" in name}


def test_the_value_is_the_mean_of_two_cross_entropies() -> None:
    student, teacher = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, math.log(3)])
    # Told at random: log 2; the student taken for the teacher at 3/4, and the teacher for itself at 3/4.
    expected = torch.tensor([math.log(2), (math.log(4) + math.log(4 / 3)) / 2])
    torch.testing.assert_close(adversarial(student, teacher), expected)


def test_a_reversed_gradient_turns_round() -> None:
    value = torch.tensor([1.0, -2.0], requires_grad=True)
    (with_reversed_gradient(value, 0.5) ** 2).sum().backward()
    torch.testing.assert_close(value.grad, torch.tensor([-1.0, 2.0]))


def test_the_discriminator_learns_to_tell_a_student_that_stands_still(tmp_path: Path) -> None:
    """With a reversal next to nothing the student hardly moves, and the value falls below chance."""
    alone = Objective([Adversarial(strength=1e-9, hidden=16)])
    _, seen = trained("bert", tmp_path, alone, max_steps=30, learning_rate=0.5)
    values = [float(seen[f"step {step} loss/adversarial"]) for step in (1, 30)]
    assert values[0] == pytest.approx(math.log(2), abs=0.2)
    assert values[1] < 0.5 * math.log(2)


def test_the_student_learns_to_fool_it(tmp_path: Path) -> None:
    """The same discriminator at the start, but the student follows its reversed gradient: it is told less well."""
    last = []
    for strength in (1e-9, 20.0):
        alone = Objective([Adversarial(strength=strength, hidden=16)])
        _, seen = trained("bert", tmp_path, alone, max_steps=12, learning_rate=0.2)
        last.append(float(seen["step 12 loss/adversarial"]))
    assert last[1] > last[0] + 0.05


def test_one_step_goes_down_for_the_discriminator_and_up_for_the_student(tmp_path: Path) -> None:
    once = {"max_steps": 1, "learning_rate": 0.1}
    _, start = trained("bert", tmp_path, Objective([Adversarial()]), **{**once, "learning_rate": 0.0})
    moved = [trained("bert", tmp_path, Objective([Adversarial(strength=each)]), **once)[1] for each in (1.0, 3.0)]
    embeddings = "parameter bert.embeddings.LayerNorm.weight"
    # The student's step grows with the strength, the discriminator's does not.
    torch.testing.assert_close(
        3 * (moved[0][embeddings] - start[embeddings]), moved[1][embeddings] - start[embeddings], rtol=1e-2, atol=1e-6
    )
    assert (moved[0][embeddings] - start[embeddings]).abs().max() > 1e-5
    for name, value in discriminator(moved[0]).items():
        torch.testing.assert_close(value, moved[1][name])
        assert not torch.equal(value, start[name]) or "outer.bias" in name


@pytest.mark.parametrize("architecture", ["bert", "vit", "resnet"])
def test_the_update_does_not_depend_on_the_cut(architecture: str, tmp_path: Path) -> None:
    terms = Objective([TaskLoss(), Logits(), Adversarial(layers="uniform", weight=0.5)])
    _, whole = trained(architecture, tmp_path, terms)
    _, cut = trained(architecture, tmp_path, terms, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(whole, cut)
    assert discriminator(whole)


def test_it_is_resumed_exactly_and_not_exported(tmp_path: Path) -> None:
    trainer, whole = trained("bert", tmp_path, objective(), optim="adamw_torch", save_strategy="steps", save_steps=1)
    checkpoint = tmp_path / "checkpoint-2"
    assert any("discriminator" in name for name in load_file(checkpoint / "distillation" / "projectors.safetensors"))
    _, resumed = trained(
        "bert", tmp_path / "b", objective(), optim="adamw_torch", resume_from_checkpoint=str(checkpoint)
    )
    for name, value in whole.items():
        if not name.startswith("step"):
            assert torch.equal(value, resumed[name]), name
    trainer.save_model(str(tmp_path / "final"))
    for folder in ("checkpoint-2", "final"):
        assert not any("discriminator" in name for name in load_file(tmp_path / folder / "model.safetensors"))
    assert not (tmp_path / "final" / "distillation").exists()


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_what_is_judged_is_one_vector_an_example(pool: OneOf, tmp_path: Path) -> None:
    """By hand, from the hidden states of valid tokens and the discriminator's own weights."""
    student, teacher = (tiny.model("bert", layers=layers, num_labels=3, seed=layers) for layers in (1, 2))
    rows = examples("bert", "single_label_classification", unlabelled=False)[:8]
    batch = {key: torch.stack([row[key] for row in rows]) for key in ("input_ids", "attention_mask")}
    vectors = []
    for model in (student, teacher):
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states[-1]
        valid = [state[mask.bool()] for state, mask in zip(states, batch["attention_mask"], strict=True)]
        ends = {"first": lambda each: each[0], "last": lambda each: each[-1], "mean": lambda each: each.mean(0)}
        pooled = torch.stack([ends[pool](each) for each in valid])
        vectors.append(
            (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        )
    still: dict[str, Any] = {"max_steps": 1, "learning_rate": 0.0}
    terms = Objective([Adversarial(pool=pool, hidden=4)])
    _, seen = trained("bert", tmp_path, terms, pair=(student, teacher), rows=rows, **still)
    weights = {name.rpartition("discriminator.")[2]: value for name, value in discriminator(seen).items()}
    inner = [each @ weights["inner.weight"].mT + weights["inner.bias"] for each in vectors]
    logits = [
        torch.where(each > 0, each, 0.2 * each) @ weights["outer.weight"].mT + weights["outer.bias"] for each in inner
    ]
    expected = -((1 - logits[0].sigmoid()).log() + logits[1].sigmoid().log()).mean() / 2
    torch.testing.assert_close(seen["step 1 loss/adversarial"].float(), expected, rtol=1e-4, atol=0)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="hidden=0"):
        Adversarial(hidden=0)
    with pytest.raises(HfDistillError, match="strength=-1"):
        Adversarial(strength=-1)
    with pytest.raises(HfDistillError, match="pool='none'"):
        Adversarial(pool="none")  # type: ignore[arg-type]
    with pytest.raises(HfDistillError, match="layer 9 of the student"):
        trained("bert", tmp_path, objective(layers={9: 1}), max_steps=0)


def test_a_recipe_names_it() -> None:
    (term,) = terms_of([{"adversarial": {"layers": "uniform", "hidden": 32, "weight": 0.1}}], "objective.terms")
    assert isinstance(term, Adversarial)
    assert (term.layers, term.hidden, term.weight) == ("uniform", 32, 0.1)
    with pytest.raises(RecipeError, match="did you mean 'hidden'"):
        terms_of([{"adversarial": {"hiden": 32}}], "objective.terms")
    with pytest.raises(RecipeError, match="expected one hidden unit"):
        terms_of([{"adversarial": {"hidden": 0}}], "objective.terms")
