"""A whole recipe: its sections together, and how they are made of the content of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from hfdistill.recipe.assistants import assistant_sections
from hfdistill.recipe.beside import check_learning_beside, peer_section
from hfdistill.recipe.cache import check_cached_training
from hfdistill.recipe.sections import DataSection, ObjectiveSection, StudentSection, TeacherSection, settle
from hfdistill.recipe.training import training_settings
from hfdistill.recipe.two_heads import check_two_heads
from hfdistill.recipe.values import RecipeError, converted, unknown_key


@dataclass(frozen=True)
class Recipe:
    """One run: who learns what from whom, on which data, how.

    `assistants` are models between teacher and student, each of them the keys of a student section, or "student" for
    one like it.
    """

    student: StudentSection
    teacher: TeacherSection
    data: DataSection
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    training: dict[str, Any] = field(default_factory=dict)
    control: bool = True
    seeds: list[int] = field(default_factory=lambda: [42])
    assistants: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        settle(self, "training", training_settings(self.training, "training"))
        self.links()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise RecipeError(
                f"seeds: got {self.seeds}, expected different whole numbers of at least 0, such as [42, 43]."
            )
        check_two_heads(self.student, self.objective)
        check_learning_beside(self.teacher, self.student, self.objective, assistants=bool(self.assistants))
        check_cached_training(self.teacher, self.objective, assistants=bool(self.assistants))
        self.peer()
        if self.teacher.zero_shot is not None and self.student.from_teacher is not None:
            raise RecipeError(
                "student.from_teacher: layers of a zero-shot teacher make no classifier; name student.model or "
                "student.config."
            )
        if self.teacher.ensemble is not None and any(each.from_teacher for each in [self.student, *self.links()]):
            raise RecipeError(
                "student.from_teacher: there are several teachers (teacher.ensemble), and it does not say of which to "
                "take layers; name student.model or student.config."
            )

    def links(self) -> list[StudentSection]:
        """The models between teacher and student, in the order in which they learn."""
        return assistant_sections(
            self.assistants, self.student, lambda keys, path: _section(StudentSection, keys, path)
        )

    def peer(self) -> StudentSection | None:
        """The second student that learns beside the first, where there is one."""
        return peer_section(self.teacher, self.student, lambda keys, path: _section(StudentSection, keys, path))

    def to_dict(self) -> dict[str, Any]:
        """Every key with its value, as written to recipe.yaml."""
        return dataclasses.asdict(self)


def recipe_of(content: Mapping[str, Any]) -> Recipe:
    """The recipe that a parsed YAML file describes. Errors: RecipeError naming the key."""
    return _section(Recipe, content, "")  # type: ignore[no-any-return]


def _section(section: Any, content: Any, path: str) -> Any:
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise RecipeError(f"{path}: got {content!r}, expected a mapping of keys to values.")
    hints = get_type_hints(section)
    fields = {entry.name: entry for entry in dataclasses.fields(section)}
    values = {}
    for key, value in content.items():
        where = f"{path}.{key}".lstrip(".")
        if key not in fields:
            raise unknown_key(where, fields)
        nested = dataclasses.is_dataclass(hints[key])
        if value is None and key == "training":
            value = {}
        values[key] = _section(hints[key], value, where) if nested else converted(value, hints[key], where)
    for name, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RecipeError(f"{f'{path}.{name}'.lstrip('.')}: this key is missing, and it has no default.")
    return section(**values)
