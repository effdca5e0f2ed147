"""Every shipped method, in the place of a recipe's objective."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from hfdistill import DistillationTrainer, EmaTeacher, Peer
from hfdistill.recipe import Recipe, RecipeError, load_recipe
from hfdistill.recipe.shipped import shipped_methods
from hfdistill.stages import Reporter, run_recipe
from tests import by_sgd
from tests.cli.small_run import small_recipe
from tests.trainer.trajectory import examples, models


@pytest.mark.parametrize("name", sorted(shipped_methods()))
def test_a_method_takes_the_place_of_the_objective(name: str) -> None:
    recipe = load_recipe("digits", method=name)
    plain = load_recipe("digits")
    assert recipe.objective != plain.objective
    assert (recipe.student, recipe.data, recipe.training) == (plain.student, plain.data, plain.training)
    assert recipe.teacher.beside or recipe.teacher == plain.teacher


@pytest.mark.parametrize("name", sorted(shipped_methods()))
def test_a_method_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    line = shipped_methods()[name]
    assert 30 < len(line) < 140
    assert "arXiv" in line or "No single paper" in line


def test_a_value_of_a_method_can_be_changed() -> None:
    recipe = load_recipe("digits", {"objective.terms.1.logits.beta": "2"}, "dkd")
    assert recipe.objective.terms is not None
    assert recipe.objective.terms[1]["logits"]["beta"] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("training: {max_steps: 1}", "training is no part of a method"),
        ("teacher: {model: a}", "teacher.model is no part of a method, whose teacher can only be one that learns"),
        ("teacher: [ema]", "teacher: got .*, expected ema or peer"),
        (None, "did you mean 'dkd'"),
    ],
)
def test_what_is_no_method_is_refused(content: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RecipeError, match=words):
        load_recipe("digits", method=file if content is not None else "dk")


@pytest.mark.parametrize("name", sorted(shipped_methods()))
def test_a_method_trains_a_student(name: str, tmp_path: Path) -> None:
    # The tiny models' heads are narrower than those that MiniLM's number of relation heads divides.
    changes = {"objective.terms.2.attentions.relation_heads": "4"} if name.startswith("minilm") else {}
    recipe = load_recipe("digits", changes, name)
    student, teacher = models("vit", "single_label_classification")
    trainer = DistillationTrainer(
        student,
        by_sgd.arguments(tmp_path, optim="adamw_torch", learning_rate=1e-3, **recipe.objective.arguments()),
        teacher_model=beside(recipe, teacher),
        objective=recipe.objective.build(),
        train_dataset=examples("vit", "single_label_classification"),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)


def beside(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel | EmaTeacher | Peer:
    """The teacher of a training in Python, as the recipe has it."""
    if recipe.teacher.ema is not None:
        return EmaTeacher(recipe.teacher.ema)
    return model if recipe.teacher.peer is None else Peer(model)


def test_a_teacher_that_is_replaced_says_how_examples_are_read(tmp_path: Path) -> None:
    changes = {"control": "false", "training.max_steps": "1"}
    recipe = load_recipe(small_recipe(tmp_path), changes, "deep_mutual_learning")
    assert recipe.teacher.model is None and recipe.teacher.processor == str(tmp_path / "vit")
    assert run_recipe(recipe, tmp_path / "out", Reporter(silent=True)) is not None


def test_a_run_takes_a_method(tmp_path: Path) -> None:
    recipe = load_recipe(small_recipe(tmp_path), {"control": "false"}, "dist")
    run_recipe(recipe, tmp_path / "out", Reporter(silent=True))
    assert "loss: dist" in (tmp_path / "out" / "recipe.yaml").read_text()
