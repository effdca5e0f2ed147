"""Read what `hfdistill run` left in its output folder: recipe, finished stages with their predictions, speed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hfdistill.errors import HfDistillError
from hfdistill.score_sheet import ScoreSheet, sheet_of

TEACHER = "teacher"
SEED_STAGES = ("control", "student", "finetuned")


@dataclass(frozen=True)
class Stage:
    """One finished stage: the facts of its stage.json, and its scores over the test split."""

    name: str
    folder: Path
    facts: Mapping[str, Any]
    sheet: ScoreSheet


@dataclass(frozen=True)
class RunFolder:
    """One run. `seeds` maps a seed to its finished stages by name; `unfinished` names what was begun and not ended."""

    folder: Path
    recipe: Mapping[str, Any]
    teacher: Stage | None
    seeds: Mapping[int, Mapping[str, Stage]]
    unfinished: tuple[str, ...]
    speed: Mapping[str, Any] | None

    @property
    def problem_type(self) -> str:
        """The kind of task, the same for all stages."""
        return str(next(iter(self.stages)).facts["problem_type"])

    @property
    def stages(self) -> list[Stage]:
        """All finished stages, the teacher first."""
        found = [stage for stages in self.seeds.values() for stage in stages.values()]
        return found if self.teacher is None else [self.teacher, *found]

    def of(self, name: str) -> dict[int, Stage]:
        """The stage of that name for each seed that finished it."""
        return {seed: stages[name] for seed, stages in self.seeds.items() if name in stages}


def read_run(folder: Path) -> RunFolder:
    """The run in `folder`; refuses a folder that holds none and names a file that cannot be read."""
    if not (folder / "recipe.yaml").is_file():
        raise HfDistillError(
            f"got {folder}, expected the output folder of a run (it holds recipe.yaml and seed-* folders); "
            "give the folder that `hfdistill run` printed"
        )
    unfinished: list[str] = []
    teacher = _stage_or_none(folder / TEACHER, unfinished)
    seeds: dict[int, dict[str, Stage]] = {}
    for seed_folder in sorted(folder.glob("seed-*"), key=_seed_of):
        found = {name: _stage_or_none(seed_folder / name, unfinished) for name in SEED_STAGES}
        seeds[_seed_of(seed_folder)] = {name: stage for name, stage in found.items() if stage is not None}
    speed = read_json(folder / "speed.json") if (folder / "speed.json").exists() else None
    run = RunFolder(folder, _recipe(folder / "recipe.yaml"), teacher, seeds, tuple(unfinished), speed)
    if not run.stages:
        raise HfDistillError(
            f"got {folder} without a finished stage, expected at least one; "
            f"finish the run with `hfdistill run {folder / 'recipe.yaml'}`"
        )
    _check_same_test_split(run)
    return run


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of the run."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(content, dict):
        raise _unreadable(file, f"it holds a {type(content).__name__}, not an object")
    return content


def _recipe(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(content, dict):
        raise _unreadable(file, "it holds no mapping")
    return content


def _stage_or_none(folder: Path, unfinished: list[str]) -> Stage | None:
    """The stage in `folder` when stage.json says that it finished."""
    if not (folder / "stage.json").exists():
        if folder.is_dir():
            unfinished.append("/".join(folder.parts[-2:]) if folder.name != TEACHER else TEACHER)
        return None
    facts = read_json(folder / "stage.json")
    if "problem_type" not in facts:
        raise _unreadable(folder / "stage.json", "it has no problem_type")
    predictions = folder / "predictions.safetensors"
    try:
        sheet = sheet_of(facts["problem_type"], load_file(predictions))
    except (OSError, SafetensorError, HfDistillError) as error:
        raise _unreadable(predictions, error) from error
    return Stage(folder.name, folder, facts, sheet)


def _seed_of(folder: Path) -> int:
    seed = folder.name.removeprefix("seed-")
    if not seed.isdecimal():
        raise HfDistillError(f"got the folder {folder}, expected seed- and a whole number; rename or remove it")
    return int(seed)


def _check_same_test_split(run: RunFolder) -> None:
    first, *others = run.stages
    for stage in others:
        if not stage.sheet.same_split(first.sheet) or stage.facts["problem_type"] != first.facts["problem_type"]:
            raise HfDistillError(
                f"got predictions in {stage.folder} over other examples or classes than in {first.folder} "
                f"({stage.sheet.shape} against {first.sheet.shape}), expected the same test split for every stage; "
                f"remove {stage.folder} and run the recipe again"
            )
        ours, theirs = stage.sheet.main_metric.name, first.sheet.main_metric.name
        if ours != theirs:
            raise HfDistillError(
                f"got predictions in {stage.folder} that are measured by {ours} and in {first.folder} by {theirs}, "
                f"expected texts written by every model or by none; remove the one that lacks them, or all stages, and "
                "run the recipe again"
            )


def _unreadable(file: Path, reason: object) -> HfDistillError:
    return HfDistillError(
        f"got {file}, which cannot be read ({reason}), expected the file that `hfdistill run` wrote; "
        "remove it and run the recipe again: only what is missing is made anew"
    )
