"""How a recipe's teacher is run: the keys of `teacher` that are arguments of the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfdistill.recipe.values import RecipeError

if TYPE_CHECKING:
    from hfdistill.recipe.sections import TeacherSection

KEYS = ("dtype", "attn_implementation", "batch_size", "device", "sharded", "prefetch")
"""Each is the argument of that name with `teacher_` before it; none changes what the teacher is."""
DECIDING = ("dtype", "attn_implementation")
"""Those that change its targets, if by rounding alone."""


def forward_keys(section: TeacherSection) -> dict[str, Any]:
    """Those of the keys that are set."""
    given = {key: vars(section)[key] for key in KEYS}
    return {key: value for key, value in given.items() if value is not None and value is not False}


def forward_arguments(section: TeacherSection) -> dict[str, Any]:
    """The trainer's arguments that they are."""
    return {f"teacher_{key}": value for key, value in forward_keys(section).items()}


def check_forward(section: TeacherSection) -> None:
    """Refuse what cannot be said of a teacher's forward. Errors: RecipeError naming the key."""
    keys = list(forward_keys(section))
    if keys and section.beside:
        raise RecipeError(
            f"teacher.{keys[0]}: a teacher that learns beside the student runs as the student does; leave this out."
        )
    if section.batch_size is not None and section.batch_size < 1:
        raise RecipeError(f"teacher.batch_size: got {section.batch_size}, expected at least 1 row at a time.")
    if section.prefetch and section.sharded:
        raise RecipeError(
            "teacher.prefetch: teacher.sharded has all processes run the teacher together; leave one out."
        )
    if section.prefetch and section.cache:
        raise RecipeError("teacher.prefetch: teacher.cache has the targets at once; leave one out.")
    if section.device is not None and section.sharded:
        raise RecipeError("teacher.device: teacher.sharded puts a piece on each process's own device; leave one out.")
