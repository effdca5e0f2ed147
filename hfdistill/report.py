"""The comparison at the end of a run: did distillation help, by how much, how sure is that, and what does it cost.

`write_report` reads the run folder alone, so a report can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfdistill import plots, report_text
from hfdistill._atomic import write_json, write_text
from hfdistill.fidelity import Fidelity, share_recovered
from hfdistill.intervals import Estimate, over_seeds
from hfdistill.main_metric import MainMetric, main_metric
from hfdistill.measure import machine
from hfdistill.run_folder import SEED_STAGES, TEACHER, RunFolder, Stage, read_run

if TYPE_CHECKING:
    from rich.table import Table

FEW_EXAMPLES = 10
"""The bootstrap over fewer examples gives intervals that are too narrow."""

HELPED, DID_NOT_HELP, CANNOT_TELL, UNKNOWN = "helped", "did not help", "cannot tell", "unknown"


@dataclass(frozen=True)
class ModelNumbers:
    """One row of the table: teacher, control, student, or the student after its fine-tune."""

    role: str
    model: str
    revision: str | None
    main: Estimate
    by_seed: dict[int, float]
    metrics: dict[str, float]
    ece: float | None
    fidelity: dict[str, float] | None
    parameters: int | None
    trained_parameters: int | None
    bytes: int | None
    seconds: float | None
    steps: int | None
    examples_seen: int | None
    latency_ms: list[float] | None
    throughput: float | None


@dataclass(frozen=True)
class Report:
    """All numbers of a run; report.json holds the same fields.

    `models` have the main metric as it is (a loss in nats a token, an error rate); gains and the teacher's lead are
    above zero where the first of the two models is better, whichever way the metric goes. `test_counts` says how many
    tokens, words, pixels or objects the test examples hold, where it is these that are measured.
    """

    name: str
    problem_type: str
    metric: str
    test_examples: int
    test_counts: dict[str, int]
    seeds: list[int]
    verdict: str
    sentence: str
    models: dict[str, ModelNumbers]
    gain: Estimate | None
    finetuned_gain: Estimate | None
    teacher_lead: Estimate | None
    share_recovered: float | None
    share_note: str
    notes: list[str]
    speed: dict[str, Any] | None
    machine: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def main_metric(self) -> MainMetric:
        """What the run is judged by."""
        return main_metric(self.problem_type, (self.metric,))

    def table(self) -> Table:
        """The comparison for the terminal."""
        return report_text.table(self)

    def markdown(self) -> str:
        """The report for a stranger to read."""
        return report_text.markdown(self)


def write_report(run_folder: Path) -> Report:
    """Write report.json, report.md, accuracy.png, training.png and, for classifiers and regressions, calibration.png.

    Errors: HfDistillError when the folder holds no run, no finished stage, or a file that cannot be read or written.
    """
    run = read_run(run_folder)
    report = report_of(run)
    plots.draw_accuracy(report, run_folder / "accuracy.png")
    plots.draw_calibration(run, run_folder / "calibration.png")
    plots.draw_training(run, report.main_metric, run_folder / "training.png")
    write_text(run_folder / "report.md", report.markdown())
    write_json(run_folder / "report.json", asdict(report))
    return report


def report_of(run: RunFolder) -> Report:
    """The numbers of a run, from its predictions, stage facts and speed."""
    metric = run.stages[0].sheet.main_metric
    models = {role: _numbers(run, role, metric) for role in (TEACHER, *SEED_STAGES) if _stages(run, role)}
    gain, finetuned_gain = _gain(run, "student"), _gain(run, "finetuned")
    lead = _teacher_lead(run)
    share = None if lead is None or gain is None else share_recovered(lead, gain)
    notes = _notes(run, models)
    verdict, sentence = _verdict(run, models, gain, metric)
    return Report(
        name=run.folder.resolve().name,
        problem_type=run.problem_type,
        metric=metric.key,
        test_examples=run.stages[0].sheet.shape[0],
        test_counts=run.stages[0].sheet.counts,
        seeds=sorted(run.seeds),
        verdict=verdict,
        sentence=sentence,
        models=models,
        gain=gain,
        finetuned_gain=finetuned_gain,
        teacher_lead=lead,
        share_recovered=share,
        share_note=_share_note(lead, gain, metric),
        notes=notes,
        speed=None if run.speed is None else dict(run.speed),
        machine=(run.speed or {}).get("machine") or machine(),
        recipe=dict(run.recipe),
    )


def _stages(run: RunFolder, role: str) -> dict[int, Stage]:
    """The finished stages of a role by seed; the one teacher stands under -1."""
    if role != TEACHER:
        return run.of(role)
    return {} if run.teacher is None else {-1: run.teacher}


def _numbers(run: RunFolder, role: str, metric: MainMetric) -> ModelNumbers:
    stages = _stages(run, role)
    values = {seed: stage.sheet.metrics() for seed, stage in stages.items()}
    mains = [value[metric.key] for value in values.values()]
    first = next(iter(stages.values()))
    main = over_seeds(mains) if len(mains) > 1 else first.sheet.main()
    # A t interval does not know that no share is below 0 or above 1.
    main = replace(main, low=max(main.low, metric.lowest), high=min(main.high, metric.highest))
    speed = ((run.speed or {}).get("models") or {}).get(TEACHER if role == TEACHER else "student") or {}
    curves = [stage.sheet.calibration() for stage in stages.values()]
    followed = None
    if role != TEACHER and run.teacher is not None:
        followed = _mean_fidelity([stage.sheet.fidelity_to(run.teacher.sheet) for stage in stages.values()])
    return ModelNumbers(
        role=role,
        model=str(first.facts.get("model", "unknown")),
        revision=first.facts.get("revision"),
        main=main,
        by_seed={} if role == TEACHER else {seed: value[metric.key] for seed, value in values.items()},
        metrics={
            name: float(np.mean([value[name] for value in values.values()])) for name in next(iter(values.values()))
        },
        ece=_mean([None if curve is None else curve.ece for curve in curves]),
        fidelity=followed,
        parameters=first.facts.get("parameters"),
        trained_parameters=first.facts.get("trained_parameters"),
        bytes=first.facts.get("bytes"),
        seconds=_mean([stage.facts.get("seconds") for stage in stages.values()]),
        steps=first.facts.get("steps"),
        examples_seen=first.facts.get("examples_seen"),
        latency_ms=speed.get("latency_ms"),
        throughput=speed.get("throughput"),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_fidelity(found: Sequence[Fidelity | None]) -> dict[str, float] | None:
    """Each field's mean over the seeds, without those that the task has not."""
    rows = [asdict(entry) for entry in found if entry is not None]
    if not rows:
        return None
    return {key: float(np.mean([row[key] for row in rows])) for key, value in rows[0].items() if value is not None}


