"""Both models of a recipe: loaded, built from a config, or made of the teacher's layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)

from hfdistill.data import Kind
from hfdistill.errors import HfDistillError, nearest
from hfdistill.loading import load_teacher, why_not_loaded
from hfdistill.recipe import Recipe, RecipeError, StudentSection, TeacherSection
from hfdistill.recipe.values import unknown_key
from hfdistill.students import student_from_teacher

TEACHER_SEED = 42
"""The teacher is trained once, whatever the seeds of the students."""


def named_config(section: TeacherSection | StudentSection) -> PreTrainedConfig:
    """The config of a section's `model` or `config`. Errors: HfDistillError where there is none of that name."""
    if section.config is not None:
        return _made_config(section.config, f"{section.SECTION}.config")
    name = str(section.model)
    config: PreTrainedConfig = _loading(
        section.SECTION, name, lambda: AutoConfig.from_pretrained(name, **_hub_options(section))
    )
    return config


def _made_config(settings: Mapping[str, Any], path: str) -> PreTrainedConfig:
    options = dict(settings)
    model_type = options.pop("model_type")
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise RecipeError(
            f"{path}.model_type: there is no model type {model_type!r}{nearest(model_type, CONFIG_MAPPING)}"
        ) from error
    allowed = {*default.to_dict(), *default.attribute_map, *inspect.signature(type(default).__init__).parameters}
    for key in options:
        if key not in allowed:
            raise unknown_key(f"{path}.{key}", allowed - {"self", "kwargs"})
    try:
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **options)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    return config


def load_original_teacher(recipe: Recipe, kind: Kind) -> PreTrainedModel:
    """The teacher as the recipe names it, before any fine-tuning: with its own head if it is used as it is."""
    section = recipe.teacher
    if section.finetune is None:
        return load_teacher(str(section.model), section.revision, section.init_kwargs)
    if section.config is not None:
        set_seed(TEACHER_SEED)
        return _from_config(section, section, kind)
    set_seed(TEACHER_SEED)
    return _from_name(section, section, kind)


def build_student(recipe: Recipe, kind: Kind, seed: int) -> PreTrainedModel:
    """The student before training; the same seed gives the same weights, for the control too."""
    section = recipe.student
    if section.from_teacher is not None:
        original = load_original_teacher(recipe, kind)
        set_seed(seed)
        try:
            student = student_from_teacher(original, **section.from_teacher)
        except TypeError as error:
            raise RecipeError(f"student.from_teacher: {error}; expected options such as {{layers: 2}}.") from error
        student.config.update(kind.reader.space.config_settings())
        return student
    set_seed(seed)
    if section.config is not None:
        return _from_config(section, recipe.teacher, kind)
    return _from_name(section, recipe.teacher, kind)


def load_finished(folder: Path, kind: Kind) -> PreTrainedModel:
    """A model that a finished stage has saved."""
    return _loading("stage", str(folder), lambda: kind.auto_class.from_pretrained(folder))  # type: ignore[no-any-return]


def _from_config(section: TeacherSection | StudentSection, teacher: TeacherSection, kind: Kind) -> PreTrainedModel:
    config = named_config(section)
    config.update(kind.config_settings(section, teacher))
    try:
        model: PreTrainedModel = kind.auto_class.from_config(config)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        first = str(error).strip().split("\n")[0]
        raise RecipeError(
            f"{section.SECTION}.config: no model for {kind.name} can be built from this: {first}"
        ) from error
    return model


def _from_name(section: TeacherSection | StudentSection, teacher: TeacherSection, kind: Kind) -> PreTrainedModel:
    options = {**kind.config_settings(section, teacher), **_hub_options(section), **section.init_kwargs}
    return _loading(  # type: ignore[no-any-return]
        section.SECTION,
        str(section.model),
        lambda: kind.auto_class.from_pretrained(section.model, ignore_mismatched_sizes=True, **options),
    )


def _hub_options(section: TeacherSection | StudentSection) -> dict[str, Any]:
    return {} if section.revision is None else {"revision": section.revision}


def _loading(role: str, name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        if isinstance(error, HfDistillError):
            raise
        raise HfDistillError(f"{role}.model: {name!r} cannot be loaded: {why_not_loaded(error)}") from error


def summary(recipe: Recipe, role: str) -> str:
    """A model in a few words: its Hub id or folder, or what it was built from."""
    section: Any = recipe.teacher if role == "teacher" else recipe.student
    if section.model is not None:
        return str(section.model)
    if section.config is not None:
        return f"{section.config['model_type']} from a config"
    teacher = recipe.teacher.model or f"{(recipe.teacher.config or {})['model_type']} from a config"
    options = ", ".join(f"{key}={value}" for key, value in section.from_teacher.items())
    return f"{teacher}, {options}"
