"""TrainingArguments of each stage, made from the recipe before anything runs, so that a wrong value is an error now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfdistill.config import DistillationConfig
from hfdistill.errors import HfDistillError
from hfdistill.recipe import Recipe, RecipeError
from hfdistill.recipe.forward import forward_arguments
from hfdistill.stages.models import TEACHER_SEED

TEACHER, CONTROL, STUDENT, FINETUNED = "teacher", "control", "student", "finetuned"
CHECKPOINTS = "checkpoints"

NEUTRAL = frozenset({
    "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "log_on_each_node", "report_to", "run_name", "project", "trackio_space_id", "save_strategy",
    "save_steps", "save_total_limit", "save_on_each_node", "per_device_eval_batch_size",
    "eval_accumulation_steps",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "skip_memory_metrics", "ddp_timeout", "ddp_backend", "hub_token",
})  # fmt: skip
"""Settings that do not change what is learnt: with another value of these a finished stage still counts."""

AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
"""Trainer takes a 0 of these and fails much later."""


@dataclass(frozen=True)
class StageSettings:
    """The values of the recipe that hold in one stage, by TrainingArguments' names."""

    values: Mapping[str, Any]

    def deciding(self) -> dict[str, Any]:
        """Those that decide what is learnt."""
        return {key: value for key, value in self.values.items() if key not in NEUTRAL}

    def config(self, folder: Path, **changes: Any) -> DistillationConfig:
        """The arguments for a stage that works in `folder`. Errors: RecipeError for what TrainingArguments refuses."""
        own: dict[str, Any] = {
            "output_dir": str(folder / CHECKPOINTS),
            "remove_unused_columns": False,
            "disable_tqdm": True,
            "log_level": "error",
        }
        # Without an accelerator pinning does nothing but warn.
        defaults = {"save_total_limit": 1, "logging_steps": 0.05, "dataloader_pin_memory": torch.cuda.is_available()}
        for name in AT_LEAST_ONE:
            if self.values.get(name, 1) < 1:
                raise RecipeError(f"training.{name}: got {self.values[name]}, expected at least 1.")
        values = {**defaults, **self.values, **own, **changes}
        try:
            return DistillationConfig(**values)
        except HfDistillError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise RecipeError(f"training: {' '.join(str(error).split())}") from error


def stage_settings(recipe: Recipe, stage: str, seed: int) -> StageSettings:
    """`training` with the changes of the stage's own section over it."""
    if stage == TEACHER:
        return StageSettings({**recipe.training, **(recipe.teacher.finetune or {}), "seed": TEACHER_SEED})
    if stage == FINETUNED:
        return StageSettings({**recipe.training, **(recipe.student.finetune or {}), "seed": seed})
    if stage == CONTROL:
        return StageSettings({**recipe.training, "seed": seed})
    teacher = forward_arguments(recipe.teacher)
    return StageSettings({**recipe.training, **recipe.objective.arguments(), **teacher, "seed": seed})


def optimizer_steps(rows: int, config: DistillationConfig) -> int:
    """Optimizer steps that Trainer makes on so many rows."""
    if config.max_steps > 0:
        return int(config.max_steps)
    return math.ceil(config.num_train_epochs * steps_per_epoch(rows, config))


def steps_per_epoch(rows: int, config: DistillationConfig) -> int:
    """Optimizer steps of one pass over so many rows."""
    together = config.train_batch_size * config.world_size
    batches: int = rows // together if config.dataloader_drop_last else math.ceil(rows / together)
    return max(math.ceil(batches / int(config.gradient_accumulation_steps)), 1)


def same_budget(rows: int, config: DistillationConfig) -> dict[str, Any]:
    """Changes that give a stage on fewer rows the steps, evaluations and checkpoints of a stage on `rows` rows."""
    changes: dict[str, Any] = {"max_steps": optimizer_steps(rows, config)}
    strategies = {"eval": config.eval_strategy, "save": config.save_strategy, "logging": config.logging_strategy}
    for name, strategy in strategies.items():
        if strategy == "epoch":
            changes |= {f"{name}_strategy": "steps", f"{name}_steps": steps_per_epoch(rows, config)}
    return changes
