"""A sweep in words: the table of the terminal and sweep.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hfdistill.sweep.keys import labels_of, text_of
from hfdistill.sweep.results import FINISHED, RUNNING, Result, Results

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "–"


def table(results: Results, most_rows: int | None = None) -> Table:
    """One row a trial, the best marked; of more than `most_rows` those around the one that runs, and the best."""
    from rich.table import Table
    from rich.text import Text

    seeds = len(results.grid.seeds)
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    drawn = Table(title=Text(f"{_name(results)}: {results.metric.name} on validation data{over}"))
    for heading in _headings(results):
        drawn.add_column(heading, justify="left" if heading == "state" else "right")
    for result in _shown(results, most_rows):
        style = "bold" if result is results.best else None
        # As texts: a value in brackets may look like markup.
        drawn.add_row(*map(Text, _cells(results, result)), style=style)
    left_out = len(results.trials) - drawn.row_count
    if left_out:
        drawn.caption = f"{left_out} more row{'' if left_out == 1 else 's'}"
    return drawn


def markdown(results: Results, output: Path) -> str:
    """sweep.md: the best, every trial, and how the best is run with its control and its test."""
    best = results.best
    assert best is not None, "a sweep without numbers has no page"
    seeds = results.grid.seeds
    parts = [
        f"# {_name(results)}: which settings are best?",
        f"**{sentence(results)}**",
        "Students were compared on the validation split alone; none of them has been asked about the test split. The "
        "best of many owes a part of its number to luck, so the test tells what it is worth.",
    ]
    if reading := results.metric.reading:
        parts.append(reading)
    if len(seeds) > 1:
        parts.append(f"Means ± standard deviations over the seeds {', '.join(map(str, seeds))}.")
    rows = [_cells(results, result) for result in results.trials]
    parts += [
        _grid(_headings(results), rows),
        "## The best with its control and its test",
        f"```\n{results.command(best.trial)}\n```",
        f"`hfdistill run {output / 'best.yaml'}` does the same; `hfdistill sweep` with `--run-best` does it at once, "
        "with the models of this sweep.",
    ]
    return "\n\n".join(parts) + "\n"


def sentence(results: Results) -> str:
    """Which trial is best, by how much, and whether the seeds agree."""
    best = results.best
    assert best is not None, "there is a best where a number is finite"
    metric = results.metric
    number = f"{metric.name} {_number(results, best)} on validation data"
    said = f"Best of {len(results.trials)}: {best.trial.title}, with {number}."
    others = [result for result in results.trials if result is not best and math.isfinite(result.mean(metric))]
    if not others:
        return said
    means = {result.trial.title: metric.sign * result.mean(metric) for result in others}
    second = max(means, key=lambda title: means[title])
    lead, spread = metric.sign * best.mean(metric) - means[second], best.spread(metric)
    if lead == 0:
        equals = [title for title, mean in means.items() if mean == means[second]]
        return f"{said} As good: {'; '.join(equals)}. The first was taken."
    if spread is not None and lead < spread:
        return f"{said} The next ({second}) is within the spread of its seeds."
    return said


def _name(results: Results) -> str:
    return Path(results.grid.recipe).stem


def _shown(results: Results, most: int | None) -> Sequence[Result]:
    trials = results.trials
    if most is None or len(trials) <= most:
        return trials
    running = next((place for place, result in enumerate(trials) if result.state == RUNNING), 0)
    first = max(min(running - most // 2, len(trials) - most), 0)
    window = trials[first : first + most]
    best = results.best
    if best is not None and best not in window:
        window = [best, *window[1:]] if trials.index(best) < first else [*window[:-1], best]
    return window


def _headings(results: Results) -> list[str]:
    return ["trial", *labels_of(results.grid.keys).values(), results.metric.name, "training", "state"]


def _cells(results: Results, result: Result) -> list[str]:
    state = f"{result.state}, best" if result is results.best else result.state
    return [
        str(result.trial.number),
        *(text_of(result.trial.settings[key]) for key in results.grid.keys),
        _number(results, result),
        f"{result.seconds:,.{1 if result.seconds < 10 else 0}f} s" if result.seconds else MISSING,
        state,
    ]


def _number(results: Results, result: Result) -> str:
    mean = result.mean(results.metric)
    if not math.isfinite(mean):
        return "no number" if result.state == FINISHED else MISSING
    spread = result.spread(results.metric)
    return results.metric.value(mean) + ("" if spread is None else results.metric.spread(spread))


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
