"""One short training by SGD of a head over tokens, and all that it leaves behind.

Run as a script under torchrun it trains every kind of head on several processes and writes what it saw to files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hfdistill import DistillationTrainer
from tests import by_sgd
from tests.tasks import token_models
from tests.tasks.token_models import Batch, padded

HEADS = ("bert_tags", "bert_spans", "bert_choices", "bert_masked", "llama", "t5")
EXAMPLES = 24

Collator = Callable[[list[Batch]], Batch]


def examples(name: str) -> list[Batch]:
    """A data set of sequences of different lengths, every fifth of them without a label."""
    rows = token_models.examples(name, EXAMPLES)
    for row in rows[::5]:
        for key in row.keys() & {"labels", "start_positions", "end_positions"}:
            row[key] = torch.full_like(row[key], -100)
    return rows


def trained(
    name: str, folder: Path, collator: Collator = padded, student: nn.Module | None = None, **arguments: Any
) -> tuple[DistillationTrainer, dict[str, torch.Tensor]]:
    """Train for three optimizer steps of eight examples; parameters, gradient norms and logged parts by name."""
    config = by_sgd.arguments(folder, **{"learning_rate": 0.2, "alpha": 0.6, "temperature": 2.0, **arguments})
    trainer = DistillationTrainer(
        student or token_models.model(name, seed=1),
        config,
        teacher_model=token_models.model(name, layers=2, seed=2),
        train_dataset=examples(name),
        data_collator=collator,
    )
    trainer.train()
    return trainer, by_sgd.seen_in(trainer)


def main(folder: Path) -> None:
    """Train every head on the processes of this launch."""
    torch.set_num_threads(1)
    for name in HEADS:
        trainer, seen = trained(name, folder / "out", per_device_train_batch_size=4)
        seen["processes"] = torch.tensor(trainer.accelerator.num_processes)
        if trainer.is_world_process_zero():
            save_file(seen, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
