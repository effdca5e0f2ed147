"""A run: teacher, then for each seed control, student and last fine-tune, then speed and report."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import nn

from hfdistill._atomic import write_json, write_text
from hfdistill.contract import config_class_names
from hfdistill.data import STUDENT as STUDENT_VIEW
from hfdistill.data import TEACHER as TEACHER_VIEW
from hfdistill.data import (
    PreparedData,
    TaskData,
    View,
    prepare,
    read_data,
)
from hfdistill.data.columns import IMAGE
from hfdistill.measure import speeds
from hfdistill.recipe import Recipe, RecipeError
from hfdistill.recipe.forward import forward_arguments
from hfdistill.stages import beside, cached, models
from hfdistill.stages.cached import RunCache
from hfdistill.stages.chain import assistant_runs, claim
from hfdistill.stages.exam import Exam, Outcome
from hfdistill.stages.exams import outcome_of
from hfdistill.stages.folders import Stage, check_output, outgrown_error, outgrown_stages, planned_stages, remove
from hfdistill.stages.outcome import NO_TRAINING, finish, model_copied, training_of
from hfdistill.stages.processes import is_main, process_count, wait_for_all
from hfdistill.stages.progress import Reporter
from hfdistill.stages.settings import CONTROL, FINETUNED, STUDENT, TEACHER, StageSettings, same_budget, stage_settings
from hfdistill.stages.training import Lesson, Trained, faults_explained, final_folder, train
from hfdistill.views import forward_inputs

if TYPE_CHECKING:
    from hfdistill.report import Report


SHOWN = ("rougeLsum", "wer", "exact_match", "f1", "accuracy", "f1_micro", "r2", "mean_iou", "map", "perplexity", "loss")
"""Metrics for the line that tells of a finished stage."""


def run_recipe(
    recipe: Recipe,
    output: Path,
    reporter: Reporter | None = None,
    *,
    overwrite: bool = False,
    trained: Mapping[str, Path] | None = None,
) -> Report | None:
    """Run what of a recipe is not finished yet in `output`, and write the report.

    Stages whose values have changed are refused, or done anew with `overwrite`. `trained` are folders of stages that
    were trained elsewhere, by fingerprint: their models are taken over. Every process of a launch calls this; the
    report comes back in the main one. Errors: HfDistillError for whatever a user can cause.
    """
    reporter = reporter or Reporter(silent=not is_main())
    *assistants, (last, _) = assistant_runs(recipe, output)
    if assistants:
        claim(recipe, output)
    for place, (link, folder) in enumerate(assistants):
        reporter.say(f"Assistant {place + 1} of {len(assistants)} -> {folder}", style="bold")
        run_recipe(link, folder, reporter, overwrite=overwrite, trained=trained)
    run = Run(last, output, reporter, trained=trained or {}, written=recipe)
    with faults_explained(output):
        stages = run.open(overwrite)
        for stage in stages:
            run.do(stage)
        return run.close(changed=bool(stages))


@dataclass
class Run:
    """A run in progress. Models, data and views are made when the first stage needs them.

    With `tested` false its models meet the validation split alone, as long as settings are still being chosen. Where
    the run is the last of a chain, `written` is the recipe of all of it. `sharing` are recipes of other runs that may
    read the same cache.
    """

    recipe: Recipe
    output: Path
    reporter: Reporter
    tested: bool = True
    trained: Mapping[str, Path] = field(default_factory=dict)
    written: Recipe | None = None
    sharing: Sequence[Recipe] = ()
    _teacher: list[models.AnyTeacher] = field(default_factory=list)

    # ---- what the stages work with -------------------------------------------------------------------------------

    @cached_property
    def data(self) -> TaskData:
        """The examples; a teacher that is used as it is names bare numbers."""
        known = None
        teacher = self.recipe.teacher
        if teacher.finetune is None and teacher.zero_shot is None and not teacher.beside:
            known = config_class_names(models.named_config(self.recipe.teacher.members[0]))
        return read_data(self.recipe.data, known)

    @cached_property
    def views(self) -> tuple[View, View]:
        """How student and teacher see an example."""
        if self.recipe.teacher.beside:
            return beside.views(self.recipe, self.data.kind, self.data.train.dataset)
        first, *others = self.recipe.teacher.members
        teacher_config = models.named_config(first)
        own = self.recipe.student.from_teacher is None
        student_config = models.named_config(self.recipe.student) if own else teacher_config
        kind, train = self.data.kind, self.data.train.dataset
        teacher = kind.view(first, teacher_config, train)
        for place, other in enumerate(others):
            differences = teacher.differences(kind.view(other, models.named_config(other), train))
            if differences:
                raise RecipeError(
                    f"teacher.ensemble.{place + 1}: {other.model} reads other inputs than {first.model} "
                    f"({'; '.join(differences)}), and there is one view for all teachers; expected teachers that read "
                    "the same. If they do, name the processor of all in teacher.processor."
                )
        return kind.view(self.recipe.student, student_config, train, teacher), teacher

    @cached_property
    def prepared(self) -> PreparedData:
        """The examples as both models see them."""
        student, teacher = self.views
        differences = student.differences(teacher)
        if differences:
            self.reporter.say(f"  teacher and student each get their own view: {'; '.join(differences)}")
        return prepare(self.data, student, teacher if differences else None, self.reporter.bar)

    def teacher(self) -> models.AnyTeacher:
        """The teacher that is there before the student as it teaches: fine-tuned if the recipe asks for it."""
        if not self._teacher:
            finetuned = self.recipe.teacher.finetune is not None
            folder = self.output / TEACHER
            self._teacher.append(
                models.load_finished(folder, self.data.kind)
                if finetuned
                else models.load_teacher_in_use(self.recipe, self.data.kind)
            )
        return self._teacher[0]

    def teaching(self, seed: int) -> Any:
        """What a trainer is given as its teacher."""
        if self.recipe.teacher.beside:
            return beside.teacher(self.recipe, self.data.kind, seed)
        cache = self.cache
        return models.as_teaching(self.teacher()) if cache is None else cached.teaching(self, cache, seed)

    @property
    def cache(self) -> RunCache | None:
        """Where the teacher's targets are kept, if the recipe says so."""
        return RunCache.of(self.recipe, self.output, self.sharing)

    def forget_teacher(self) -> None:
        """Give the teacher's memory back; it is loaded again when it is next asked for."""
        self._teacher.clear()
        gc.collect()

    def with_recipe(self, recipe: Recipe) -> Run:
        """This run with another recipe; what is made already stays where the sections that it comes from are equal."""
        if (recipe.data, recipe.teacher) != (self.recipe.data, self.recipe.teacher):
            return Run(recipe, self.output, self.reporter, self.tested, self.trained, sharing=self.sharing)
        other = copy.copy(self)
        other.recipe = recipe
        if recipe.student != self.recipe.student:
            for name in ("views", "prepared"):
                vars(other).pop(name, None)
        return other

    # ---- the run -------------------------------------------------------------------------------------------------

    def open(self, overwrite: bool) -> list[Stage]:
        """Check recipe, data and folder together; returns the stages to do."""
        check_output(self.output)
        for stage in (TEACHER, CONTROL, STUDENT, FINETUNED):
            stage_settings(self.recipe, stage, self.recipe.seeds[0]).config(self.output)
        beside.check(self.recipe, self.data.space)
        cached.check(self.recipe, self.data)
        objective = self.recipe.objective
        if (objective.mixup or objective.cutmix) and (self.data.kind.name != IMAGE or not self.data.space.whole):
            raise RecipeError(
                f"objective.mixup, objective.cutmix: they mix whole pictures, and the data are {self.data.kind.name}; "
                "leave them out."
            )
        for notice in self.data.notices:
            self.reporter.say(f"Note: {notice}.")
        stages = planned_stages(self.recipe, self.data, self.output)
        outgrown = outgrown_stages(stages)
        if outgrown and not overwrite:
            raise outgrown_error(self.output, outgrown)
        wait_for_all()
        if is_main():
            remove([stage for stage, _ in outgrown])
            written = self.written or self.recipe
            write_text(self.output / "recipe.yaml", yaml.safe_dump(written.to_dict(), sort_keys=False))
        wait_for_all()
        pending = [stage for stage in stages if stage.wanted and not stage.finished]
        done = [stage.title for stage in stages if stage.wanted and stage.finished]
        if done:
            self.reporter.say(f"Finished before: {', '.join(done)}.")
        # No process may finish a stage before every other has seen which ones are to do.
        wait_for_all()
        return pending

    def do(self, stage: Stage) -> None:
        """Run one stage and put its results in place."""
        self.reporter.say(f"{stage.title[0].upper()}{stage.title[1:]}", style="bold")
        if stage.fingerprint in self.trained:
            self._take_over(stage, self.trained[stage.fingerprint])
            return
        {
            TEACHER: self._do_teacher,
            CONTROL: self._do_control,
            STUDENT: self._do_student,
            FINETUNED: self._do_finetuned,
        }[stage.name](stage)

    def _do_teacher(self, stage: Stage) -> None:
        settings = stage_settings(self.recipe, TEACHER, 0)
        if self.recipe.teacher.finetune is None:
            self._finish(stage, self.teacher(), settings, NO_TRAINING)
            return
        model = models.load_original_teacher(self.recipe, self.data.kind)
        lesson = Lesson(
            model,
            self.prepared.teacher_train(),
            self.prepared.evaluation("validation", TEACHER_VIEW),
            self.views[1].processor,
        )
        self._train_and_finish(stage, lesson, settings)

    def _do_control(self, stage: Stage) -> None:
        lesson = Lesson(
            models.build_student(self.recipe, self.data.kind, stage.seed),
            self.prepared.control_train(),
            self.prepared.evaluation("validation", STUDENT_VIEW),
            self.views[0].processor,
        )
        self._train_and_finish(stage, lesson, stage_settings(self.recipe, CONTROL, stage.seed))

    def _do_student(self, stage: Stage) -> None:
        lesson = self.student_lesson(stage.seed, self.teaching(stage.seed))
        self._train_and_finish(stage, lesson, stage_settings(self.recipe, STUDENT, stage.seed))

    def student_lesson(self, seed: int, taught_by: Any) -> Lesson:
        """What a student learns from such a teacher."""
        student, teacher = self.views
        cache = self.cache
        return Lesson(
            models.build_student(self.recipe, self.data.kind, seed),
            self.prepared.student_train(),
            self.prepared.evaluation("validation", "both"),
            student.processor,
            taught_by,
            (student if self.prepared.shared else teacher).processor,
            self.recipe.objective.build(),
            None if cache is None else cache.settings.views,
        )

    def _do_finetuned(self, stage: Stage) -> None:
        lesson = Lesson(
            models.load_finished_student(stage.folder.with_name(STUDENT), self.recipe, self.data.kind),
            self.prepared.control_train(),
            self.prepared.evaluation("validation", STUDENT_VIEW),
            self.views[0].processor,
        )
        self._train_and_finish(stage, lesson, stage_settings(self.recipe, FINETUNED, stage.seed))

    def _train_and_finish(self, stage: Stage, lesson: Lesson, settings: StageSettings) -> None:
        changes: dict[str, Any] = {}
        rows = len(self.prepared.student_train())
        if stage.name == CONTROL and len(lesson.train) != rows:
            changes = same_budget(rows, settings.config(stage.folder))
        config = settings.config(stage.folder, **changes)
        if is_main():
            stage.begin(process_count())
        wait_for_all()
        trained = train(lesson, config, self.data.space, stage.title, self.reporter)
        self._finish(stage, lesson.model, settings, trained)

    def _take_over(self, stage: Stage, trained: Path) -> None:
        settings = stage_settings(self.recipe, stage.name, stage.seed)
        final = final_folder(settings.config(stage.folder))
        if is_main():
            stage.begin(process_count())
            model_copied(trained, final)
        wait_for_all()
        self.reporter.say(f"  trained before in {trained}")
        kind = self.data.kind
        model = (
            models.load_finished(final, kind)
            if stage.name == TEACHER
            else models.load_finished_student(final, self.recipe, kind)
        )
        self._finish(stage, model, settings, training_of(trained))

    def _finish(self, stage: Stage, model: models.Model, settings: StageSettings, trained: Trained) -> None:
        # The same teacher beside every model, whatever its stage was trained with.
        config = settings.config(stage.folder, **forward_arguments(self.recipe.teacher))
        space = self.data.space

        def outcome(split: str) -> Outcome:
            # One that learns beside the student is not kept, so that there is nothing to compare with.
            teacher = None if stage.name == TEACHER or self.recipe.teacher.beside else self.teacher()
            student_view, teacher_view = self.views
            own = teacher_view if stage.name == TEACHER else student_view
            processors = (own.processor, teacher_view.processor)
            return outcome_of(
                Exam(model, teacher, self.prepared, split, config, self.reporter.bar, processors=processors)
            )

        test = outcome("test") if self.tested else None
        shared = test if self.data.test is self.data.validation else None
        validation = outcome("validation") if shared is None else shared
        metrics = (validation if test is None else test).metrics(space)
        facts = {
            "stage": stage.name,
            "seed": None if stage.name == TEACHER else stage.seed,
            "model": models.summary(self.recipe, TEACHER if stage.name == TEACHER else STUDENT),
            "revision": (self.recipe.teacher if stage.name == TEACHER else self.recipe.student).revision,
            "problem_type": space.problem_type,
            "seconds": trained.seconds,
            "steps": trained.steps,
            "examples_seen": trained.examples_seen,
            "metrics": {} if test is None else metrics,
            "validation_metrics": validation.metrics(space),
            "notices": list(self.data.notices),
            "log_history": trained.log_history,
            "settings": dict(settings.values) if trained.steps else {},
            "processes": process_count(),
            "fingerprint": stage.fingerprint,
            "determined_by": dict(stage.determined_by),
        }
        if is_main():
            finish(stage, model, config if trained.steps else None, test, facts)
        wait_for_all()
        shown = ", ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
        took = f" in {trained.seconds:.0f} s" if trained.steps else ""
        self.reporter.say(f"  {'validation' if test is None else 'test'} {shown}{took}")

    def close(self, *, changed: bool) -> Report | None:
        """Measure speed where a model is new, and write the report."""
        report = None
        if is_main():
            from hfdistill.report import write_report

            if changed or not (self.output / "speed.json").is_file():
                self._measure()
            report = write_report(self.output)
        wait_for_all()
        return report

    def _measure(self) -> None:
        folder = self.output / f"seed-{self.recipe.seeds[0]}" / STUDENT
        student = models.load_finished_student(folder, self.recipe, self.data.kind)
        teacher = None if self.recipe.teacher.beside else self.teacher()
        own = stage_settings(self.recipe, STUDENT, self.recipe.seeds[0]).config(self.output).device
        device: Any = own if teacher is None else teacher.device
        measured: dict[str, nn.Module] = {"student": student.to(device)}
        if teacher is not None:
            measured = {"teacher": teacher, **measured}
        inputs = {}
        for name, model in measured.items():
            view = TEACHER_VIEW if name == "teacher" else STUDENT_VIEW
            examples = self.prepared.evaluation("test", view)
            batch = examples.__getitems__(range(min(32, len(examples))))
            inputs[name] = forward_inputs(model, batch)
        write_json(self.output / "speed.json", speeds(measured, inputs))
