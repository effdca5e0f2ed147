"""Short trainings by SGD, which shows every factor of a gradient where Adam would hide it, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hfdistill import DistillationConfig


def arguments(folder: Path, **changes: Any) -> DistillationConfig:
    """The arguments of three optimizer steps of eight examples, with some values changed."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,  # high enough never to clip; 0 leaves the norm out of the logs of older Transformers
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
    }
    return DistillationConfig(**{**settings, **changes})


def seen_in(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What a training has left: parameters, losses, gradient norms and every logged part, by name."""
    found = {f"parameter {name}": value.detach().clone() for name, value in trainer.model.named_parameters()}
    for row in trainer.state.log_history:
        for key, value in row.items():
            if key in ("loss", "grad_norm") or key.startswith("loss/"):
                found[f"step {row['step']} {key}"] = torch.tensor(value, dtype=torch.float64)
    return found
