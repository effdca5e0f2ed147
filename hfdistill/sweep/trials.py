"""The trials of a sweep, one after the other: what is finished stays, what was begun goes on, the best is kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from hfdistill._atomic import write_json, write_text
from hfdistill.errors import HfDistillError
from hfdistill.recipe import RecipeError
from hfdistill.recipe.cache import cache_settings
from hfdistill.stages import Reporter, cached, run_recipe
from hfdistill.stages.folders import STAGE_FILE, Stage, outgrown_stages, planned_stages, remove
from hfdistill.stages.processes import is_main, wait_for_all
from hfdistill.stages.run import Run
from hfdistill.stages.settings import CONTROL, FINETUNED, STUDENT, TEACHER, stage_settings
from hfdistill.stages.training import faults_explained
from hfdistill.sweep.grid import Grid, Trial
from hfdistill.sweep.results import FINISHED, RUNNING, Result, Results, check_folder, read_stage
from hfdistill.sweep.table import markdown, sentence, table

if TYPE_CHECKING:
    from rich.table import Table

    from hfdistill.report import Report

BEST = "best"
AROUND_THE_TABLE = 9
"""Lines of the terminal that the table leaves to its head, to the bar and to what was said."""


def run_sweep(grid: Grid, output: Path, reporter: Reporter | None = None, *, overwrite: bool = False) -> Results:
    """Train what of a grid is not finished yet in `output`, and write sweep.json, sweep.md and best.yaml.

    Trials whose values have changed are refused, or done anew with `overwrite`. Every process of a launch calls this.
    Errors: HfDistillError for whatever a user can cause; what is finished by then stays.
    """
    sweep = Sweep(grid, output, reporter or Reporter(silent=not is_main()))
    with faults_explained(output):
        sweep.open(overwrite)
        sweep.train()
        sweep.close()
    return sweep.results


def run_best(results: Results, output: Path, reporter: Reporter, *, overwrite: bool = False) -> Report | None:
    """Run the best trial's recipe whole in `output`/best; teacher and students come from the sweep.

    The report comes back in the main process. Errors: HfDistillError for whatever a user can cause.
    """
    best = results.best
    assert best is not None, "run_sweep refuses to end without one"
    trained = trained_stages(output, best.trial)
    return run_recipe(best.trial.recipe, output / BEST, reporter, overwrite=overwrite, trained=trained)


def trained_stages(output: Path, trial: Trial) -> dict[str, Path]:
    """The folders of a trial's stages by fingerprint, the teacher's included where it was trained."""
    files = [output / trial.home / TEACHER / STAGE_FILE, *(output / trial.folder).glob(f"seed-*/*/{STAGE_FILE}")]
    stages = {file.parent: read_stage(file) for file in files if file.is_file()}
    return {stage.fingerprint: folder for folder, stage in stages.items() if stage.steps > 0}


@dataclass(frozen=True)
class Plan:
    """One trial's stages: the teacher's, which other trials may share, and its own, and what comes of them."""

    result: Result
    shared: Sequence[Stage]
    own: Sequence[Stage]

    @property
    def trial(self) -> Trial:
        """What is tried."""
        return self.result.trial

    @property
    def last(self) -> Mapping[int, Stage]:
        """The stage that gives each seed's student as it is judged."""
        return {stage.seed: stage for stage in self.own if stage.wanted}


