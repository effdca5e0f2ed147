"""The ways to train that are compared: each a Trainer over the same two models, the same batches and settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from guide import GuideTrainer
from torch import nn
from transformers import Trainer, TrainingArguments

from hfdistill import DistillationConfig, DistillationTrainer

TEMPERATURE = 2.0
FLOOR = "floor"

Build = Callable[..., Trainer]


class FloorTrainer(Trainer):  # type: ignore[misc]
    """The plain Trainer on the student, and a bare forward of the teacher whose result nobody uses."""

    def __init__(self, *args: Any, teacher_model: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher_model.eval()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The teacher's forward, then the plain loss."""
        with torch.no_grad():
            self.teacher(**{key: value for key, value in inputs.items() if key != "labels"})
        return super().compute_loss(model, inputs, *args, **kwargs)


def settings(folder: str, steps: int) -> dict[str, Any]:
    """Training arguments that are the same for all: nothing but optimizer steps."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": 1,  # an example of the data set is a whole batch
        "learning_rate": 1e-5,
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
    }


def floor(student: nn.Module, teacher: nn.Module, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
    """What no live teacher avoids."""
    return FloorTrainer(student, TrainingArguments(**arguments), teacher_model=teacher, **kwargs)


def ours(student: nn.Module, teacher: nn.Module, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
    """DistillationTrainer with its default objective."""
    args = DistillationConfig(temperature=TEMPERATURE, **arguments)
    return DistillationTrainer(student, args, teacher_model=teacher, **kwargs)


def guide(student: nn.Module, teacher: nn.Module, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
    """The repaired trainer of the Transformers guide."""
    args = TrainingArguments(**arguments)
    return GuideTrainer(student, args, teacher_model=teacher, temperature=TEMPERATURE, **kwargs)


def modelopt(student: nn.Module, teacher: nn.Module, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
    """ModelOpt's trainer; raises ImportError where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it was not tested with this transformers
        from modelopt.torch.distill.plugins.huggingface import KDTrainer
    distill_args = {"teacher_model": teacher, "temperature": TEMPERATURE}
    return KDTrainer(model=student, args=TrainingArguments(**arguments), distill_args=distill_args, **kwargs)


# The second floor shows how far from 1 the noise alone goes.
COLUMNS: dict[str, Build] = {
    FLOOR: floor,
    "floor again": floor,
    "hfdistill": ours,
    "guide": guide,
    "ModelOpt": modelopt,
}
