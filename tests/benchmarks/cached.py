"""What a cached teacher saves, and what a language model's cache loses: steps in turns, and gradients from its top k.

    python tests/benchmarks/cached.py --model FOLDER_OR_ID

prints two tables and writes every measurement as JSON. README.md beside it says what is in them. Without --model only
the steps are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported

import torch
from cached_gradients import gradient_errors
from columns import ours, settings
from step import HERE, WARM_UP, cell, compared, in_turns, surroundings, write
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator
from transformers.utils import logging as transformers_logging
from turns import SteppedTraining
from workloads import WORKLOADS, Batch, Workload, bert, resnet, vit

from hfdistill import CachedTeacher, DistillationTrainer
from hfdistill.cache import CachingCollator, StoredTeacher

PLAIN, LIVE, CACHED, HALF = "plain", "live", "cached", "live, bfloat16 teacher"
NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names in /proc/cpuinfo of instructions that multiply bfloat16, of x86 and ARM."""
TEACHERS = {
    "ViT": lambda: vit(384, 10),
    "ResNet": lambda: resnet([64, 128, 256], [2, 3, 4]),
    "BERT": lambda: bert(384, 10),
}
"""Larger than those of workloads.py: a forward of ten of the student's."""


def examples_of(batches: list[Batch]) -> list[Batch]:
    """The rows of some batches, one by one."""
    return [{name: each[row] for name, each in batch.items()} for batch in batches for row in range(len(first(batch)))]


def first(batch: Batch) -> torch.Tensor:
    """Any tensor of a batch."""
    return next(iter(batch.values()))


def forward_flops(model: nn.Module, batch: Batch) -> int:
    """Operations of one forward, as torch counts them."""
    inputs = {name: each for name, each in batch.items() if name != "labels"}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(**inputs)
    return counter.get_total_flops()


