"""A report in words: the table of the terminal and report.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import yaml

from hfdistill.fidelity import ECE_BINS
from hfdistill.intervals import Estimate
from hfdistill.main_metric import LossMetric, MainMetric
from hfdistill.metrics import LOGIT_TASKS, MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from rich.table import Table

    from hfdistill.report import ModelNumbers, Report

ROLE_NAMES = {
    "teacher": "teacher",
    "control": "control (no teacher)",
    "student": "student (distilled)",
    "finetuned": "student, then fine-tuned",
}
MORE_SEEDS = "More seeds (`--seeds 5`) or more test examples would narrow it."
MISSING = "–"

_COMPARED = {
    MULTI_LABEL: "decisions (example × label)",
    "token_classification": "tokens",
    "question_answering": "starts and ends, one of each in every window over a text",
    "causal_lm": "tokens",
    "masked_lm": "tokens",
    "seq2seq_lm": "tokens",
    "speech_seq2seq": "tokens",
    "semantic_segmentation": "pixels",
    "ctc": "frames",
}


def table(report: Report) -> Table:
    """The comparison for the terminal, with the verdict below it."""
    from rich.table import Table

    drawn = Table(title=f"{report.name}: {_measured(report)}", caption=report.sentence)
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
        f"![{report.main_metric.name} of each model with its interval](accuracy.png)",
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
        f"trained with the same settings but without the teacher. Measured on {_measured(report)}.{_reading(report)}",
        _grid(["", *[heading for heading, _ in _columns(report)]], rows),
        _intervals(report),
        _findings(report),
    ]
    return "\n\n".join(parts)


def _measured(report: Report) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in report.test_counts.items())
    return f"{report.test_examples:,} test examples{f' ({counts})' if counts else ''}"


def _reading(report: Report) -> str:
    """How the main metric is read, where that is not plain."""
    reading = report.main_metric.reading
    return f" {reading}" if reading else ""


def _columns(report: Report) -> list[tuple[str, Callable[[ModelNumbers], str]]]:
    batch = (report.speed or {}).get("batch_size", "?")
    metric = report.main_metric
    columns: list[tuple[str, Callable[[ModelNumbers], str]]] = [
        (metric.name, lambda n: _plus_minus(n.main, metric)),
        ("95 % interval", lambda n: _range(n.main, metric)),
    ]
    if isinstance(metric, LossMetric):
        columns.append(("loss, nats a token", lambda n: _loss(n.main)))
    columns += [
        ("parameters", _parameters),
        ("weights", lambda n: MISSING if n.bytes is None else _bytes(n.bytes)),
    ]
    if report.speed is not None:
        columns += [
            ("latency, batch 1", lambda n: f"{n.latency_ms[0]:.2f} ms" if n.latency_ms else MISSING),
            (f"throughput, batch {batch}", lambda n: MISSING if n.throughput is None else f"{n.throughput:,.0f}/s"),
        ]
    return [*columns, ("training", lambda n: f"{n.seconds:,.0f} s" if n.seconds else MISSING)]


def _parameters(numbers: ModelNumbers) -> str:
    if numbers.parameters is None:
        return MISSING
    adapters = "" if numbers.trained_parameters is None else f", {numbers.trained_parameters:,} of them trained"
    return f"{numbers.parameters:,}{adapters}"


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
        lines.append(f"- Gain of the student over the control: {_estimate(report.gain, report.main_metric)}")
    if report.finetuned_gain is not None:
        lines.append(
            f"- After the last fine-tune, over the control: {_estimate(report.finetuned_gain, report.main_metric)}; "
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
    rows = []
    for key, label, shown in _FIDELITY_ROWS:
        cells = [shown(n.fidelity[key]) for n in followers if n.fidelity is not None and key in n.fidelity]
        if cells:
            rows.append([label, *cells])
    intro = "How closely each model follows the teacher; means over the seeds"
    if report.problem_type != REGRESSION:
        intro += f", counts in {_COMPARED.get(report.problem_type, 'test examples')}. KL is in nats at temperature 1"
    teacher_error = report.models["teacher"].ece
    if teacher_error is not None:
        intro += (
            f". ECE is the expected calibration error over {ECE_BINS} equal-width bins of confidence; the "
            f"teacher's own is {teacher_error:.4f}"
        )
    picture = ["![Calibration](calibration.png)"] if report.problem_type in LOGIT_TASKS else []
    return ["## Fidelity", intro + ".", _grid(["", *[ROLE_NAMES[n.role] for n in followers]], rows), *picture]


def _seeds(report: Report) -> list[str]:
    roles, metric = [n for n in report.models.values() if n.by_seed], report.main_metric
    if not roles:
        return []
    rows = []
    for seed in report.seeds:
        row = [str(seed), *[metric.value(n.by_seed[seed]) if seed in n.by_seed else MISSING for n in roles]]
        by_role = {n.role: n.by_seed for n in roles}
        both = all(seed in by_role.get(role, {}) for role in ("student", "control"))
        gain = metric.gain(by_role["student"][seed], by_role["control"][seed]) if both else None
        rows.append([*row, MISSING if gain is None else metric.difference(gain)])
    heading = ["seed", *[ROLE_NAMES[n.role] for n in roles], "student − control" if metric.sign > 0 else "gain"]
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


def _plus_minus(estimate: Estimate, metric: MainMetric) -> str:
    shown = metric.value(estimate.mean)
    return shown if estimate.sd is None else shown.removesuffix(" %") + metric.spread(estimate.sd)


def _range(estimate: Estimate, metric: MainMetric) -> str:
    return f"{metric.value(estimate.low).removesuffix(' %')} to {metric.value(estimate.high)}"


def _loss(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f}" + ("" if estimate.sd is None else f" ± {estimate.sd:.4f}")


def _estimate(estimate: Estimate, metric: MainMetric) -> str:
    return f"{metric.difference(estimate.mean)} ({metric.span(estimate.low, estimate.high)}, {estimate.basis})"


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
