"""Short trainings with terms on features, and all that they leave behind.

Run as a script under torchrun it trains every objective on several processes and writes what it saw to a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hfdistill import DistillationConfig, DistillationTrainer, Objective, TaskLoss
from hfdistill.features import HiddenStates, Module
from hfdistill.knowledge import Term
from tests import tiny
from tests.trainer.trajectory import examples, freeze_batch_norm

WIDE = 24


def models(architecture: str) -> tuple[Any, Any]:
    """A student of one layer and a teacher of two, half as wide again where the architecture says how."""
    student = tiny.model(architecture, layers=1, num_labels=3, seed=1)
    teacher = tiny.model(architecture, layers=2, num_labels=3, seed=2)
    config = teacher.config.to_dict()
    if "hidden_size" in config:
        wide = type(teacher.config).from_dict({**config, "hidden_size": WIDE, "intermediate_size": 2 * WIDE})
        torch.manual_seed(2)
        teacher = type(teacher)(wide)
    freeze_batch_norm(student)
    return student, teacher


def objective(architecture: str) -> Objective:
    """Labels, the last hidden state by hint and by cosine, and a module where both models have one of that name."""
    terms: list[Term] = [TaskLoss(0.5), HiddenStates("hint"), HiddenStates("cosine_distance", name="cosine")]
    if architecture == "bert":
        terms.append(Module("bert.encoder.layer.0.output", weight=0.3))
    return Objective(terms)


def trained(
    architecture: str,
    folder: Path,
    terms: Objective | None = None,
    *,
    pair: tuple[Any, Any] | None = None,
    rows: Any = None,
    **arguments: Any,
) -> tuple[DistillationTrainer, dict[str, torch.Tensor]]:
    """Three optimizer steps of eight examples by SGD: parameters, projectors, gradient norms and logged parts."""
    student, teacher = pair or models(architecture)
    settings: dict[str, Any] = {
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
    }
    trainer = DistillationTrainer(
        student,
        DistillationConfig(output_dir=str(folder), **{**settings, **arguments}),
        teacher_model=teacher,
        objective=terms or objective(architecture),
        train_dataset=rows or examples(architecture, "single_label_classification", unlabelled=False),
    )
    trainer.train(resume_from_checkpoint=arguments.get("resume_from_checkpoint"))
    seen = {f"parameter {name}": value.detach().clone() for name, value in trainer.model.named_parameters()}
    projectors = trainer.features.projectors.modules
    seen |= {f"projector {name}": value.detach().clone() for name, value in projectors.named_parameters()}
    for row in trainer.state.log_history:
        if "loss" in row:
            for key in row.keys() & {"loss", "grad_norm", *(f"loss/{name}" for name in trainer.train_parts.names)}:
                seen[f"step {row['step']} {key}"] = torch.tensor(row[key], dtype=torch.float64)
    return trainer, seen


def main(folder: Path) -> None:
    """Train on the processes of this launch."""
    torch.set_num_threads(1)
    for architecture in ("bert", "resnet", "vit"):
        trainer, seen = trained(architecture, folder / "out", per_device_train_batch_size=4)
        seen["processes"] = torch.tensor(trainer.accelerator.num_processes)
        if trainer.is_world_process_zero():
            save_file(seen, folder / f"{architecture}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
