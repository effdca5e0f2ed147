"""What one distillation step costs: ours, its floor, the Transformers guide's and ModelOpt's, in turns in one process.

    python tests/benchmarks/step.py

prints one table and writes every measurement as JSON. README.md beside it says what the columns are.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported

import torch
from columns import COLUMNS, FLOOR, settings
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from turns import SteppedTraining
from workloads import WORKLOADS, Batch, Workload

from hfdistill.measure import machine, parameter_count

WARM_UP = 2
DISTINCT_BATCHES = 8
HERE = Path(__file__).parent


def only(batches: list[Batch]) -> Batch:
    """Collate one ready batch: itself."""
    return batches[0]


def trainings(workload: Workload, folder: str, steps: int) -> tuple[dict[str, SteppedTraining], dict[str, str]]:
    """Every column ready to step, with its own copies of the same two models; and why others are not there."""
    torch.manual_seed(0)
    student, teacher = workload.student(), workload.teacher()
    batches = workload.batches(DISTINCT_BATCHES)
    dataset = [batches[place % DISTINCT_BATCHES] for place in range(steps)]
    ready, missing = {}, {}
    for name, build in COLUMNS.items():
        try:
            trainer = build(
                copy.deepcopy(student),
                copy.deepcopy(teacher),
                settings(folder, steps),
                train_dataset=dataset,
                data_collator=only,
            )
        except ImportError as error:
            missing[name] = f"{type(error).__name__}: {error}"
            continue
        trainer.remove_callback(PrinterCallback)
        ready[name] = SteppedTraining(trainer)
    return ready, missing


def measured(workload: Workload, folder: str, steps: int, repetitions: int) -> dict[str, Any]:
    """One row: all columns take one step each, in turns, beginning with another one every time."""
    ready, missing = trainings(workload, folder, WARM_UP + steps * repetitions)
    repeated = in_turns(ready, steps, repetitions)
    columns = {name: compared(each, repeated[FLOOR]) for name, each in repeated.items()}
    return {
        "workload": workload.name,
        "student_parameters": parameter_count(workload.student()),
        "teacher_parameters": parameter_count(workload.teacher()),
        "columns": {**columns, **{name: {"not_available": reason} for name, reason in missing.items()}},
    }


def in_turns(ready: dict[str, SteppedTraining], steps: int, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Step all trainings in turns, after a warm-up, and let them end; `medians` of each."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    names = list(ready)
    for turn in range(-WARM_UP, steps * repetitions):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken = ready[name].step()
            if turn >= 0:
                seconds[name].append(taken)
        if turn % steps == 0:
            print(".", end="", file=sys.stderr, flush=True)
    for training in ready.values():
        training.finish()
    return {name: medians(each, steps) for name, each in seconds.items()}


def medians(seconds: list[tuple[float, float]], steps: int) -> dict[str, list[float]]:
    """Wall and processor seconds of a step: for each repetition of `steps` steps their median."""
    repetitions = [seconds[start : start + steps] for start in range(0, len(seconds), steps)]
    return {
        clock: [statistics.median(step[place] for step in repetition) for repetition in repetitions]
        for place, clock in enumerate(("wall", "processor"))
    }


def compared(mine: dict[str, list[float]], floor: dict[str, list[float]]) -> dict[str, Any]:
    """A column's seconds a step, and its ratios to the floor of the same repetition: median, least, most."""
    found: dict[str, Any] = {}
    for clock, seconds in mine.items():
        ratios = [own / least for own, least in zip(seconds, floor[clock], strict=True)]
        found[f"{clock}_seconds"] = [round(each, 6) for each in seconds]
        found[f"{clock}_ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: the floor in milliseconds, then each column's ratio to it."""
    names = [name for name in COLUMNS if name != FLOOR]
    headings = ["student / teacher, parameters", "floor, ms a step", *names]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for row in rows:
        student, teacher = row["student_parameters"] / 1e6, row["teacher_parameters"] / 1e6
        floor = 1000 * statistics.median(row["columns"][FLOOR]["processor_seconds"])
        cells = [cell(row["columns"][name]) for name in names]
        lines.append(f"| {row['workload']} {student:.2f} M / {teacher:.1f} M | {floor:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(column: dict[str, Any]) -> str:
    """The ratio in processor time with its range, and the one in wall time."""
    if "not_available" in column:
        return f"n/a: {column['not_available']}"
    processor, wall = column["processor_ratio"], column["wall_ratio"]
    return f"{processor['median']:.3f} ({processor['min']:.3f}–{processor['max']:.3f}); {wall['median']:.3f}"


def surroundings() -> dict[str, Any]:
    """The machine and the versions."""
    found = machine()
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    found["processor"] = names[0].partition(":")[2].strip() if names else platform.processor()
    try:
        found["versions"]["nvidia-modelopt"] = metadata.version("nvidia-modelopt")
    except metadata.PackageNotFoundError:
        found["versions"]["nvidia-modelopt"] = "not installed"
    return found


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line."""
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=9, help="repetitions of each column (9)")
    parser.add_argument("--steps", type=int, default=6, help=f"steps a repetition, after {WARM_UP} to warm up (6)")
    parser.add_argument("--workloads", nargs="+", choices=names, default=names, help="which rows (all)")
    parser.add_argument("--json", type=Path, default=HERE / "step.json", help="where the measurements go")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Measure, print and write."""
    options = parsed(words)
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    began = time.perf_counter()
    # Standard output is for the table; ModelOpt prints there too.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        chosen = [workload for workload in WORKLOADS if workload.name in options.workloads]
        rows = [measured(workload, folder, options.steps, options.repetitions) for workload in chosen]
    report = {
        "command": shlex.join(["python", "tests/benchmarks/step.py", *words]),
        "seconds": round(time.perf_counter() - began, 1),
        "repetitions": options.repetitions,
        "steps": options.steps,
        "machine": surroundings(),
        "rows": rows,
    }
    write(report, options.json)
    print(f"\n{heading(report)}\n\n{table(rows)}")


def write(report: dict[str, Any], path: Path) -> None:
    """As JSON, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(path)


def heading(report: dict[str, Any]) -> str:
    """What was run where, and how to read a cell."""
    found = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{report['command']}    ({report['seconds']:.0f} s, {report['repetitions']} × {report['steps']} steps)\n"
        f"{found['processor']}, {found['threads']} thread; {versions}\n\n"
        "× floor: processor time, median of the repetitions (least–most); wall time, median"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
