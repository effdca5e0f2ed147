"""Teachers that learn beside the student: `teacher.ema`, its moving average, and `teacher.peer`, a second one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hfdistill.recipe.values import RecipeError

if TYPE_CHECKING:
    from hfdistill.recipe.sections import ObjectiveSection, StudentSection, TeacherSection

SAME = "student"
"""Written instead of a peer's keys: a model such as the student, with other random numbers."""
KEYS = ("ema", "peer")


def check_beside(section: TeacherSection) -> None:
    """Refuse keys of a teacher that is there before the student. Errors: RecipeError naming the key."""
    from hfdistill.errors import HfDistillError
    from hfdistill.teachers import EmaTeacher

    if not section.beside:
        return
    key = next(key for key in KEYS if vars(section)[key] is not None)
    for other, empty in (("finetune", None), ("zero_shot", None), ("init_kwargs", {})):
        if vars(section)[other] != empty:
            raise RecipeError(
                f"teacher.{other}: the teacher of teacher.{key} begins as a student does and learns beside the "
                f"student; leave this key out, or set it to {'null' if empty is None else empty}."
            )
    if section.ema is not None:
        try:
            EmaTeacher(section.ema)
        except HfDistillError as error:
            raise RecipeError(f"teacher.ema: {error}") from error


def check_learning_beside(
    teacher: TeacherSection, student: StudentSection, objective: ObjectiveSection, *, assistants: bool
) -> None:
    """Refuse what a student and a teacher that learns beside it cannot do. Errors: RecipeError naming the key."""
    if not teacher.beside:
        return
    if assistants:
        raise RecipeError(
            "assistants: they stand between a trained teacher and the student, and this one learns beside the student; "
            "leave them out, or name a trained teacher in teacher.model."
        )
    if student.from_teacher is not None:
        raise RecipeError(
            "student.from_teacher: the teacher learns beside the student and has no layers of its own before; name "
            "student.model or student.config."
        )
    if teacher.peer is not None:
        _check_peer_terms(objective)
        for key in ("peft", "distillation_token"):
            if vars(student)[key] not in (None, False):
                raise RecipeError(f"student.{key}: two students that learn together are whole models with one head.")


def _check_peer_terms(objective: ObjectiveSection) -> None:
    from hfdistill.knowledge import Logits, TaskLoss
    from hfdistill.schedules import is_used

    built = objective.build()
    terms = [] if built is None else built.active
    others = [term for term in terms if not isinstance(term, (TaskLoss, Logits))]
    if others:
        raise RecipeError(
            f"objective.terms: {others[0].name} came beside teacher.peer, and two students learn from labels and from "
            "each other's logits; expected task and logits terms alone."
        )
    labels = any(isinstance(term, TaskLoss) and is_used(term.weight) for term in terms)
    if objective.alpha == 1 or (built is not None and not labels):
        raise RecipeError(
            "objective: without labels two students could only agree with each other; expected alpha below 1, or a "
            "term such as {task: {}}, beside teacher.peer."
        )


def beside_in_words(section: TeacherSection) -> str:
    """What a teacher that learns beside the student is, in a few words."""
    if section.ema is not None:
        return f"the moving average of the student's own weights (decay {section.ema:g})"
    if not isinstance(section.peer, Mapping):
        return "a second student such as the first"
    return f"a second student ({section.peer.get('model') or section.peer['config']['model_type'] + ' from a config'})"


def peer_section(
    teacher: TeacherSection, student: StudentSection, section_of: Callable[[Mapping[str, Any], str], StudentSection]
) -> StudentSection | None:
    """The peer as a student section, where there is one. Errors: RecipeError for what cannot be a peer."""
    path, given = "teacher.peer", teacher.peer
    if given is None or given == SAME:
        return None if given is None else student
    if not isinstance(given, Mapping):
        raise RecipeError(f"{path}: got {given!r}, expected the keys of a model, such as {{config: ...}}, or {SAME!r}.")
    section = section_of(given, path)
    for key in ("from_teacher", "finetune", "peft", "distillation_token"):
        if vars(section)[key] not in (None, False):
            raise RecipeError(f"{path}.{key}: a peer is a whole model with one head; expected model or config.")
    return section