def _gain(run: RunFolder, role: str) -> Estimate | None:
    """How much better the role is than the control: paired by seed, or by test example when there is one seed."""
    return _difference(
        run, [(stages[role], stages["control"]) for stages in run.seeds.values() if {role, "control"} <= stages.keys()]
    )


def _teacher_lead(run: RunFolder) -> Estimate | None:
    teacher = run.teacher
    if teacher is None:
        return None
    return _difference(run, [(teacher, stages["control"]) for stages in run.seeds.values() if "control" in stages])


def _difference(run: RunFolder, pairs: Sequence[tuple[Stage, Stage]]) -> Estimate | None:
    if not pairs:
        return None
    if len(pairs) == 1:
        first, second = pairs[0]
        return first.sheet.gain_over(second.sheet)
    metric = pairs[0][0].sheet.main_metric
    values = [(first.sheet.metrics()[metric.key], second.sheet.metrics()[metric.key]) for first, second in pairs]
    return over_seeds([metric.gain(*pair) for pair in values])


def _verdict(
    run: RunFolder, models: Mapping[str, ModelNumbers], gain: Estimate | None, metric: MainMetric
) -> tuple[str, str]:
    """One of four words and a sentence that a stranger understands."""
    name = metric.name
    if "student" not in models:
        return UNKNOWN, "Whether distillation helps is unknown: no student is finished."
    student = metric.value(models["student"].main.mean)
    if gain is None:
        reason = "the control was switched off" if control_switched_off(run) else "no control is finished"
        return UNKNOWN, f"The student's {name} is {student}. The gain is unknown ({reason})."
    control = metric.value(models["control"].main.mean)
    size = metric.difference(abs(gain.mean)).removeprefix("+")
    span = f"{'' if metric.sign > 0 else 'gain '}{metric.span(gain.low, gain.high)}, {gain.basis}"
    if gain.above_zero:
        return HELPED, (
            f"Distillation helped: the student's {name} is {student}, {size} {metric.better} the control's "
            f"{control} ({span})."
        )
    if gain.below_zero:
        return DID_NOT_HELP, (
            f"Distillation did not help, it hurt: the student's {name} is {student}, {size} {metric.worse} the "
            f"control's {control} ({span})."
        )
    return CANNOT_TELL, (
        f"Cannot tell whether distillation helped: the student's {name} is {student} and the control's {control}, "
        f"but the interval of their difference includes 0 ({span}). {report_text.MORE_SEEDS}"
    )


