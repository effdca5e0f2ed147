"""What the fused head costs: time and memory beside four bare products, plain PyTorch, TRL and Liger.

    python tests/benchmarks/head.py --quick

prints one table and writes every measurement as JSON, row by row; the same command goes on where it was interrupted
(`--json NEW_FILE` begins anew). README.md beside it says what the columns are.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported; --threads sets another number later

import torch
from head_columns import BETAS, COLUMNS, FLOOR, Inputs, Run, Workload, available, missing

from hfdistill._atomic import write_json
from hfdistill.measure import machine

HERE = Path(__file__).parent
MIB = 2**20
PEERS = ("trl", "liger-kernel", "triton")
QUICK = {"classes": [8000], "widths": [256], "rows": 512, "divergences": ["forward_kl"]}


def seconds(run: Run, inputs: Inputs) -> tuple[float, float, float]:
    """Processor and wall seconds of one forward and backward, and its loss."""
    inputs.forget()
    synchronise(inputs.workload.device)
    wall, processor = time.perf_counter(), time.process_time()
    value = run()
    synchronise(inputs.workload.device)
    taken = time.process_time() - processor, time.perf_counter() - wall
    return (*taken, float("nan") if value is None else float(value.detach()))


def synchronise(device: str) -> None:
    """Wait for a device to have done what it was asked."""
    if device != "cpu":
        torch.accelerator.synchronize()


def timed(workload: Workload, names: list[str], repetitions: int, patience: float) -> dict[str, Any]:
    """All columns in turns, a different one first every time; one that outlasts `patience` runs once."""
    inputs = Inputs(workload)
    runs = {name: COLUMNS[name](inputs) for name in available(names)}
    first = {name: seconds(run, inputs) for name, run in runs.items()}
    print(".", end="", file=sys.stderr, flush=True)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    quick = [name for name in runs if first[name][1] <= patience]
    for turn in range(repetitions):
        start = turn % len(quick)
        for name in quick[start:] + quick[:start]:
            taken[name].append(seconds(runs[name], inputs)[:2])
        print(".", end="", file=sys.stderr, flush=True)
    inputs.forget()
    for name in runs.keys() - set(quick):
        taken[name] = [first[name][:2]] * repetitions
    found = {name: compared(each, taken[FLOOR]) for name, each in taken.items()}
    for name, column in found.items():
        column |= {"value": first[name][2], "runs": repetitions if name in quick else 1}
    return found


def compared(mine: list[tuple[float, float]], floor: list[tuple[float, float]]) -> dict[str, Any]:
    """Seconds, and ratios to the floor of the same repetition: median, least, most."""
    found: dict[str, Any] = {}
    for place, clock in enumerate(("processor", "wall")):
        own, least = [each[place] for each in mine], [each[place] for each in floor]
        ratios = [a / b for a, b in zip(own, least, strict=True)]
        found[f"{clock}_seconds"] = [round(each, 6) for each in own]
        found[f"{clock}_ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return found


def excess(workload: Workload, name: str) -> int:
    """Bytes at the peak of one forward and backward, beyond inputs and gradients; for a process of its own."""
    inputs = Inputs(workload)
    run = COLUMNS[name](inputs)
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in inputs.leaves)
    if workload.device != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        run()
        return int(torch.accelerator.max_memory_allocated() - before - gradients)
    warm = Inputs(Workload(64, 8, workload.dtype, workload.divergence, 0.0, 4))
    COLUMNS[name](warm)()  # libraries take their memory at the first product
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    run()
    return status("VmHWM") - before - gradients


def status(key: str) -> int:
    """Bytes that the kernel has in /proc for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def excess_elsewhere(workload: Workload, name: str, threads: int) -> dict[str, Any]:
    """The same, asked of a fresh process."""
    command = [sys.executable, str(Path(__file__)), "--threads", str(threads), "--memory-of", name]
    done = subprocess.run([*command, json.dumps(workload.as_json())], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"memory_failed": done.stderr.strip().splitlines()[-1:]}
    return {"excess_bytes": int(done.stdout.split()[-1])}