def why_no_bfloat16() -> str | None:
    """Why a teacher in bfloat16 is not worth measuring; None where the processor multiplies it."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return "no /proc/cpuinfo that tells whether the processor multiplies bfloat16"
    lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))]
    return None if any(NATIVE & set(line.split()) for line in lines) else "the processor does not multiply bfloat16"


def filled(folder: Path, teacher: nn.Module, student: nn.Module, given: dict[str, Any]) -> DistillationTrainer:
    """Fill a cache with the examples; the trainer that did it."""
    arguments = settings(str(folder / "out"), 1) | {"per_device_eval_batch_size": 16}
    trainer = ours(student, CachedTeacher(folder / "cache", teacher), arguments, **given)
    assert isinstance(trainer, DistillationTrainer)
    trainer.fill_cache(bar=lambda batches, title: batches)
    return trainer


def reading(filler: DistillationTrainer, batches: list[Batch]) -> dict[str, Any]:
    """Bytes on the disk and microseconds to hash and read, an example."""
    teacher = filler.teacher
    assert isinstance(teacher, StoredTeacher)
    collator = CachingCollator(dict, teacher.store, filler.views, filler.task, complete=True)
    taken = []
    for _ in range(3):
        for batch in batches:
            began = time.process_time()
            collator(batch)
            taken.append(1e6 * (time.process_time() - began) / len(first(batch)))
    size = sum(file.stat().st_size for file in teacher.store.folder.glob("*.safetensors"))
    return {
        "examples": len(teacher.store.index),
        "bytes_an_example": size / len(teacher.store.index),
        "microseconds_an_example": {"median": statistics.median(taken), "min": min(taken), "max": max(taken)},
    }


def trainings(
    student: nn.Module, teacher: nn.Module, cache: Path, arguments: dict[str, Any], given: dict[str, Any]
) -> dict[str, SteppedTraining]:
    """Every column ready to step, with its own copies of the same two models."""
    trainers: dict[str, Trainer] = {
        name: Trainer(copy.deepcopy(student), TrainingArguments(**arguments), **given)
        for name in (PLAIN, f"{PLAIN} again")
    }
    trainers[LIVE] = ours(copy.deepcopy(student), copy.deepcopy(teacher), arguments, **given)
    trainers[CACHED] = ours(copy.deepcopy(student), CachedTeacher(cache), arguments, **given)
    if why_no_bfloat16() is None:
        half = arguments | {"teacher_dtype": "bfloat16"}
        trainers[HALF] = ours(copy.deepcopy(student), copy.deepcopy(teacher), half, **given)
    for trainer in trainers.values():
        trainer.remove_callback(PrinterCallback)
    return {name: SteppedTraining(trainer) for name, trainer in trainers.items()}


def measured(workload: Workload, folder: Path, steps: int, repetitions: int) -> dict[str, Any]:
    """One row: the cache filled, then all columns in turns over the same examples, none of them twice."""
    torch.manual_seed(0)
    student, teacher = workload.student(), workload.teacher()
    batches = workload.batches(WARM_UP + steps * repetitions)
    flops = [forward_flops(model, batches[0]) for model in (teacher, student)]
    given = {"train_dataset": examples_of(batches), "data_collator": default_data_collator}
    filler = filled(folder, copy.deepcopy(teacher), copy.deepcopy(student), given)
    rows = len(first(batches[0]))
    arguments = settings(str(folder / "out"), len(batches)) | {"per_device_train_batch_size": rows}
    repeated = in_turns(trainings(student, teacher, folder / "cache", arguments, given), steps, repetitions)
    columns = {name: compared(each, repeated[PLAIN]) for name, each in repeated.items()}
    columns["live ÷ cached"] = compared(repeated[LIVE], repeated[CACHED])
    if HALF in repeated:
        columns["bfloat16 ÷ live"] = compared(repeated[HALF], repeated[LIVE])
    else:
        columns[HALF] = {"not_available": why_no_bfloat16()}
    return {
        "workload": workload.name,
        "batch": rows,
        "teacher_flops": flops[0] / flops[1],
        "columns": columns,
        "cache": reading(filler, batches),
    }


def step_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: the plain step in milliseconds, each column's ratio to it, and the cache."""
    names = list(dict.fromkeys(name for row in rows for name in row["columns"] if name != PLAIN))
    headings = ["workload (teacher's forward ÷ student's)", "plain, ms a step", *names]
    headings += ["cache, bytes an example", "hashing and reading, µs an example"]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for row in rows:
        plain = 1000 * statistics.median(row["columns"][PLAIN]["processor_seconds"])
        cache = row["cache"]
        cells = [f"{row['workload']}, batch {row['batch']} ({row['teacher_flops']:.1f})", f"{plain:.0f}"]
        cells += [cell(row["columns"][name]) for name in names]
        cells += [f"{cache['bytes_an_example']:.0f}", f"{cache['microseconds_an_example']['median']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gradient_table(found: dict[str, Any]) -> str:
    """A Markdown table: bytes a token, and for each student the gradient's error with the rest and without."""
    students = list(found["students"])
    headings = ["kept", "bytes a token", *(f"{name}: {way}" for name in students for way in ("with rest", "without"))]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for row in found["rows"]:
        errors = [error for name in students for error in row["errors"][name].values()]
        cells = [
            f"{row['k']}, {row['store']}",
            f"{row['bytes']:.0f}",
            *(f"{100 * each['all']:.2f} % ({100 * each['median_row']:.2f})" for each in errors),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    said = "; ".join(f"{name}, {each['divergence']:.2f} nats away" for name, each in found["students"].items())
    return (
        f"{found['model']}, {found['texts']}: {found['tokens']} tokens, at most {found['window']} at a time, "
        f"{found['classes']:,} classes, entropy {found['entropy']:.2f} nats; all logits in float16: "
        f"{2 * found['classes']:,} bytes a token. Students: {said}.\n\n" + "\n".join(lines)
    )


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line."""
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=9, help="repetitions of each column (9)")
    parser.add_argument("--steps", type=int, default=6, help=f"steps a repetition, after {WARM_UP} to warm up (6)")
    parser.add_argument("--workloads", nargs="*", choices=names, default=names, help="which rows (all)")
    parser.add_argument("--model", help="a causal language model: a folder or a Hub id")
    parser.add_argument(
        "--texts", default="pydoc_topics", help="a text file or a data set (the topics of Python's help)"
    )
    parser.add_argument("--tokens", type=int, default=512, help="tokens of the language model (512)")
    parser.add_argument(
        "--window", type=int, default=256, help="most tokens at a time, from the beginning of a text (256)"
    )
    parser.add_argument("--kept", type=int, nargs="+", default=[16, 64, 256], help="k (16 64 256)")
    parser.add_argument("--skip", type=int, help="last layers that the student lacks (a sixth)")
    parser.add_argument("--noise", type=float, default=1.0, help="deviation of the noise on the other student (1)")
    parser.add_argument("--json", type=Path, default=HERE / "cached.json", help="where the measurements go")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Measure, print and write."""
    options = parsed(words)
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    began = time.perf_counter()
    rows, gradients = [], None
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the tables
        for workload in (each for each in WORKLOADS if each.name in options.workloads):
            with tempfile.TemporaryDirectory() as folder:
                larger = dataclasses.replace(workload, teacher=TEACHERS[workload.name])
                rows.append(measured(larger, Path(folder), options.steps, options.repetitions))
        if options.model is not None:
            gradients = gradient_errors(options)
    report = {
        "command": shlex.join(["python", "tests/benchmarks/cached.py", *words]),
        "seconds": round(time.perf_counter() - began, 1),
        "repetitions": options.repetitions,
        "steps": options.steps,
        "machine": surroundings(),
        "rows": rows,
        "gradients": gradients,
    }
    write(report, options.json)
    print(as_text(report))


def as_text(report: dict[str, Any]) -> str:
    """What was run where, and the tables."""
    found = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"\n{report['command']}    ({report['seconds']:.0f} s, {report['repetitions']} × {report['steps']} steps)",
        f"{found['processor']}, {found['threads']} thread; {versions}",
    ]
    if report["rows"]:
        lines += ["\n× plain: processor time, median of the repetitions (least–most); wall time, median\n"]
        lines += [step_table(report["rows"])]
    if report["gradients"] is not None:
        lines += ["\n‖g − exact‖ / ‖exact‖, g of forward KL (T = 1) by the student's logits: all rows (median row)\n"]
        lines += [gradient_table(report["gradients"])]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
