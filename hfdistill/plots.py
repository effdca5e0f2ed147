"""The three pictures of a report; colours of Okabe and Ito, which colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfdistill._atomic import replacement
from hfdistill.fidelity import Calibration
from hfdistill.main_metric import MainMetric
from hfdistill.metrics import MULTI_LABEL, REGRESSION, labelled_rows
from hfdistill.report_text import ROLE_NAMES
from hfdistill.run_folder import RunFolder, Stage
from hfdistill.score_sheet import LogitSheet, pooled

if TYPE_CHECKING:
    from hfdistill.report import Report

COLOURS = {"teacher": "#555555", "control": "#E69F00", "student": "#0072B2", "finetuned": "#009E73"}
MARKERS = {"teacher": "D", "control": "s", "student": "o", "finetuned": "^"}
DRAWN_BIN = 10
"""A bin with fewer examples is left out of the reliability curve: its share of right answers is mostly chance."""

_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


def draw_accuracy(report: Report, file: Path) -> None:
    """Main metric of each model with its 95 % interval, better to the right; small marks are the single seeds."""
    metric = report.main_metric
    with _figure(file, 7.0, 1.1 + 0.6 * len(report.models)) as figure:
        axes = figure.add_subplot()
        for row, numbers in enumerate(report.models.values()):
            main, colour = numbers.main, COLOURS[numbers.role]
            axes.plot(
                [metric.shown(main.low), metric.shown(main.high)], [row, row], color=colour, linewidth=2.5, alpha=0.6
            )
            seeds = [metric.shown(seed_value) for seed_value in numbers.by_seed.values()]
            if len(seeds) > 1:
                axes.plot(seeds, [row] * len(seeds), "|", color=colour, markersize=12, markeredgewidth=1.2)
            place = metric.shown(main.mean)
            axes.plot(place, row, MARKERS[numbers.role], color=colour, markersize=8)
            label = metric.value(main.mean)
            axes.annotate(label, (place, row), xytext=(0, 9), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(report.models)), [ROLE_NAMES[role] for role in report.models])
        axes.set_ylim(len(report.models) - 0.5, -0.7)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.12)
        if metric.sign < 0:
            axes.invert_xaxis()
        way = "" if metric.sign > 0 else ", lower is better"
        ticks = ", ticks: single seeds" if len(report.seeds) > 1 else ""
        axes.set_xlabel(f"test {metric.name}{metric.axis_unit}{way}; bars: 95 % interval{ticks}")


def draw_calibration(run: RunFolder, file: Path) -> None:
    """Confidence against share of right answers; for a regression, predictions against the mean label.

    Nothing is drawn for tasks whose stages keep no probabilities.
    """
    sheets = _logit_sheets(run)
    if not sheets:
        return
    with _figure(file, 5.0, 5.5) as figure:
        axes = figure.add_subplot()
        ends = [0.0, 1.0]
        if run.problem_type == REGRESSION:
            ends = _draw_regression(sheets, axes)
            axes.set_xlabel("mean prediction of each tenth of the test examples")
            axes.set_ylabel("mean label")
        else:
            _draw_reliability(sheets, axes, run.problem_type)
            kind = "probability of a label" if run.problem_type == MULTI_LABEL else "confidence in the answer"
            axes.set_xlabel(kind)
            axes.set_ylabel("share for which it holds" if run.problem_type == MULTI_LABEL else "share of right answers")
        axes.plot(ends, ends, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_aspect("equal", adjustable="datalim" if run.problem_type == REGRESSION else "box")
        figure.legend(loc="outside upper left")


def draw_training(run: RunFolder, metric: MainMetric, file: Path) -> None:
    """Validation metric and training loss on the labels over the steps, control against student; one line a seed."""
    roles = [role for role in ("control", "student", "finetuned") if run.of(role)]
    stages = {role: list(run.of(role).values()) for role in roles}
    everything = [stage for found in stages.values() for stage in found]
    # Where the main metric is a loss, eval_loss holds the teacher's share too: it is the last resort.
    wanted = () if metric.key == "loss" else (f"eval_{metric.key}",)
    evaluated = _first_logged(everything, (*wanted, "eval_loss/task", "eval_loss"))
    trained = _first_logged(everything, ("loss/task", "loss"))
    names = {
        f"eval_{metric.key}": f"validation {metric.name}",
        "eval_loss/task": "validation loss on the labels",
        "eval_loss": "validation loss",
        "loss/task": "training loss on the labels",
        "loss": "training loss",
    }
    panels = [key for key in (evaluated, trained) if key is not None]
    with _figure(file, 4.6 * max(len(panels), 1), 3.6) as figure:
        if not panels:
            figure.text(0.5, 0.5, "No training log was kept.", ha="center")
        for position, key in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), position + 1)
            for role in roles:
                _draw_curves(axes, stages[role], key, role)
            axes.set_title(names[key])
            axes.set_xlabel("step")
            axes.legend()


@contextmanager
def _figure(file: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written to `file` in one piece; the caller's matplotlib settings stay as they are."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure
        with replacement(file) as temporary, temporary.open("wb") as stream:
            # No software version inside, so that the same numbers give the same bytes.
            figure.savefig(stream, format="png", metadata={"Software": None})


def _draw_reliability(sheets: Mapping[str, Sequence[LogitSheet]], axes: Axes, problem_type: str) -> None:
    for role, found in sheets.items():
        together = pooled(found).calibration()
        errors = [curve.ece for curve in (sheet.calibration() for sheet in found) if curve is not None]
        assert together is not None, "classifiers have probabilities"
        confidence, accuracy = _well_filled(together)
        name = f"{ROLE_NAMES[role]}, ECE {np.mean(errors):.3f}"
        axes.plot(confidence, accuracy, color=COLOURS[role], marker=MARKERS[role], markersize=5, label=name, zorder=2)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    excess = "probability too high" if problem_type == MULTI_LABEL else "too sure"
    axes.text(0.98, 0.04, f"below the dashed line: {excess}", ha="right", color="#666666", fontsize=9)


def _well_filled(curve: Calibration) -> tuple[list[float], list[float]]:
    enough = [position for position, count in enumerate(curve.count) if count >= DRAWN_BIN]
    return [curve.confidence[position] for position in enough], [curve.accuracy[position] for position in enough]


def _draw_regression(sheets: Mapping[str, Sequence[LogitSheet]], axes: Axes) -> list[float]:
    """Draw each model's ten means and return the ends of the diagonal."""
    ends: list[float] = []
    for role, found in sheets.items():
        labels = pooled(found).labels
        logits = pooled(found).logits.reshape(labels.shape)
        known = labelled_rows(labels)
        predicted, truth = logits[known].ravel(), labels[known].ravel()
        tenths = np.array_split(np.argsort(predicted, kind="stable"), min(10, len(predicted)))
        means = [(float(predicted[tenth].mean()), float(truth[tenth].mean())) for tenth in tenths]
        horizontal, vertical = zip(*means, strict=True)
        axes.plot(horizontal, vertical, color=COLOURS[role], marker=MARKERS[role], markersize=5, label=ROLE_NAMES[role])
        ends += [min(horizontal + vertical), max(horizontal + vertical)]
    return [min(ends), max(ends)]


