"""A report in words: the table of the terminal and report.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import yaml

from hfdistill.fidelity import ECE_BINS
from hfdistill.intervals import Estimate
from hfdistill.metrics import MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from rich.table import Table

    from hfdistill.report import ModelNumbers, Report

METRIC_NAMES = {"accuracy": "accuracy", "f1_micro": "micro F1", "r2": "R²"}
ROLE_NAMES = {
    "teacher": "teacher",
    "control": "control (no teacher)",
    "student": "student (distilled)",
    "finetuned": "student, then fine-tuned",
}
MORE_SEEDS = "More seeds (`--seeds 5`) or more test examples would narrow it."
MISSING = "–"

_PERCENT = {"accuracy", "f1_micro"}


def value(number: float, metric: str) -> str:
    """A metric's value: 93.42 % or 0.873."""
    return f"{100 * number:.2f} %" if metric in _PERCENT else f"{number:.4f}"


def difference(number: float, metric: str) -> str:
    """A difference of two values: +0.87 points or +0.012."""
    if metric not in _PERCENT:
        return _signed(number, 4)
    return f"{_signed(100 * number, 2)} points"


def span(estimate: Estimate, metric: str) -> str:
    """The interval of a difference."""
    scale, digits, unit = (100, 2, " points") if metric in _PERCENT else (1, 4, "")
    return f"{_signed(scale * estimate.low, digits)} to {_signed(scale * estimate.high, digits)}{unit}"


def table(report: Report) -> Table:
    """The comparison for the terminal, with the verdict below it."""
    from rich.table import Table

    drawn = Table(title=f"{report.name}: {report.test_examples:,} test examples", caption=report.sentence)
    drawn.add_column("")
    for heading, _ in _columns(report):
        drawn.add_column(heading, justify="right")
    for numbers in report.models.values():
        style = "bold" if numbers.role == "student" else None
        drawn.add_row(ROLE_NAMES[numbers.role], *[cell(numbers) for _, cell in _columns(report)], style=style)
    return drawn


