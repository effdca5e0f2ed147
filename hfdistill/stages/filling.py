"""`hfdistill cache`: the targets of a recipe's finished teacher, put on the disk before any student is trained."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hfdistill._atomic import write_text
from hfdistill.cache import CachedTeacher, MissingTargetsError
from hfdistill.cache.shards import Index
from hfdistill.errors import HfDistillError
from hfdistill.filling import readable
from hfdistill.recipe import Recipe, RecipeError
from hfdistill.recipe.cache import PATH, cache_settings
from hfdistill.stages import cached
from hfdistill.stages.cached import Mark, RunCache
from hfdistill.stages.folders import check_output, outgrown_error, outgrown_stages, planned_stages
from hfdistill.stages.processes import is_main, wait_for_all
from hfdistill.stages.progress import Reporter
from hfdistill.stages.run import Run
from hfdistill.stages.training import faults_explained, trainer_of


@dataclass(frozen=True)
class FilledCache:
    """What came of filling: the folder, rows looked at with all their views, those that were new, bytes in all."""

    folder: Path
    rows: int
    new: int
    bytes: int

    def sentence(self) -> str:
        """In words."""
        found = self.rows - self.new
        was = f", {found:,} were there or are the same as another" if found else ""
        return f"Cache: {self.rows:,} examples, {self.new:,} new{was}; {readable(self.bytes)} in {self.folder}"


def cache_of(recipe: Recipe, output: Path) -> Path:
    """The folder that `fill_recipe` fills."""
    settings = cache_settings(recipe.teacher)
    return Path(settings.path) if settings and settings.path else output / cached.FOLDER


def fill_recipe(recipe: Recipe, output: Path, reporter: Reporter | None = None) -> FilledCache:
    """Ask a recipe's finished teacher for its targets of all training and validation examples, for all of its seeds.

    The teacher is that of the run in `output`, trained now if it has to be. What is there already stays, so that an
    interrupted command is run again. Every process of a launch calls this, and fills in its share. A recipe without
    `teacher.cache` gets one in `output`. Errors: HfDistillError for whatever a user can cause.
    """
    reporter = reporter or Reporter(silent=not is_main())
    if recipe.assistants:
        raise RecipeError(
            f"assistants: each of them teaches the next, and is not there before the run; `hfdistill run` with {PATH}: "
            "true fills a cache for each as it goes."
        )
    if cache_settings(recipe.teacher) is None:
        recipe = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, cache=True))
    run = Run(recipe, output, reporter)
    with faults_explained(output):
        cached.check(recipe, run.data)
        _make_teacher(run)
        cache = run.cache
        assert cache is not None, "it was put there above"
        with faults_explained(cache.folder):
            return _filled(run, cache)


def _make_teacher(run: Run) -> None:
    """Train the teacher as a run does, where the recipe asks for it and it is not there."""
    check_output(run.output)
    stage = planned_stages(run.recipe, run.data, run.output)[0]
    outgrown = outgrown_stages([stage])
    if outgrown:
        raise outgrown_error(run.output, outgrown, overwrite="`hfdistill run --overwrite`")
    wait_for_all()
    if is_main() and not (run.output / "recipe.yaml").exists():
        write_text(run.output / "recipe.yaml", yaml.safe_dump(run.recipe.to_dict(), sort_keys=False))
    finished = stage.finished
    wait_for_all()
    if run.recipe.teacher.finetune is not None and not finished:
        run.do(stage)


def _filled(run: Run, cache: RunCache) -> FilledCache:
    teacher = cached.checked_teacher(run, cache)
    changing = cached.changes_by_epoch(run.recipe, run.data)
    seeds = run.recipe.seeds if changing else run.recipe.seeds[:1]
    before = len(Index(cache.folder))
    total = 0
    wait_for_all()
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            config = cached.student_config(run, seed, Path(folder))
            views = cached.views_of(run, config)
            lesson = run.student_lesson(seed, cache.filling(teacher))
            rows = len(lesson.train) * views + len(lesson.validation)
            shown = f" in {views} views of seed {seed}" if changing else ""
            run.reporter.say(
                f"  {len(lesson.train):,} training examples{shown}, {len(lesson.validation):,} for validation"
            )
            trainer_of(lesson, config, run.data.space).fill_cache(
                views, lambda batches, title: _told(run.reporter, batches, title)
            )
            _check_found_again(run, cache, seed, Path(folder))
            wait_for_all()
            if is_main():
                Mark.of(cache, run.recipe, run.data, config).write(views, rows)
            wait_for_all()
            total += rows
    size = sum(path.stat().st_size for path in cache.folder.iterdir() if path.is_file())
    return FilledCache(cache.folder, total, len(Index(cache.folder)) - before, size)


def _told(reporter: Reporter, batches: Any, title: str) -> Iterator[Any]:
    """The batches, with a bar on a terminal and a line at every tenth elsewhere."""
    total = len(batches)
    tenth = max(total // 10, 1)
    for place, batch in enumerate(reporter.bar(batches, title), start=1):
        yield batch
        if not reporter.console.is_terminal and (place % tenth == 0 or place == total):
            reporter.say(f"  {title}: batch {place:,} of {total:,}")


def _check_found_again(run: Run, cache: RunCache, seed: int, folder: Path) -> None:
    """Begin a training as it will be without the teacher, which looks a sample up in other batches.

    Errors: HfDistillError for examples that their batch changes.
    """
    try:
        trainer_of(
            run.student_lesson(seed, CachedTeacher(cache.folder)),
            cached.student_config(run, seed, folder),
            run.data.space,
        )
    except MissingTargetsError as error:
        raise HfDistillError(
            f"{cache.folder} was filled, and examples are not found again in other batches: the teacher reads how far "
            "their batch was padded. No cache can hold such targets; bring all examples to one size or length (one "
            f"image size, data.max_seconds), or set {PATH} to false."
        ) from error
