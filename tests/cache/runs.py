"""Short trainings with a cache, by SGD, and all that they leave behind.

Run as a script under torchrun it fills one cache from several processes, trains from it, and writes what it saw.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hfdistill import CachedTeacher, DistillationTrainer, Objective
from tests import by_sgd
from tests.tasks import token_models
from tests.tasks import trajectory as of_tokens
from tests.trainer import trajectory as of_examples

Given = nn.Module | CachedTeacher


def teacher(name: str) -> nn.Module:
    """The teacher of a head over tokens, or of an architecture."""
    if name in of_tokens.HEADS:
        return token_models.model(name, layers=2, seed=2)
    return of_examples.models(name, "single_label_classification")[1]


def examples(name: str) -> Any:
    """The data of one of these."""
    if name in of_tokens.HEADS:
        return of_tokens.examples(name)
    return of_examples.examples(name, "single_label_classification")


def trainer_of(
    name: str, given: Given, folder: Path, objective: Objective | None = None, rows: Any = None, **arguments: Any
) -> DistillationTrainer:
    """A trainer of three optimizer steps of eight examples."""
    tokens = name in of_tokens.HEADS
    settings = {"alpha": 0.6, "temperature": 2.0, **arguments}
    student = token_models.model(name, seed=1) if tokens else of_examples.models(name, "single_label_classification")[0]
    return DistillationTrainer(
        student,
        by_sgd.arguments(folder, **({"learning_rate": 0.2} if tokens else {}), **settings),
        objective=objective,
        teacher_model=given,
        train_dataset=examples(name) if rows is None else rows,
        data_collator=token_models.padded if tokens else None,
    )


def trained(name: str, given: Given, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Train; parameters, gradient norms and logged parts by name."""
    trainer = trainer_of(name, given, folder, **options)
    trainer.train()
    return by_sgd.seen_in(trainer)


def main(folder: Path) -> None:
    """Fill a cache together, and train from it."""
    torch.set_num_threads(1)
    cache = folder / "cache"
    filling = trainer_of("vit", CachedTeacher(cache, teacher("vit"), dtype="float32"), folder / "out")
    filled = filling.fill_cache()
    trainer = trainer_of("vit", CachedTeacher(cache), folder / "out", per_device_train_batch_size=4)
    trainer.train()
    seen = by_sgd.seen_in(trainer)
    seen["processes"] = torch.tensor(trainer.accelerator.num_processes)
    seen["filled here"] = torch.tensor(filled.new)
    if trainer.is_world_process_zero():
        save_file(seen, folder / "seen.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
