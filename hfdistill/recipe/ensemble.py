"""Several teachers in a recipe: `teacher.ensemble`, each of its entries the keys of a teacher that is used as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfdistill.recipe.values import RecipeError, converted, unknown_key

if TYPE_CHECKING:
    from hfdistill.recipe.sections import TeacherSection

PATH = "teacher.ensemble"
MEMBER_KEYS: Mapping[str, Any] = {"model": str, "revision": str | None, "init_kwargs": dict[str, Any]}
OPTIONS: Mapping[str, Any] = {"weights": None, "average": "probabilities", "confidence": False}
"""The keys that say how several teachers are averaged, with their defaults."""


def check_ensemble(section: TeacherSection) -> None:
    """Refuse what cannot be several teachers at once. Errors: RecipeError naming the key."""
    changed = [key for key, default in OPTIONS.items() if vars(section)[key] != default]
    if section.ensemble is None:
        if changed:
            raise RecipeError(f"teacher.{changed[0]}: it is for several teachers; name them in {PATH}.")
        return
    for key in ("finetune", "zero_shot"):
        if vars(section)[key] is not None:
            raise RecipeError(
                f"teacher.{key}: the teachers of {PATH} are used as they are; set it to null. To fine-tune several "
                "teachers on the labels train each by a run of its own, and name their folders (RUN/teacher) here."
            )
    for place, entry in enumerate(section.ensemble):
        _check_member(entry, f"{PATH}.{place}")
    _check_averaging(section, section.ensemble)


def _check_member(entry: Mapping[str, Any], path: str) -> None:
    for key, value in entry.items():
        if key in ("finetune", "config"):
            raise RecipeError(
                f"{path}.{key}: a teacher of several is used as it is; train it by a run of its own, and name its "
                "folder (RUN/teacher) as model."
            )
        if key not in MEMBER_KEYS:
            raise unknown_key(f"{path}.{key}", MEMBER_KEYS)
        converted(value, MEMBER_KEYS[key], f"{path}.{key}")
    if entry.get("model") is None:
        raise RecipeError(f"{path}.model: this key is missing; expected a Hub id or a folder.")


def _check_averaging(section: TeacherSection, entries: Sequence[Mapping[str, Any]]) -> None:
    from hfdistill.errors import HfDistillError
    from hfdistill.teachers import EnsembleTeacher

    names = [str(entry["model"]) for entry in entries]
    try:
        EnsembleTeacher(names, section.weights, section.average, section.confidence)
    except HfDistillError as error:
        raise RecipeError(f"teacher: {error}") from error


def set_options(section: TeacherSection) -> str:
    """How the teachers are averaged, in a few words: what differs from an equal mean of probabilities."""
    weights = "" if section.weights is None else f", {':'.join(f'{weight:g}' for weight in section.weights)}"
    confidence = ", weighed by confidence" if section.confidence else ""
    return f"mean of {section.average}{weights}{confidence}"