def markdown(report: Report) -> str:
    """report.md: verdict, comparison, fidelity, training, and how to make it again."""
    parts = [
        f"# {report.name}: did distillation help?",
        comparison(report),
        f"![{METRIC_NAMES[report.metric]} of each model with its interval](accuracy.png)",
        *_fidelity(report),
        *_seeds(report),
        *_reproduction(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison(report: Report) -> str:
    """The verdict and the table in Markdown, as report.md and the model card show them."""
    rows = [[ROLE_NAMES[n.role], *[cell(n) for _, cell in _columns(report)]] for n in report.models.values()]
    parts = [
        f"**{report.sentence}**",
        "*Teacher*: the model that is imitated. *Student*: the model that learnt from it. *Control*: the same student, "
        f"trained with the same settings but without the teacher. Measured on {report.test_examples:,} test examples.",
        _grid(["", *[heading for heading, _ in _columns(report)]], rows),
        _intervals(report),
        _findings(report),
    ]
    return "\n\n".join(parts)


def _columns(report: Report) -> list[tuple[str, Callable[[ModelNumbers], str]]]:
    batch = (report.speed or {}).get("batch_size", "?")
    columns: list[tuple[str, Callable[[ModelNumbers], str]]] = [
        (METRIC_NAMES[report.metric], lambda n: _plus_minus(n.main, report.metric)),
        ("95 % interval", lambda n: _range(n.main, report.metric)),
        ("parameters", lambda n: MISSING if n.parameters is None else f"{n.parameters:,}"),
        ("weights", lambda n: MISSING if n.bytes is None else _bytes(n.bytes)),
    ]
    if report.speed is not None:
        columns += [
            ("latency, batch 1", lambda n: f"{n.latency_ms[0]:.2f} ms" if n.latency_ms else MISSING),
            (f"throughput, batch {batch}", lambda n: MISSING if n.throughput is None else f"{n.throughput:,.0f}/s"),
        ]
    return [*columns, ("training", lambda n: f"{n.seconds:,.0f} s" if n.seconds else MISSING)]


def _intervals(report: Report) -> str:
    """What the intervals of the table cover."""
    bases: dict[str, list[str]] = {}
    for numbers in report.models.values():
        bases.setdefault(numbers.main.basis, []).append(numbers.role)
    covered = "; ".join(f"{' and '.join(roles)}: {basis}" for basis, roles in bases.items())
    return f"Intervals: {covered}." + (" ± is the standard deviation over seeds." if len(report.seeds) > 1 else "")


def _findings(report: Report) -> str:
    lines = []
    if report.gain is not None:
        lines.append(f"- Gain of the student over the control: {_estimate(report.gain, report.metric)}")
    if report.finetuned_gain is not None:
        lines.append(
            f"- After the last fine-tune, over the control: {_estimate(report.finetuned_gain, report.metric)}; "
            "the fine-tune is extra training that the control did not have"
        )
    share = report.share_note if report.share_recovered is None else f"{100 * report.share_recovered:.0f} %"
    lines.append(f"- Share of the teacher's lead over the control that the student recovered: {share}")
    teacher, student = report.models.get("teacher"), report.models.get("student")
    if teacher and student:
        lines += _ratios(teacher, student)
    lines += [f"- {note}" for note in report.notes]
    return "\n".join(lines)


def _ratios(teacher: ModelNumbers, student: ModelNumbers) -> list[str]:
    lines = []
    if teacher.parameters and student.parameters:
        lines.append(f"- The student has {_share(student.parameters / teacher.parameters)} of the teacher's parameters")
    if teacher.throughput and student.throughput:
        lines.append(f"- The student's throughput is {student.throughput / teacher.throughput:.1f}× the teacher's")
    return lines


def _fidelity(report: Report) -> list[str]:
    followers = [n for n in report.models.values() if n.fidelity is not None]
    if not followers:
        return []
    compared = "test examples"
    if report.problem_type == MULTI_LABEL:
        compared = "decisions (example × label)"
    rows = []
    for key, label, shown in _FIDELITY_ROWS:
        cells = [shown(n.fidelity[key]) for n in followers if n.fidelity is not None and key in n.fidelity]
        if cells:
            rows.append([label, *cells])
    intro = "How closely each model follows the teacher; means over the seeds"
    if report.problem_type != REGRESSION:
        intro += (
            f", counts in {compared}. KL is in nats at temperature 1. ECE is the expected calibration error over "
            f"{ECE_BINS} equal-width bins of confidence; the teacher's own is {report.models['teacher'].ece:.4f}"
        )
    return [
        "## Fidelity",
        intro + ".",
        _grid(["", *[ROLE_NAMES[n.role] for n in followers]], rows),
        "![Calibration](calibration.png)",
    ]


def _seeds(report: Report) -> list[str]:
    roles = [n for n in report.models.values() if n.by_seed]
    if not roles:
        return []
    rows = []
    for seed in report.seeds:
        row = [str(seed), *[value(n.by_seed[seed], report.metric) if seed in n.by_seed else MISSING for n in roles]]
        by_role = {n.role: n.by_seed for n in roles}
        both = all(seed in by_role.get(role, {}) for role in ("student", "control"))
        gain = by_role["student"][seed] - by_role["control"][seed] if both else None
        rows.append([*row, MISSING if gain is None else difference(gain, report.metric)])
    heading = ["seed", *[ROLE_NAMES[n.role] for n in roles], "student − control"]
    return ["## Training", _grid(heading, rows), "![Training curves](training.png)"]


def _reproduction(report: Report) -> list[str]:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    place = f"{machine['platform']}, {machine['cpu_count']} CPU cores, {machine['threads']} torch threads"
    if machine.get("accelerator"):
        place += f", {machine['accelerator']}"
    models = []
    for role in ("teacher", "student"):
        if role in report.models:
            numbers = report.models[role]
            revision = f" at revision {numbers.revision}" if numbers.revision else ""
            models.append(f"- {role}: `{numbers.model}`{revision}")
    written = yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True).rstrip()
    return [
        "## How to make it again",
        "recipe.yaml beside this file holds every setting:",
        "```\nhfdistill run recipe.yaml\n```",
        "\n".join([*models, f"- machine: {place}", f"- versions: {versions}"]),
        f"<details><summary>recipe.yaml</summary>\n\n```yaml\n{written}\n```\n\n</details>",
    ]


def _plus_minus(estimate: Estimate, metric: str) -> str:
    shown = value(estimate.mean, metric)
    if estimate.sd is None:
        return shown
    return f"{shown.removesuffix(' %')} ± {value(estimate.sd, metric)}"


def _range(estimate: Estimate, metric: str) -> str:
    low, high = value(estimate.low, metric), value(estimate.high, metric)
    return f"{low.removesuffix(' %')} to {high}"


def _estimate(estimate: Estimate, metric: str) -> str:
    return f"{difference(estimate.mean, metric)} ({span(estimate, metric)}, {estimate.basis})"


def _signed(number: float, digits: int) -> str:
    return f"{number:+.{digits}f}".replace("-", "−")


def _share(number: float) -> str:
    return f"{100 * number:.1f} %" if number >= 0.001 else f"{100 * number:.3f} %"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _grid(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, ruler, *rows))


def _as_share(number: float) -> str:
    return f"{100 * number:.2f} %"


def _as_count(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:,.1f}"


def _as_real(number: float) -> str:
    return f"{number:.4f}"


_FIDELITY_ROWS: list[tuple[str, str, Callable[[float], str]]] = [
    ("agreement", "same answer as the teacher", _as_share),
    ("kl", "KL(teacher‖model)", _as_real),
    ("distance", "root mean square distance to the teacher", _as_real),
    ("correlation", "correlation with the teacher", _as_real),
    ("ece_student", "ECE", _as_real),
    ("both_right", "both right", _as_count),
    ("teacher_wrong_student_right", "teacher wrong, model right", _as_count),
    ("teacher_right_student_wrong", "teacher right, model wrong", _as_count),
    ("both_wrong_same", "both wrong, same answer", _as_count),
    ("both_wrong_different", "both wrong, different answers", _as_count),
]
