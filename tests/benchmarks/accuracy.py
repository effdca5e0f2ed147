"""The naive peer on a finished run: the same student, data, steps and seeds, by the guide's trainer.

    hfdistill run RECIPE --output RUN --seeds 5
    python tests/benchmarks/accuracy.py RUN                 # the run's own alpha and temperature
    python tests/benchmarks/accuracy.py RUN --lambda-param 0.5 --temperature 5      # the guide's

Reads the recipe, the teacher and the finished stages of RUN, trains the peer once a seed, prints accuracies on the test
split side by side and writes them to RUN/peer.json. `--teacher-dtype bfloat16` spares time on a CPU: the teacher of the
guide does not take part in mixed precision, the run's does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from guide import GuideTrainer
from transformers import PrinterCallback, TrainingArguments

from hfdistill._atomic import write_json
from hfdistill.recipe import Recipe, load_recipe
from hfdistill.stages import models
from hfdistill.stages.exam import Exam
from hfdistill.stages.outcome import predictions
from hfdistill.stages.progress import Reporter
from hfdistill.stages.run import Run
from hfdistill.stages.settings import STUDENT, stage_settings

NOT_THEIRS = ("alpha", "temperature")


def settings_of(recipe: Recipe, seed: int) -> dict[str, Any]:
    """The student stage's TrainingArguments, without our own."""
    values = stage_settings(recipe, STUDENT, seed).values
    return {key: value for key, value in values.items() if key not in NOT_THEIRS}


def peer_accuracy(run: Run, seed: int, temperature: float, lambda_param: float, dtype: torch.dtype) -> float:
    """Test accuracy of one student trained by the guide's trainer."""
    student = models.build_student(run.recipe, run.data.kind, seed)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            **settings_of(run.recipe, seed),
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
            report_to="none",
        )
        trainer = GuideTrainer(
            student,
            args,
            teacher_model=run.teacher().to(dtype),
            temperature=temperature,
            lambda_param=lambda_param,
            train_dataset=run.prepared.student_train(),
            data_collator=lambda batch: batch,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    config = stage_settings(run.recipe, STUDENT, seed).config(run.output)
    test = predictions(Exam(student, run.teacher(), run.prepared, "test", config))
    return float(test.metrics(run.data.space)["accuracy"])


def finished(run: Run, stage: str) -> list[float]:
    """Test accuracies of a stage of the run, one a seed."""
    files = [run.output / f"seed-{seed}" / stage / "stage.json" for seed in run.recipe.seeds]
    return [json.loads(file.read_text())["metrics"]["accuracy"] for file in files if file.is_file()]


def main() -> None:
    """Train the peer and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--lambda-param", type=float)
    parser.add_argument("--teacher-dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    recipe = load_recipe(str(options.run / "recipe.yaml"))
    run = Run(recipe, options.run, Reporter(silent=True))
    temperature = options.temperature or recipe.objective.temperature or 2.0
    lambda_param = recipe.objective.alpha if options.lambda_param is None else options.lambda_param
    lambda_param = 0.5 if lambda_param is None else lambda_param
    dtype = getattr(torch, options.teacher_dtype)
    rows = {"control": finished(run, "control"), "student": finished(run, "student"), "guide": []}
    for seed in recipe.seeds:
        rows["guide"].append(peer_accuracy(run, seed, temperature, lambda_param, dtype))
        print(f"seed {seed}: guide {rows['guide'][-1]:.4f}", flush=True)
    for name, values in rows.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        if values:
            print(f"{name:8} {100 * statistics.mean(values):.2f} ± {100 * spread:.2f} over {len(values)} seeds")
    facts = {"temperature": temperature, "lambda_param": lambda_param, "teacher_dtype": options.teacher_dtype}
    write_json(options.run / "peer.json", {**facts, "accuracy": rows})


if __name__ == "__main__":
    main()
