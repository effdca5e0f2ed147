"""One training: from scratch or from the last checkpoint, with the Trainer of the package for every stage."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hfdistill.cache import CachedTeacher
from hfdistill.config import DistillationConfig
from hfdistill.data import Examples, LabelSpace, whole_batch
from hfdistill.errors import HfDistillError
from hfdistill.knowledge import TaskLoss
from hfdistill.metrics import classification_metrics
from hfdistill.objective import Objective
from hfdistill.stages.cached import missing_explained
from hfdistill.stages.models import Student
from hfdistill.stages.processes import is_main, wait_for_all
from hfdistill.stages.progress import Clock, Reporter
from hfdistill.teachers import EnsembleTeacher, ZeroShotTeacher
from hfdistill.trainer import DistillationTrainer

SPARE = 2**20
"""Bytes: less free space than this explains a write that failed."""


@dataclass(frozen=True)
class Lesson:
    """What one stage trains: a student (or a teacher on its labels) with its data, objective and teacher.

    With `views` the random changes of so many epochs repeat.
    """

    model: Student
    train: Examples
    validation: Examples
    processor: Any
    teacher: PreTrainedModel | ZeroShotTeacher | EnsembleTeacher | CachedTeacher | None = None
    teacher_processor: Any = None
    objective: Objective | None = None
    views: int | None = None


@dataclass(frozen=True)
class Trained:
    """What is known after a training."""

    seconds: float
    steps: int
    examples_seen: int
    log_history: list[dict[str, Any]]


def train(lesson: Lesson, config: DistillationConfig, space: LabelSpace, title: str, reporter: Reporter) -> Trained:
    """Train `lesson.model` in place, going on from the last whole checkpoint in the stage's folder if there is one.

    Errors: HfDistillError for a full disk and too little memory.
    """
    folder = Path(str(config.output_dir))
    checkpoint = last_whole_checkpoint(folder)
    clock = Clock(0.0 if checkpoint is None else _seconds_until(checkpoint))
    with reporter.training(title) as steps, faults_explained(folder), missing_explained(lesson.teacher):
        trainer = trainer_of(lesson, config, space, [steps, clock])
        if checkpoint is not None:
            reporter.say(f"  going on from {checkpoint.name}")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = clock.seconds
        trainer.save_model(str(final_folder(config)))
        wait_for_all()
    state = trainer.state
    seen = round((state.epoch or 0.0) * len(lesson.train))
    return Trained(seconds, state.global_step, seen, list(state.log_history))


def trainer_of(
    lesson: Lesson, config: DistillationConfig, space: LabelSpace, callbacks: Sequence[TrainerCallback] = ()
) -> DistillationTrainer:
    """The trainer of a lesson, which draws the changes of its examples by the config's seed."""
    rows = lesson.train.changed_by(int(config.seed), lesson.views)
    trainer = DistillationTrainer(
        lesson.model,
        config,
        teacher_model=lesson.teacher,
        objective=lesson.objective or (Objective([TaskLoss()]) if lesson.teacher is None else None),
        processing_class=lesson.processor,
        teacher_processing_class=lesson.teacher_processor,
        train_dataset=rows,
        eval_dataset=lesson.validation,
        data_collator=whole_batch,
        # Over parts of examples the loss tells enough on the way: all logits of a split would not fit into memory.
        compute_metrics=classification_metrics(space.problem_type, len(space.names)) if space.whole else None,
        callbacks=[*callbacks, EpochOf(rows)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class EpochOf(TrainerCallback):
    """Tells the examples which epoch it is, after a resume too."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called before the epoch's first batch is fetched."""
        # A resumed state stands in the middle of its epoch.
        self.examples.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))


def final_folder(config: DistillationConfig) -> Path:
    """Where a training leaves its model, until the stage's folder is put in place whole."""
    return Path(str(config.output_dir)) / "final"


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was saved to its end; what a killed process left of a later one is removed."""
    while folder.is_dir() and (name := get_last_checkpoint(str(folder))) is not None:  # type: ignore[no-untyped-call]
        checkpoint = Path(name)
        if _is_whole(checkpoint):
            return checkpoint
        wait_for_all()  # every process has looked before one of them removes it
        if is_main():
            shutil.rmtree(checkpoint)
        wait_for_all()
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Trainer writes trainer_state.json last."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and "global_step" in state


def _seconds_until(checkpoint: Path) -> float:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    saved = state.get("stateful_callbacks", {}).get(Clock.__name__, {})
    return float(saved.get("attributes", {}).get("seconds", 0.0))


@contextmanager
def faults_explained(folder: Path) -> Iterator[None]:
    """Turn what the machine refuses into one clear error: a full disk, or too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise HfDistillError(
            "The accelerator's memory is full. Lower training.per_device_train_batch_size and raise "
            "training.gradient_accumulation_steps by the same factor: the update stays the same."
        ) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        if _disk_is_full(folder, error):
            raise HfDistillError(
                f"The disk of {folder} is full. Free some space there and run the same command again (it goes on "
                "from the last whole checkpoint), or choose another folder with --output."
            ) from error
        raise


def _disk_is_full(folder: Path, error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    if "os error 28" in text or "No space left" in text:
        return True
    # torch.save says only that its writer failed.
    return "writ" in text and folder.is_dir() and shutil.disk_usage(folder).free < SPARE