def measured(workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    columns: dict[str, Any] = {name: {} for name in available(options.columns)}
    if options.repetitions:
        columns = timed(workload, options.columns, options.repetitions, options.patience)
    if not options.no_memory:
        for name in columns.keys() - {FLOOR}:
            columns[name] |= excess_elsewhere(workload, name, options.threads)
    absent = {name: {"not_available": missing(name)} for name in options.columns if missing(name) is not None}
    return {"name": str(workload), "workload": workload.as_json(), "columns": {**columns, **absent}}


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """A Markdown table: the floor in milliseconds, then each column's ratio to it and its memory."""
    names = [name for name in columns if name != FLOOR]
    lines = [f"| {' | '.join(['workload', 'floor, ms', *names])} |", "|" + "---|" * (len(names) + 2)]
    for row in rows:
        clock = "processor" if row["workload"]["device"] == "cpu" else "wall"
        seconds = row["columns"][FLOOR].get(f"{clock}_seconds")
        floor = "–" if seconds is None else f"{1000 * statistics.median(seconds):.0f}"
        cells = [cell(row["columns"][name], clock) for name in names]
        lines.append(f"| {row['name']} | {floor} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(column: dict[str, Any], clock: str) -> str:
    """The ratio with its range, and the memory in MiB."""
    if "not_available" in column:
        return f"n/a: {column['not_available']}"
    memory = column.get("excess_bytes")
    said = "" if memory is None else f"{memory / MIB:,.0f} MiB"
    if "runs" not in column:
        return said
    ratio = column[f"{clock}_ratio"]
    span = f"({ratio['min']:.2f}–{ratio['max']:.2f})" if column["runs"] > 1 else "(one run)"
    return f"{ratio['median']:.2f} {span}" + (f"; {said}" if said else "")


def surroundings() -> dict[str, Any]:
    """The machine and the versions."""
    found = machine()
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    found["processor"] = names[0].partition(":")[2].strip() if names else found["processor"]
    found["capability"] = torch.backends.cpu.get_cpu_capability()
    for package in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["versions"][package] = metadata.version(package)
    return found


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all works")
    parser.add_argument("--repetitions", type=int, default=5, help="repetitions of each column (5); 0: memory only")
    parser.add_argument("--rows", type=int, default=1024, help="rows of hidden states (1024)")
    parser.add_argument("--classes", type=int, nargs="+", default=[32000, 151936, 262144])
    parser.add_argument("--widths", type=int, nargs="+", default=[640, 1024])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--divergences", nargs="+", choices=BETAS, default=["forward_kl", "jensen_shannon"])
    parser.add_argument("--masked", type=float, nargs="+", default=[0.0, 0.6], help="shares of rows without a label")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="besides the floor (all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunk-mib", type=int, help="bytes of logits at a time, for hfdistill (its own choice)")
    parser.add_argument("--compiled", action="store_true", help="hfdistill sweeps by torch.compile")
    parser.add_argument("--patience", type=float, default=60, help="seconds above which a column runs once (60)")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--json", type=Path, default=HERE / "head.json", help="where the measurements go")
    parser.add_argument("--memory-of", nargs=2, metavar=("COLUMN", "WORKLOAD"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.quick:
        vars(options).update(QUICK)
    options.columns = [FLOOR, *(name for name in options.columns if name != FLOOR)]
    return options


def workloads(options: argparse.Namespace) -> list[Workload]:
    """The rows of the table."""
    chunk = None if options.chunk_mib is None else options.chunk_mib * MIB
    chosen = itertools.product(options.classes, options.widths, options.dtypes, options.divergences, options.masked)
    return [Workload(*each, options.rows, options.device, chunk, options.compiled) for each in chosen]


def opened(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """The report, with the rows that the same command has measured here before it was interrupted."""
    report = {
        "command": shlex.join(["python", "tests/benchmarks/head.py", *words]),
        "seconds": 0.0,
        "repetitions": options.repetitions,
        "machine": surroundings(),
        "rows": [],
    }
    if options.json.is_file():
        earlier = json.loads(options.json.read_text(encoding="utf-8"))
        if all(earlier.get(key) == report[key] for key in ("command", "machine")):
            return {**report, "seconds": earlier["seconds"], "rows": earlier["rows"]}
    return report


def main(words: list[str]) -> None:
    """Measure, print and write."""
    options = parsed(words)
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        print(excess(Workload(**json.loads(options.memory_of[1])), options.memory_of[0]))
        return
    report = opened(options, words)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the table
        for workload in workloads(options):
            if workload.as_json() not in [row["workload"] for row in report["rows"]]:
                began = time.perf_counter()
                report["rows"].append(measured(workload, options))
                report["seconds"] = round(report["seconds"] + time.perf_counter() - began, 1)
                write_json(options.json, report)
    found = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"\n{report['command']}    ({report['seconds']:.0f} s, {options.repetitions} repetitions)")
    print(f"{found['processor']}, {found['capability']}, {options.threads} thread(s); {versions}\n")
    print("× floor (least–most); memory beyond inputs and gradients\n")
    print(table(report["rows"], options.columns))


if __name__ == "__main__":
    main(sys.argv[1:])
