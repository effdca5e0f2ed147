"""The stages of a run in its output folder: which are finished, which were begun, and which the recipe has outgrown."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hfdistill._atomic import write_json
from hfdistill.cache.teacher import MANY_CLASSES
from hfdistill.data import TaskData
from hfdistill.errors import HfDistillError
from hfdistill.recipe import Recipe, RecipeError, forward
from hfdistill.recipe.cache import AUTO, cache_settings
from hfdistill.recipe.ensemble import OPTIONS
from hfdistill.stages.models import named_config
from hfdistill.stages.settings import CHECKPOINTS, CONTROL, FINETUNED, STUDENT, TEACHER, stage_settings

STAGE_FILE, BEGUN_FILE = "stage.json", "begun.json"


@dataclass(frozen=True)
class Stage:
    """One stage of a run. `wanted` is false for one from before that the recipe does not ask for."""

    name: str
    seed: int
    folder: Path
    determined_by: Mapping[str, Any]
    wanted: bool

    @property
    def title(self) -> str:
        """How the stage is called in messages."""
        return self.name if self.name == TEACHER else f"{self.name} (seed {self.seed})"

    @property
    def fingerprint(self) -> str:
        """A hash of what determines the stage."""
        return hash_of(self.determined_by)

    @property
    def finished(self) -> bool:
        """Whether its results are there."""
        return (self.folder / STAGE_FILE).is_file()

    def begin(self, processes: int) -> None:
        """Leave word of what the checkpoints belong to."""
        content = {"fingerprint": self.fingerprint, "determined_by": self.determined_by, "processes": processes}
        write_json(self.folder / CHECKPOINTS / BEGUN_FILE, content)

    def former(self) -> Mapping[str, Any] | None:
        """What an earlier run has recorded of this stage, finished or only begun."""
        for file in (self.folder / STAGE_FILE, self.folder / CHECKPOINTS / BEGUN_FILE):
            if file.is_file():
                return _read(file)
        return None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HfDistillError(
            f"{file} cannot be read ({error}); remove its folder {file.parent} and run again."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("determined_by"), dict):
        raise HfDistillError(f"{file} was not written by this version; remove its folder {file.parent} and run again.")
    return content


def hash_of(determined_by: Mapping[str, Any]) -> str:
    """A hash of values, without those that are switched off."""
    return hashlib.sha256(json.dumps(_set(determined_by), sort_keys=True).encode()).hexdigest()[:16]


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that are switched off: a key that a later version adds makes no other stage of it."""
    nested = {key: _set(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in nested.items() if value is not None and value is not False and value != []}


def planned_stages(recipe: Recipe, data: TaskData, output: Path) -> list[Stage]:
    """Every stage that the recipe asks for or that the output folder holds, in the order in which they run."""
    stages = [Stage(TEACHER, 0, output / TEACHER, _teacher_parts(recipe, data), not recipe.teacher.beside)]
    taught_by: Any = stages[0].fingerprint
    if recipe.teacher.beside:
        taught_by = {key: vars(recipe.teacher)[key] for key in ("ema", "peer", "processor")}
    for seed in [*recipe.seeds, *(seed for seed in _seeds_there(output) if seed not in recipe.seeds)]:
        wanted = seed in recipe.seeds
        parts = _student_parts(recipe, data, seed)
        student = parts | {"objective": asdict(recipe.objective), "teacher": taught_by}
        student |= {f"teacher.{key}": vars(recipe.teacher)[key] for key in forward.DECIDING}
        student["teacher.cache"] = _cache_parts(recipe, data)
        finetuned = {
            "student": Stage(STUDENT, seed, output, student, True).fingerprint,
            "finetune": stage_settings(recipe, FINETUNED, seed).deciding(),
        }
        folder = output / f"seed-{seed}"
        stages += [
            Stage(CONTROL, seed, folder / CONTROL, parts, wanted and recipe.control),
            Stage(STUDENT, seed, folder / STUDENT, student, wanted),
            Stage(FINETUNED, seed, folder / FINETUNED, finetuned, wanted and recipe.student.finetune is not None),
        ]
    return stages


def _seeds_there(output: Path) -> list[int]:
    names = (path.name.removeprefix("seed-") for path in output.glob("seed-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def _teacher_parts(recipe: Recipe, data: TaskData) -> dict[str, Any]:
    section = {key: value for key, value in asdict(recipe.teacher).items() if key not in (*forward.KEYS, "cache")}
    parts: dict[str, Any] = {"teacher": section, "data": data_parts(data)}
    if section.pop("finetune") is not None:
        parts["teacher.finetune"] = stage_settings(recipe, TEACHER, 0).deciding()
    if section["ensemble"] is None:
        # As it was before there were several: a finished stage of a single teacher still counts.
        section = {key: value for key, value in section.items() if key not in ("ensemble", *OPTIONS)}
        parts["teacher"] = section
    made_by = [Path(str(member.model)) / STAGE_FILE for member in recipe.teacher.members if member.model is not None]
    runs = [str(_read(file).get("fingerprint")) for file in made_by if file.is_file()]
    if runs:
        # Models of other runs: trained anew in the same folder they are other teachers.
        parts["teacher.run"] = ", ".join(runs)
    return parts


def _cache_parts(recipe: Recipe, data: TaskData) -> dict[str, Any] | None:
    """What of a cache changes what is learnt: rounding, the most likely classes alone, and views that repeat."""
    settings = cache_settings(recipe.teacher)
    if settings is None:
        return None
    classes = len(data.space.names) or MANY_CLASSES
    if settings.top_k == AUTO and recipe.teacher.finetune is None:
        classes = max(classes, named_config(recipe.teacher).num_labels or 0)
    return settings.deciding(classes >= MANY_CLASSES)


def _student_parts(recipe: Recipe, data: TaskData, seed: int) -> dict[str, Any]:
    section = asdict(recipe.student)
    section.pop("finetune")
    parts = {
        "student": section,
        "data": data_parts(data),
        "training": stage_settings(recipe, CONTROL, seed).deciding(),
    }
    if recipe.student.from_teacher is not None:
        parts["teacher"] = {
            "model": recipe.teacher.model,
            "config": recipe.teacher.config,
            "revision": recipe.teacher.revision,
        }
    return parts


def data_parts(data: TaskData) -> dict[str, Any]:
    """The data section, and what shows that the files behind it are still the same: sizes and labels."""
    digest = hashlib.sha256()
    for split in (data.train, data.validation, data.test):
        digest.update(torch.nan_to_num(split.labels.double(), nan=-1.5).numpy().tobytes())
    sizes = [len(data.train), len(data.validation), len(data.test)]
    return {**asdict(data.section), "classes": list(data.space.names), "rows": sizes, "labels": digest.hexdigest()[:16]}


def check_output(output: Path) -> None:
    """Refuse to write among someone's files. Errors: HfDistillError."""
    if output.exists() and not output.is_dir():
        raise HfDistillError(f"--output: {output} is a file; expected a folder, new or of an earlier run.")
    if output.is_dir() and any(output.iterdir()) and not (output / "recipe.yaml").is_file():
        raise HfDistillError(
            f"--output: {output} holds other files and no run (recipe.yaml is missing); expected a new folder, "
            "an empty one, or that of an earlier run."
        )


def outgrown_stages(stages: Sequence[Stage]) -> list[tuple[Stage, list[str]]]:
    """Stages in the folder that other values made, each with what has changed; a silent reuse would mix two recipes."""
    outgrown = []
    for stage in stages:
        former = stage.former()
        if former is not None and hash_of(former["determined_by"]) != stage.fingerprint:
            outgrown.append((stage, list(_changes(former["determined_by"], stage.determined_by))))
    return outgrown


def outgrown_error(
    output: Path, outgrown: Sequence[tuple[Stage, Sequence[str]]], overwrite: str = "--overwrite"
) -> RecipeError:
    """What has changed since the folder was written, and the ways on."""
    changes = list(dict.fromkeys(change for _, each in outgrown for change in each if " fingerprint " not in change))
    return RecipeError(
        f"{output} holds a run with other values: {'; '.join(changes)}. That concerns "
        f"{', '.join(stage.title for stage, _ in outgrown)}. Give a new folder with --output, or {overwrite} "
        "to do these stages anew."
    )


def remove(stages: Sequence[Stage]) -> None:
    """Delete the folders of some stages."""
    for stage in stages:
        shutil.rmtree(stage.folder)


def _changes(former: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    before, after = dict(_flat(_set(former))), dict(_flat(_set(now)))
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            known = (
                f"{before[key]!r}" if key in before else "not set",
                f"{after[key]!r}" if key in after else "not set",
            )
            yield f"{_readable(key)} was {known[0]} and is {known[1]}"


def _readable(key: str) -> str:
    """Keys whose values are hashes, in words."""
    return {
        "teacher": "the teacher's fingerprint",
        "student": "the student's fingerprint",
        "teacher.run": "the run that made teacher.model",
        "data.labels": "the hash of all labels",
    }.get(key, key)


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
