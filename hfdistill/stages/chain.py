"""A run with assistants: a chain of runs, each of whose students teaches the next."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from hfdistill._atomic import write_text
from hfdistill.recipe import Recipe, TeacherSection
from hfdistill.recipe.forward import forward_keys
from hfdistill.stages.folders import check_output
from hfdistill.stages.models import TEACHER_SEED
from hfdistill.stages.processes import is_main, wait_for_all
from hfdistill.stages.settings import FINETUNED, STUDENT


def assistant_runs(recipe: Recipe, output: Path) -> list[tuple[Recipe, Path]]:
    """The run of each assistant, in order, with its folder; then that of the student."""
    runs = []
    teacher = recipe.teacher
    for place, section in enumerate(recipe.links()):
        folder = output / f"assistant-{place + 1}"
        link = dataclasses.replace(
            recipe, student=section, teacher=teacher, control=False, seeds=[TEACHER_SEED], assistants=[]
        )
        runs.append((link, folder))
        stage = STUDENT if section.finetune is None else FINETUNED
        finished = str(folder / f"seed-{TEACHER_SEED}" / stage)
        teacher = TeacherSection(model=finished, cache=recipe.teacher.cache, **forward_keys(recipe.teacher))
    return [*runs, (dataclasses.replace(recipe, teacher=teacher, assistants=[]), output)]


def claim(recipe: Recipe, output: Path) -> None:
    """Write the whole recipe into the folder of a chain, before its assistants' folders stand in it.

    Errors: HfDistillError for a folder with other files.
    """
    check_output(output)
    wait_for_all()
    if is_main():
        write_text(output / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    wait_for_all()
