"""Both models of a recipe: loaded, built from a config, or made of the teacher's layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)

from hfdistill.adapters import brought_back, with_adapters
from hfdistill.data import Kind
from hfdistill.data.columns import IMAGE
from hfdistill.data.processors import loaded_processor
from hfdistill.errors import HfDistillError, nearest
from hfdistill.loading import load_teacher, why_not_loaded
from hfdistill.recipe import Recipe, RecipeError, StudentSection, TeacherSection
from hfdistill.recipe.beside import beside_in_words
from hfdistill.recipe.ensemble import set_options
from hfdistill.recipe.values import unknown_key
from hfdistill.stages.several import SeveralTeachers
from hfdistill.students import student_from_teacher
from hfdistill.students.distillation_token import TWO_HEADED, with_two_heads
from hfdistill.tasks import TASKS
from hfdistill.teachers import EnsembleTeacher, ZeroShotTeacher

Student: TypeAlias = PreTrainedModel | PeftModel
AnyTeacher: TypeAlias = PreTrainedModel | ZeroShotTeacher | SeveralTeachers
Model: TypeAlias = Student | AnyTeacher

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
    if default.is_encoder_decoder:
        allowed.add("decoder_start_token_id")  # T5's forward reads it, and its config does not declare it
    for key in options:
        if key not in allowed:
            raise unknown_key(f"{path}.{key}", allowed - {"self", "kwargs"})
    try:
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **options)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    return config


def load_teacher_in_use(recipe: Recipe, kind: Kind) -> AnyTeacher:
    """The teacher as the recipe names it, before any fine-tuning, asked by the names of the classes if it says so."""
    if recipe.teacher.ensemble is not None:
        members = [load_teacher(str(each.model), each.revision, each.init_kwargs) for each in recipe.teacher.members]
        return SeveralTeachers(members, recipe.teacher, kind.reader.space)
    return load_original_teacher(recipe, kind) if recipe.teacher.zero_shot is None else _zero_shot(recipe, kind)


def as_teaching(teacher: AnyTeacher) -> PreTrainedModel | ZeroShotTeacher | EnsembleTeacher:
    """What a trainer is given as its teacher: of several the description, which mixes them at each temperature."""
    return teacher.description if isinstance(teacher, SeveralTeachers) else teacher


def load_original_teacher(recipe: Recipe, kind: Kind) -> PreTrainedModel:
    """The teacher as a model of its own, before any fine-tuning: with its own head if it is used as it is."""
    section = recipe.teacher
    if section.finetune is None:
        return load_teacher(str(section.model), section.revision, section.init_kwargs)
    if section.config is not None:
        set_seed(TEACHER_SEED)
        return _from_config(section, section, kind)
    set_seed(TEACHER_SEED)
    return _from_name(section, section, kind)


def _zero_shot(recipe: Recipe, kind: Kind) -> ZeroShotTeacher:
    """A classifier of the data's classes from a model of images and texts."""
    section, space = recipe.teacher, kind.reader.space
    settings = section.zero_shot or {}
    if kind.name != IMAGE or not space.whole:
        raise RecipeError(f"teacher.zero_shot: it sorts whole images into classes, and the data are {kind.name}.")
    words = dict(zip(space.names, space.names, strict=True)) | settings.get("class_names", {})
    for name in words:
        if name not in space.names:
            raise unknown_key(f"teacher.zero_shot.class_names.{name}", space.names)
    numbers = [name for name, word in words.items() if word.isdecimal()]
    if numbers:
        raise RecipeError(
            f"teacher.zero_shot: a text encoder understands words, and classes are called {', '.join(numbers[:5])}; "
            f'say what they are, such as --teacher.zero_shot.class_names=\'{{"{numbers[0]}": "aeroplane", ...}}\'.'
        )
    model = load_teacher(str(section.model), section.revision, section.init_kwargs)
    if torch.cuda.is_available() and not recipe.training.get("use_cpu"):
        nn.Module.cuda(model)  # thousands of texts may have to be embedded
    teacher = ZeroShotTeacher(model, loaded_processor(AutoTokenizer, section), words, **_only(settings, "templates"))
    if teacher.reads_free_sizes:
        raise RecipeError(
            f"teacher.model: {section.model} reads images of any size, which recipes do not; take one of a fixed size."
        )
    teacher.bind(space.names, TASKS[space.problem_type], model.device)
    return teacher


def _only(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def build_student(recipe: Recipe, kind: Kind, seed: int) -> Student:
    """The student before training; the same seed gives the same weights, for the control too."""
    adapters = recipe.student.adapters()
    student = _bare_student(recipe, kind, seed)
    return student if adapters is None else with_adapters(student, adapters, seed)


def _bare_student(recipe: Recipe, kind: Kind, seed: int) -> PreTrainedModel:
    student = _student_as_named(recipe, kind, seed)
    if not recipe.student.distillation_token:
        return student
    try:
        return with_two_heads(student, seed=seed)
    except HfDistillError as error:
        raise RecipeError(f"student.distillation_token: {error}") from error


def _student_as_named(recipe: Recipe, kind: Kind, seed: int) -> PreTrainedModel:
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
        return _from_config(section, recipe.teacher.members[0], kind)
    return _from_name(section, recipe.teacher.members[0], kind)


def load_finished(folder: Path, kind: Kind) -> PreTrainedModel:
    """A model that a finished stage has saved."""
    return _loading("stage", str(folder), lambda: kind.auto_class.from_pretrained(folder))  # type: ignore[no-any-return]


def load_finished_student(folder: Path, recipe: Recipe, kind: Kind) -> Student:
    """A student that a finished stage has saved, with the recipe's model below it where adapters alone were saved."""
    if recipe.student.peft is None:
        return load_finished(folder, kind)
    base = _bare_student(recipe, kind, recipe.seeds[0])
    return _loading("stage", str(folder), lambda: brought_back(base, folder))  # type: ignore[no-any-return]


def _from_config(section: TeacherSection | StudentSection, teacher: TeacherSection, kind: Kind) -> PreTrainedModel:
    config = named_config(section)
    config.update(kind.config_settings(section, teacher))
    if isinstance(section, StudentSection) and section.distillation_token and config.model_type in TWO_HEADED:
        config.architectures = [TWO_HEADED[config.model_type].__name__]
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
    token = role != "teacher" and recipe.student.distillation_token
    return _origin(recipe, role) + (", with a distillation token" if token else "")


def _origin(recipe: Recipe, role: str) -> str:
    section: Any = recipe.teacher if role == "teacher" else recipe.student
    if role == "teacher" and section.beside:
        return beside_in_words(section)
    if role == "teacher" and section.ensemble is not None:
        return f"{', '.join(str(each.model) for each in section.members)} ({set_options(section)})"
    if section.model is not None:
        zero_shot = role == "teacher" and recipe.teacher.zero_shot is not None
        return f"{section.model}, zero-shot" if zero_shot else str(section.model)
    if section.config is not None:
        return f"{section.config['model_type']} from a config"
    teacher = recipe.teacher.model or f"{(recipe.teacher.config or {})['model_type']} from a config"
    options = ", ".join(f"{key}={value}" for key, value in section.from_teacher.items())
    return f"{teacher}, {options}"
