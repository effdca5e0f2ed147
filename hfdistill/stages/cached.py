"""A run's teacher on the disk: where its targets are, in what form, and whether all of them are there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from hfdistill._atomic import write_json
from hfdistill.cache import CachedTeacher, Manifest, MissingTargetsError
from hfdistill.cache.contents import LOGITS, Contents
from hfdistill.cache.manifest import weight_hash
from hfdistill.cache.shards import Index
from hfdistill.cache.teacher import MANY_CLASSES, K
from hfdistill.config import DistillationConfig
from hfdistill.data import TaskData
from hfdistill.errors import HfDistillError
from hfdistill.recipe import Recipe, RecipeError
from hfdistill.recipe.cache import AUTO, PATH, CacheSettings, asked_temperatures, cache_settings
from hfdistill.stages.folders import data_parts, hash_of
from hfdistill.stages.settings import STUDENT, optimizer_steps, stage_settings, steps_per_epoch
from hfdistill.tasks import TASKS, Tokens
from hfdistill.tasks.layouts import Examples

if TYPE_CHECKING:
    from hfdistill.stages.run import Run

FOLDER = "cache"
"""Where the cache of a run lies that names no folder."""
AGAIN = "run `hfdistill cache` again with the same recipe"


def check(recipe: Recipe, data: TaskData) -> None:
    """Refuse a cache of data that it cannot hold. Errors: RecipeError naming the key."""
    settings = cache_settings(recipe.teacher)
    if settings is None:
        return
    if data.space.problem_type == "ctc":
        raise RecipeError(
            f"{PATH}: what a teacher says of a recording's frames changes with the batch that it is padded in, so that "
            "no cache can hold it; set it to false."
        )
    if settings.views is not None and not changes_by_epoch(recipe, data):
        raise RecipeError(
            f"{PATH}.views: the teacher sees each example in the same way in every epoch; leave it out, or add "
            "data.augment."
        )


def changes_by_epoch(recipe: Recipe, data: TaskData) -> bool:
    """Whether the teacher sees an example otherwise in each epoch."""
    return bool(recipe.data.augment or data.kind.drawn) and recipe.data.teacher_sees == "same"


@dataclass(frozen=True)
class RunCache:
    """The cache of a run: its folder, its settings, and the temperatures that all who share it ask for."""

    folder: Path
    settings: CacheSettings
    asked: tuple[float, ...]
    shared: tuple[float, ...]

    @classmethod
    def of(cls, recipe: Recipe, output: Path, sharing: Sequence[Recipe]) -> RunCache | None:
        """That of a recipe, where it has one; `sharing` are recipes that may read the same."""
        settings = cache_settings(recipe.teacher)
        if settings is None:
            return None
        asked = asked_temperatures(recipe.objective)
        every = {*asked, *(settings.temperatures or ())}
        every.update(*(asked_temperatures(other.objective) for other in sharing))
        return cls(Path(settings.path or output / FOLDER), settings, asked, tuple(sorted(every)))

    def filling(self, teacher: PreTrainedModel) -> CachedTeacher:
        """The teacher with its model, which fills in what is missing."""
        options = {name: vars(self.settings)[name] for name in ("top_k", "dtype", "probabilities")}
        return CachedTeacher(self.folder, teacher, temperatures=self.shared, **options)

    def check(self, teacher: PreTrainedModel, whose: str) -> None:
        """Refuse what is in the folder where it is of another teacher or in another form than the recipe says.

        Errors: HfDistillError with the ways on.
        """
        manifest = Manifest.read(self.folder)
        if manifest is None:
            return
        ways = f"Delete {self.folder}, or name another folder in {PATH}.path"
        own = weight_hash(teacher)
        if manifest.teacher.weights != own:
            raise HfDistillError(
                f"{self.folder} holds targets of another teacher ({manifest.teacher.class_name} with weights "
                f"{manifest.teacher.weights[:12]}); {whose} has weights {own[:12]}. Was it trained anew since? {ways}."
            )
        found, wanted = _form(manifest.contents), self._wanted(manifest)
        for key, value in wanted.items():
            if found[key] != value:
                raise HfDistillError(
                    f"{self.folder} was filled with {key} {_said(found[key])}, and the recipe says {_said(value)}. "
                    f"{ways}, or write {PATH}.{key}: {_said(found[key])}."
                )
        kept = manifest.contents.top_k
        missing = [] if kept is None else sorted(set(self.asked) - set(kept.temperatures))
        if kept is not None and missing:
            known = ", ".join(f"{each:g}" for each in kept.temperatures)
            raise HfDistillError(
                f"{self.folder} keeps what the less likely classes weigh at temperature {known}, and the objective "
                f"asks for {missing[0]:g}. {ways}, with {PATH}.temperatures: "
                f"[{', '.join(f'{each:g}' for each in sorted({*kept.temperatures, *self.asked}))}]."
            )

    def _wanted(self, manifest: Manifest) -> dict[str, Any]:
        """What the recipe says of the form in the folder."""
        top_k = self.settings.top_k
        if top_k == AUTO:
            logits = manifest.contents.entries.get(LOGITS)
            classes = logits.shape[-1] if logits is not None and logits.shape else 0
            task = TASKS.get(manifest.task)
            fits = task is not None and isinstance(task.layout, Examples | Tokens)
            top_k = K if fits and classes >= MANY_CLASSES else None
        wanted = {"dtype": self.settings.dtype, "top_k": top_k}
        return wanted if top_k is None else wanted | {"probabilities": self.settings.probabilities}


def _form(contents: Contents) -> dict[str, Any]:
    kept = contents.top_k
    return {
        "dtype": contents.dtype,
        "top_k": None if kept is None else kept.k,
        "probabilities": None if kept is None else kept.store,
    }


def _said(value: Any) -> str:
    return "null" if value is None else str(value)


@dataclass(frozen=True)
class Mark:
    """The word that a folder holds all targets for some data and seed: how many epochs' views, and how many rows."""

    path: Path
    parts: Mapping[str, Any]

    @classmethod
    def of(cls, cache: RunCache, recipe: Recipe, data: TaskData, config: DistillationConfig) -> Mark:
        """That of a recipe's data as its teacher sees them, in one precision, with the changes of the config's seed."""
        section = recipe.teacher
        parts = {
            "data": data_parts(data),
            "teacher": {key: vars(section)[key] for key in ("model", "config", "revision", "processor")},
            "precision": [config.teacher_dtype, config.mixed_precision],
            "seed": int(config.seed) if changes_by_epoch(recipe, data) else None,
        }
        return cls(cache.folder / f"whole-{hash_of(parts)}.json", parts)

    def write(self, views: int, rows: int) -> None:
        """Put it in place, when everything is there."""
        content = {"views": views, "rows": rows, "examples": len(Index(self.path.parent)), "of": dict(self.parts)}
        write_json(self.path, content)

    def views(self) -> int:
        """How many epochs' views are there, 0 without the mark.

        Errors: HfDistillError where shards are gone since, and for a file that cannot be read.
        """
        if not self.path.is_file():
            return 0
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            views, examples = int(content["views"]), int(content["examples"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HfDistillError(f"{self.path} cannot be read ({error}); delete it and {AGAIN}.") from error
        found = len(Index(self.path.parent))
        if found < examples:
            raise HfDistillError(
                f"{self.path} says that {examples:,} examples are there, and {found:,} are: shards have been removed. "
                f"To fill in what is missing, {AGAIN}; or delete the mark, and the training does so itself."
            )
        return views


def epochs_of(rows: int, config: DistillationConfig) -> int:
    """How many epochs a training begins."""
    return -(-optimizer_steps(rows, config) // steps_per_epoch(rows, config))


def views_of(run: Run, config: DistillationConfig) -> int:
    """How many views of each example a student's training shows its teacher."""
    settings = cache_settings(run.recipe.teacher)
    if settings is None or not changes_by_epoch(run.recipe, run.data):
        return 1
    epochs = max(epochs_of(len(run.prepared.student_train()), config), 1)
    return min(settings.views or epochs, epochs)


def student_config(run: Run, seed: int, folder: Path) -> DistillationConfig:
    """The arguments of a student's training."""
    return stage_settings(run.recipe, STUDENT, seed).config(folder)


def checked_teacher(run: Run, cache: RunCache) -> PreTrainedModel:
    """The finished teacher, whose targets these may be."""
    check(run.recipe, run.data)
    teacher = run.teacher()
    assert isinstance(teacher, PreTrainedModel), "recipes refuse the others"
    finetuned = run.recipe.teacher.finetune is not None
    cache.check(teacher, f"the teacher in {run.output / 'teacher'}" if finetuned else str(run.recipe.teacher.model))
    return teacher


def teaching(run: Run, cache: RunCache, seed: int) -> CachedTeacher:
    """What a student's trainer is given as its teacher: without the model where all targets are there.

    Errors: HfDistillError for a folder of another teacher or form.
    """
    teacher = checked_teacher(run, cache)
    config = student_config(run, seed, run.output)
    needed = views_of(run, config)
    epochs = epochs_of(len(run.prepared.student_train()), config)
    if needed > 1 or cache.settings.views:
        again = "" if needed >= epochs else f"; from epoch {needed + 1} of {epochs} on they come again"
        run.reporter.say(f"  random changes of {needed} epochs are kept{again}")
    if Mark.of(cache, run.recipe, run.data, config).views() < needed:
        run.reporter.say(f"  the teacher's targets are kept in {cache.folder}")
        return cache.filling(teacher)
    run.forget_teacher()
    run.reporter.say(f"  without the teacher in memory: all its targets are in {cache.folder}")
    return CachedTeacher(cache.folder)


@contextmanager
def missing_explained(teacher: Any) -> Iterator[None]:
    """Say what to do where a folder lacks what its mark says is there."""
    try:
        yield
    except MissingTargetsError as error:
        if not isinstance(teacher, CachedTeacher):
            raise
        raise HfDistillError(
            f"{str(error).partition('Fill the cache with')[0].strip()} A mark (whole-*.json) in {teacher.folder} says "
            f"that all of these data are there. To fill in what is missing, {AGAIN}; or delete the mark, and the "
            "training does so itself."
        ) from error