def _logit_sheets(run: RunFolder) -> dict[str, list[LogitSheet]]:
    """The sheets of each role in drawing order; none for a task whose sheets hold sums."""
    roles: dict[str, list[LogitSheet]] = {}
    for stage in run.stages:
        if isinstance(stage.sheet, LogitSheet):
            roles.setdefault(stage.name, []).append(stage.sheet)
    return {role: roles[role] for role in COLOURS if role in roles}


def _draw_curves(axes: Axes, stages: Sequence[Stage], key: str, role: str) -> None:
    """A thin line for each seed, and their mean where all were logged at the same steps."""
    curves = [_curve(stage, key) for stage in stages]
    curves = [curve for curve in curves if curve[0]]
    same = len({tuple(steps) for steps, _ in curves}) == 1 and len(curves) > 1
    for position, (steps, values) in enumerate(curves):
        label = ROLE_NAMES[role] if position == 0 and not same else None
        axes.plot(steps, values, color=COLOURS[role], linewidth=1, alpha=0.35 if same else 0.9, label=label)
    if same:
        mean = np.mean([values for _, values in curves], axis=0)
        axes.plot(curves[0][0], mean, color=COLOURS[role], linewidth=2, label=ROLE_NAMES[role])


def _curve(stage: Stage, key: str) -> tuple[list[float], list[float]]:
    rows = [row for row in stage.facts.get("log_history") or [] if row.get(key) is not None and "step" in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def _first_logged(stages: Sequence[Stage], keys: Sequence[str]) -> str | None:
    """The first key that every stage logged, so that like is compared with like."""
    return next((key for key in keys if stages and all(_curve(stage, key)[0] for stage in stages)), None)
