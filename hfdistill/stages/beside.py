"""Teachers of a recipe that learn beside the student: how they are made, and what they read."""

from __future__ import annotations

from dataclasses import replace

import datasets

from hfdistill.data import Kind, LabelSpace, View
from hfdistill.recipe import Recipe, RecipeError, StudentSection
from hfdistill.stages import models
from hfdistill.tasks import TASKS
from hfdistill.teachers import EmaTeacher, Peer

PEER_SEEDS = 1000
"""How far the peer's seed is from the student's."""


def check(recipe: Recipe, space: LabelSpace) -> None:
    """Refuse a peer where the loss of the labels is the model's own. Errors: RecipeError."""
    task = TASKS.get(space.problem_type)
    if recipe.teacher.peer is not None and task is not None and task.loss_inside:
        raise RecipeError(
            f"teacher.peer: the data are for {space.problem_type}, where the loss of the labels is the model's own, "
            "and two students need one that follows from their logits; expected teacher.model or teacher.ema."
        )


def views(recipe: Recipe, kind: Kind, train: datasets.Dataset) -> tuple[View, View]:
    """The student's view, twice: both read the same.

    Errors: RecipeError for a peer that would read something else.
    """
    section = _reading(recipe.student, recipe.teacher.processor)
    view = kind.view(section, models.named_config(section), train)
    peer = recipe.peer()
    if peer is not None and peer != recipe.student:
        section = _reading(peer, recipe.teacher.processor)
        differences = view.differences(kind.view(section, models.named_config(section), train, view))
        if differences:
            raise RecipeError(
                f"teacher.peer: it reads other inputs than the student ({'; '.join(differences)}), and both learn from "
                "one view; expected models that read the same. If they do, name one processor for both."
            )
    return view, view


def _reading(section: StudentSection, processor: str | None) -> StudentSection:
    """A model from a config reads by the processor that the recipe has for its teacher."""
    return section if section.model or section.processor else replace(section, processor=processor)


def teacher(recipe: Recipe, kind: Kind, seed: int) -> EmaTeacher | Peer:
    """What a trainer is given as its teacher; a peer draws other random numbers than the student."""
    peer = recipe.peer()
    if peer is None:
        assert recipe.teacher.ema is not None, "asked of a teacher that learns beside the student"
        return EmaTeacher(recipe.teacher.ema)
    return Peer(models.build_student(replace(recipe, student=peer), kind, seed + PEER_SEEDS))
