"""Short trainings of two students, and all that they leave behind.

Run as a script under torchrun it trains on several processes and writes what it saw to a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hfdistill import DistillationTrainer, Objective, Peer
from hfdistill.teachers import PeerTeacher
from tests import by_sgd, tiny
from tests.trainer.trajectory import examples, freeze_batch_norm


def make(architecture: str) -> tuple[Any, Any]:
    """A student of one layer and a peer of two."""
    pair = [tiny.model(architecture, layers=layers, num_labels=3, seed=layers) for layers in (1, 2)]
    for model in pair:
        freeze_batch_norm(model)
    return pair[0], pair[1]


def batch_of(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Examples put together."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def trained(
    architecture: str,
    folder: Path,
    *,
    pair: tuple[Any, Any] | None = None,
    objective: Objective | None = None,
    resume: str | None = None,
    dropout: float = 0.0,
    rows: Any = None,
    callbacks: Any = None,
    evaluate: bool = False,
    optimizers: Any = (None, None),
    model_init: Any = None,
    **arguments: Any,
) -> DistillationTrainer:
    """Three optimizer steps of eight examples by SGD."""
    student, peer = pair or make(architecture)
    for model in (student, peer):
        for module in model.modules() if isinstance(model, nn.Module) else ():
            if isinstance(module, nn.Dropout):
                module.p = dropout
    rows = rows or examples(architecture, "single_label_classification")
    trainer = DistillationTrainer(
        student,
        by_sgd.arguments(folder, **{"alpha": 0.6, "temperature": 3.0, "learning_rate": 0.2, **arguments}),
        teacher_model=Peer(peer),
        objective=objective,
        train_dataset=rows,
        eval_dataset=rows[:8] if evaluate else None,
        callbacks=callbacks,
        optimizers=optimizers,
        model_init=model_init,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def seen_of(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    """Parameters of both, gradient norms and logged parts, by name."""
    assert isinstance(trainer.teacher, PeerTeacher)
    found = by_sgd.seen_in(trainer)
    for name, value in trainer.teacher.model.named_parameters():
        found[f"peer parameter {name}"] = value.detach().clone()
    for row in trainer.state.log_history:
        for key in row:
            if key.startswith("peer/"):
                found[f"step {row['step']} {key}"] = torch.tensor(row[key], dtype=torch.float64)
    return found


def main(folder: Path) -> None:
    """Train on the processes of this launch."""
    torch.set_num_threads(1)
    for architecture in ("bert", "resnet"):
        trainer = trained(architecture, folder / "out", per_device_train_batch_size=4)
        seen = seen_of(trainer)
        seen["processes"] = torch.tensor(trainer.accelerator.num_processes)
        if trainer.is_world_process_zero():
            save_file(seen, folder / f"{architecture}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