def control_switched_off(run: RunFolder) -> bool:
    """Whether the recipe asked for no control."""
    return run.recipe.get("control") is False


def _share_note(lead: Estimate | None, gain: Estimate | None, metric: MainMetric) -> str:
    if lead is None or gain is None:
        return "unknown: it takes a teacher, a control and a student"
    if not lead.above_zero:
        return (
            "undefined: the teacher does not lead the control by more than the noise "
            f"({metric.difference(lead.mean)}, {metric.span(lead.low, lead.high)})"
        )
    return "(student - control) / (teacher - control)"


def _notes(run: RunFolder, models: Mapping[str, ModelNumbers]) -> list[str]:
    """What a reader has to know before he trusts the numbers."""
    notes = [f"Unfinished and left out: {name}." for name in run.unfinished]
    unlisted = sorted(set(run.seeds) - set(run.recipe.get("seeds") or run.seeds))
    if unlisted:
        notes.append(f"Seeds that recipe.yaml no longer lists count as well: {', '.join(map(str, unlisted))}.")
    if run.teacher is None:
        notes.append("The teacher's predictions are missing, so there is no fidelity and no share of its lead.")
    if run.speed is None:
        notes.append("Speed was not measured (speed.json is missing).")
    paired = sum({"control", "student"} <= stages.keys() for stages in run.seeds.values())
    if "control" in models and "student" in models and paired < len(run.seeds):
        notes.append(f"The gain is over the {paired} of {len(run.seeds)} seeds that have both control and student.")
    student, control = models.get("student"), models.get("control")
    if student and control and (student.steps, student.examples_seen) != (control.steps, control.examples_seen):
        notes.append(
            f"Student and control had different budgets: {student.steps} steps and {student.examples_seen} examples "
            f"against {control.steps} and {control.examples_seen}."
        )
    notes += [f"{notice[0].upper()}{notice[1:]}." for notice in run.stages[0].facts.get("notices") or []]
    if student and len(run.of("student")) > 1:
        notes.append(
            "Intervals over seeds tell how much training varies; all seeds are measured on the same "
            f"{run.stages[0].sheet.shape[0]:,} test examples."
        )
    if run.stages[0].sheet.shape[0] < FEW_EXAMPLES:
        notes.append(
            f"Fewer than {FEW_EXAMPLES} test examples: intervals over them are too narrow to be trusted. Use more, "
            "shorter ones or several seeds."
        )
    return notes
