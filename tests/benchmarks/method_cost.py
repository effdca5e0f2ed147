"""What a step of each shipped method costs beside plain distillation: time in turns in one process, and peak memory.

    python tests/benchmarks/method_cost.py fashion_mnist --data.labelled=2000
    python tests/benchmarks/method_cost.py digits --method rkd fitnets

The models, the batch and the settings are those of the recipe, untrained; every method that fits takes one optimizer
step in turn, a different one first each time, as step.py does. Time is processor time in shares of plain distillation
(`kd`), the median of the repetitions with the least and the most. Memory is the peak of all tensors that are made in a
forward and backward beyond models and batch, less that of `kd`. Let the machine do nothing else.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported

import torch
from peak_memory import PeakMemory
from step import medians, surroundings
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from turns import SteppedTraining

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError
from hfdistill._atomic import write_json
from hfdistill.data import whole_batch
from hfdistill.recipe import Recipe, load_recipe, override_arguments
from hfdistill.recipe.shipped import shipped_methods
from hfdistill.stages import Reporter, beside, models
from hfdistill.stages.run import Run

PLAIN = "kd"
WARM_UP = 2
HERE = Path(__file__).parent


def trainer_of(recipe: Recipe, run: Run, teacher: Any, folder: str, steps: int) -> DistillationTrainer:
    """A trainer of one method with the recipe's batches."""
    trainer = DistillationTrainer(
        models.build_student(recipe, run.data.kind, 0),
        DistillationConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=int(recipe.training.get("per_device_train_batch_size", 8)),
            learning_rate=1e-4,
            remove_unused_columns=False,
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            mixup=recipe.objective.mixup or 0.0,
        ),
        teacher_model=teacher,
        objective=recipe.objective.build(),
        train_dataset=run.prepared.student_train(),
        data_collator=whole_batch,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def peak(trainer: DistillationTrainer) -> int:
    """Bytes of all tensors that a forward and backward make, at their highest point."""
    loader = iter(trainer.get_train_dataloader())
    batches, counts = trainer.get_batch_samples(loader, 1, trainer.args.device)
    memory = PeakMemory()
    with memory:
        trainer.training_step(trainer.model, batches[0], counts)  # type: ignore[arg-type]
    trainer.model.zero_grad()
    return memory.peak


def parsed(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and the overrides of the recipe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--method", nargs="+", default=sorted(shipped_methods()))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help=f"steps a repetition, after {WARM_UP} to warm up (4)")
    parser.add_argument("--json", type=Path)
    return parser.parse_known_args(words)


def main(words: list[str]) -> None:
    """Measure, print and write."""
    options, rest = parsed(words)
    overrides = override_arguments(rest)
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        base = load_recipe(options.recipe, overrides)
        run = Run(base, Path(folder), Reporter(silent=True))
        teacher = models.load_original_teacher(base, run.data.kind)
        steps = WARM_UP + options.steps * options.repetitions
        ready: dict[str, SteppedTraining] = {}
        memory: dict[str, int] = {}
        refused: dict[str, str] = {}
        for name in dict.fromkeys([PLAIN, *options.method]):
            try:
                recipe = load_recipe(options.recipe, overrides, name)
                if recipe.assistants:
                    refused[name] = "a chain of trainings; each step is one of plain distillation"
                    continue
                own = [beside.teacher(recipe, run.data.kind, 0) if recipe.teacher.beside else teacher for _ in range(2)]
                memory[name] = peak(trainer_of(recipe, run, own[0], folder, 1))
                ready[name] = SteppedTraining(trainer_of(recipe, run, own[1], folder, steps))
            except HfDistillError as error:
                refused[name] = str(error)
        if PLAIN in refused:
            raise SystemExit(f"{PLAIN}, which all are held against, does not fit: {refused[PLAIN]}")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
        names = list(ready)
        for turn in range(-WARM_UP, steps - WARM_UP):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                taken = ready[name].step()
                if turn >= 0:
                    seconds[name].append(taken)
        for training in ready.values():
            training.finish()
    repeated = {name: medians(each, options.steps)["processor"] for name, each in seconds.items()}
    found = {}
    for name, each in repeated.items():
        ratios = [own / plain for own, plain in zip(each, repeated[PLAIN], strict=True)]
        found[name] = {
            "time": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "memory": memory[name] - memory[PLAIN],
        }
    report = {
        "command": shlex.join(["python", "tests/benchmarks/method_cost.py", *words]),
        "plain": {"milliseconds": 1000 * statistics.median(repeated[PLAIN]), "peak_bytes": memory[PLAIN]},
        "methods": found,
        "refused": refused,
        "machine": surroundings(),
    }
    if options.json:
        write_json(options.json, report)
    print(table(report))


def table(report: dict[str, Any]) -> str:
    """Markdown, the cheapest first."""
    plain = report["plain"]
    lines = [
        f"`{PLAIN}`: {plain['milliseconds']:.1f} ms a step, {plain['peak_bytes'] / 2**20:.1f} MiB at the peak",
        "",
        "| method | time of a step, × `kd` | peak memory beyond `kd`, MiB |",
        "|---|---:|---:|",
    ]
    for name, each in sorted(report["methods"].items(), key=lambda item: item[1]["time"]):
        time = f"{each['time']:.2f} ({each['least']:.2f}–{each['most']:.2f})"
        lines.append(f"| `{name}` | {time} | {each['memory'] / 2**20:+.1f} |")
    refused = [f"- `{name}`: {reason}" for name, reason in report["refused"].items()]
    return "\n".join([*lines, "", *refused])


if __name__ == "__main__":
    main(sys.argv[1:])