@dataclass
class Sweep:
    """A sweep in progress. `pending` are the folders of stages to do, and `run` works with the last trial's recipe."""

    grid: Grid
    output: Path
    reporter: Reporter
    plans: list[Plan] = field(default_factory=list)
    pending: set[Path] = field(default_factory=set)
    run: Run | None = None
    results: Results = field(init=False)

    def open(self, overwrite: bool) -> None:
        """Check recipes, data and folder together, and see what is to do."""
        check_folder(self.output, self.grid, overwrite)
        self.plans = [self._plan(trial) for trial in self.grid.trials]
        self._check_plans()
        data = self._run_of(self.grid.trials[0]).data
        self.results = Results(self.grid, data.space.problem_type, [plan.result for plan in self.plans])
        self._say_what_holds(data.notices, data.test is data.validation)
        stages = {stage.folder: stage for plan in self.plans for stage in (*plan.shared, *plan.own)}
        outgrown = outgrown_stages(list(stages.values()))
        if outgrown and not overwrite:
            raise self._outgrown(outgrown)
        wait_for_all()
        if is_main():
            remove([stage for stage, _ in outgrown])
            if overwrite:
                self._remove_others()
        wait_for_all()
        self.pending = {folder for folder, stage in stages.items() if stage.wanted and not stage.finished}
        # No process may finish a stage before every other has seen which ones are to do.
        wait_for_all()
        for plan in self.plans:
            self._record(plan)
        self._say_what_is_to_do()
        if is_main():
            if self.pending:
                # They tell of the trials that were there before.
                for name in ("sweep.md", "best.yaml"):
                    (self.output / name).unlink(missing_ok=True)
            write_json(self.output / "sweep.json", self.results.to_dict())

    def train(self) -> None:
        """Do what is to do, trial by trial."""
        if self.reporter.console.is_terminal:
            self.reporter.above = self._table_that_fits
        try:
            for plan in self.plans:
                if any(stage.folder in self.pending for stage in (*plan.shared, *plan.own)):
                    self._try(plan)
        finally:
            self.reporter.above = None

    def close(self) -> None:
        """Choose, and write what came of it."""
        best = self.results.best
        if best is None:
            raise HfDistillError(
                f"no trial has a finite {self.results.metric.name} on validation data, so there is no best: the "
                "students have diverged. Lower training.learning_rate."
            )
        if is_main():
            recipe = yaml.safe_dump(best.trial.recipe.to_dict(), sort_keys=False)
            heading = f"# {self.grid.recipe} with {best.trial.title}, chosen by `hfdistill sweep` on validation data.\n"
            write_text(self.output / "best.yaml", heading + recipe)
            write_text(self.output / "sweep.md", markdown(self.results, self.output))
            write_json(self.output / "sweep.json", self.results.to_dict())
        wait_for_all()
        self.reporter.say(table(self.results))
        self.reporter.say(sentence(self.results), style="bold")

    # ---- one trial -----------------------------------------------------------------------------------------------

    def _try(self, plan: Plan) -> None:
        trial, total = plan.trial, len(self.plans)
        self.reporter.say(f"Trial {trial.number} of {total}: {trial.title}", style="bold")
        plan.result.state = RUNNING
        started = time.perf_counter()
        self.run = self._run_of(trial)
        try:
            for stage in (*plan.shared, *plan.own):
                if stage.folder in self.pending:
                    self.run.do(stage)
                    self.pending.discard(stage.folder)
                    if stage in plan.shared:
                        started = time.perf_counter()
        except HfDistillError as error:
            kind = RecipeError if isinstance(error, RecipeError) else HfDistillError
            raise kind(
                f"trial {trial.number} of {total} ({trial.title}) failed: {error} Finished trials are kept; run the "
                "same command again to go on."
            ) from error
        plan.result.elapsed = time.perf_counter() - started
        self._record(plan)
        if is_main():
            write_json(self.output / "sweep.json", self.results.to_dict())
        self._say_how_it_went(plan.result)

    def _record(self, plan: Plan) -> None:
        """Read what the trial's finished stages have left."""
        result = plan.result
        done = {stage.folder: stage for stage in plan.own if stage.wanted and stage.folder not in self.pending}
        facts = {folder: read_stage(folder / STAGE_FILE) for folder in done}
        result.seconds = sum(found.seconds for found in facts.values())
        result.by_seed = {
            seed: facts[stage.folder].validation_metrics for seed, stage in plan.last.items() if stage.folder in done
        }
        if len(result.by_seed) == len(plan.last):
            result.state = FINISHED
        teacher = plan.shared[0]
        if plan.trial.home == "." and teacher.wanted and teacher.folder not in self.pending:
            self.results.teacher = read_stage(teacher.folder / STAGE_FILE).validation_metrics

    def _run_of(self, trial: Trial) -> Run:
        """The machinery for a trial, with what is loaded already where it serves this one too."""
        if self.run is None:
            sharing = [each.recipe for each in self.grid.trials]
            self.run = Run(trial.recipe, self.output, self.reporter, tested=False, sharing=sharing)
        self.run = self.run.with_recipe(trial.recipe)
        self.run.output = self.output / trial.home
        return self.run

    # ---- before the first ----------------------------------------------------------------------------------------

    def _plan(self, trial: Trial) -> Plan:
        run = self._run_of(trial)
        for name in (TEACHER, STUDENT, FINETUNED):
            stage_settings(trial.recipe, name, trial.recipe.seeds[0]).config(self.output)
        cached.check(trial.recipe, run.data)
        folder = self.output / trial.folder
        shared = [stage for stage in planned_stages(trial.recipe, run.data, run.output) if stage.name == TEACHER]
        own = [
            stage for stage in planned_stages(trial.recipe, run.data, folder) if stage.name not in (TEACHER, CONTROL)
        ]
        return Plan(Result(trial), shared, own)

    def _check_plans(self) -> None:
        """Refuse values that make no difference."""
        seen: dict[str, Trial] = {}
        for plan in self.plans:
            stage = next(iter(plan.last.values()))
            former = seen.setdefault(stage.fingerprint, plan.trial)
            if former is not plan.trial:
                raise RecipeError(
                    f"{', '.join(self.grid.keys)}: {former.title} and {plan.trial.title} train the very same student; "
                    "expected keys that change what is learnt."
                )
        self._check_caches()

    def _check_caches(self) -> None:
        """Refuse one folder for the targets of several teachers."""
        homes: dict[str, str] = {}
        for plan in self.plans:
            settings, home = cache_settings(plan.trial.recipe.teacher), plan.trial.home
            trained = plan.trial.recipe.teacher.finetune is not None
            own = [key for key in plan.trial.settings if key.startswith("teacher.") or (trained and home != ".")]
            if settings is None or settings.path is None or not own:
                continue
            if homes.setdefault(settings.path, home) != home:
                raise RecipeError(
                    f"{own[0]}: each of its values has a teacher or a cache of its own, and {settings.path} can hold "
                    "one; expected teacher.cache without a path, for a folder beside each teacher."
                )

    def _outgrown(self, outgrown: Sequence[tuple[Stage, Sequence[str]]]) -> RecipeError:
        changes = list(
            dict.fromkeys(change for _, each in outgrown for change in each if " fingerprint " not in change)
        )
        folders = {stage.folder for stage, _ in outgrown}
        trials = sum(any(stage.folder in folders for stage in plan.own) for plan in self.plans)
        teacher = any(stage.name == TEACHER for stage, _ in outgrown)
        return RecipeError(
            f"{self.output} holds a sweep with other values: {'; '.join(changes)}. That concerns "
            f"{'the teacher and ' if teacher else ''}{trials} of {len(self.plans)} trials. Give a new folder with "
            "--output, or --overwrite to do these anew."
        )

    def _remove_others(self) -> None:
        """Delete trials that are none of this sweep."""
        known = {plan.trial.folder for plan in self.plans}
        for folder in (self.output / "trials").glob("*"):
            if f"trials/{folder.name}" not in known:
                shutil.rmtree(folder)

    # ---- what it says --------------------------------------------------------------------------------------------

    def _say_what_holds(self, notices: Sequence[str], tested_on_validation: bool) -> None:
        for notice in notices:
            self.reporter.say(f"Note: {notice}.")
        if tested_on_validation:
            self.reporter.say(
                "Warning: this recipe has no test split, so that the best will be tested on the data that it is chosen "
                "on, and look better than it is. Name data.test_split or data.test_fraction.",
                style="yellow",
            )

    def _say_what_is_to_do(self) -> None:
        trials, seeds = len(self.plans), len(self.grid.seeds)
        students = f", {trials * seeds} students ({seeds} seeds each)" if seeds > 1 else ""
        done = sum(plan.result.state == FINISHED for plan in self.plans)
        left = self.results.seconds_left()
        rest = f"; {done} finished before" if done else ""
        if 0 < done < trials and left is not None:
            rest += f", the others need about {duration(left)}"
        self.reporter.say(f"{trials} trials{students}{rest}.")

    def _say_how_it_went(self, result: Result) -> None:
        metric = self.results.metric
        best = ", the best so far" if result is self.results.best else ""
        number = metric.value(result.mean(metric)) if result.state == FINISHED else "no number"
        self.reporter.say(f"  {metric.name} {number} on validation{best}")
        rest = sum(plan.result.state != FINISHED for plan in self.plans)
        left = self.results.seconds_left()
        if rest and left is not None and sum(plan.result.elapsed > 0 for plan in self.plans) == 1:
            self.reporter.say(f"  {rest} more, about {duration(left)}")

    def _table_that_fits(self) -> Table:
        return table(self.results, max(self.reporter.console.height - AROUND_THE_TABLE, 3))


def duration(seconds: float) -> str:
    """A time in words: 40 s, 5 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
