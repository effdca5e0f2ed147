"""Teacher's assistants: models between teacher and student, each taught by the one before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfdistill.recipe.values import RecipeError

if TYPE_CHECKING:
    from hfdistill.recipe.sections import StudentSection

SAME = "student"
"""Written instead of an assistant's keys: a model such as the student (born-again networks)."""

SectionOf = Callable[[Mapping[str, Any], str], "StudentSection"]


def assistant_sections(given: Sequence[Any], student: StudentSection, section_of: SectionOf) -> list[StudentSection]:
    """The assistants of a recipe as student sections, in the order in which they learn.

    Errors: RecipeError for what cannot stand between two models: adapters, two heads, layers of a teacher that has been
    fine-tuned already.
    """
    sections = []
    for place, entry in enumerate(given):
        path = f"assistants.{place}"
        if not isinstance(entry, Mapping) and entry != SAME:
            raise RecipeError(
                f"{path}: got {entry!r}, expected the keys of a student section, such as {{config: ...}}, or {SAME!r}."
            )
        section = student if entry == SAME else section_of(entry, path)
        unfit = {
            "peft": section.peft is not None,
            "distillation_token": section.distillation_token,
            "from_teacher": place > 0 and section.from_teacher is not None,
        }
        for key, is_set in unfit.items():
            if is_set:
                raise RecipeError(
                    f"{path}.{key}: an assistant is a whole model with one head; expected model or config"
                    f"{', or layers of the teacher for the first one' if key == 'from_teacher' else ''}."
                )
        sections.append(section)
    if sections and student.from_teacher is not None:
        raise RecipeError(
            "student.from_teacher: the control would begin with layers of an assistant, which has learnt already; name "
            "student.model or student.config."
        )
    return sections
