"""One short training by SGD, and all that it leaves behind: what the invariance tests compare.

Run as a script under torchrun it trains every architecture on several processes and writes what it saw to a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hfdistill import DistillationTrainer
from tests import by_sgd, tiny

EXAMPLES = 24
PROBLEMS = [
    *((architecture, "single_label_classification") for architecture in tiny.ARCHITECTURES),
    ("vit", "multi_label_classification"),
    ("bert", "regression"),
    ("bert", "multi_label_classification"),
]


def examples(architecture: str, problem_type: str, unlabelled: bool = True) -> list[dict[str, torch.Tensor]]:
    """A data set of single examples, every fifth of them without a label."""
    labels = 1 if problem_type == "regression" else 3
    batch = tiny.batch(architecture, EXAMPLES, seed=7, num_labels=labels, problem_type=problem_type)
    rows = [{key: value[place] for key, value in batch.items()} for place in range(EXAMPLES)]
    if unlabelled:
        for row in rows[::5]:
            nothing = -100 if problem_type == "single_label_classification" else float("nan")
            row["labels"] = torch.full_like(row["labels"], nothing)
    return rows


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep batch statistics out of it: they belong to a micro-batch by definition."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]


def models(architecture: str, problem_type: str) -> tuple[nn.Module, nn.Module]:
    """A student and its teacher."""
    labels = 1 if problem_type == "regression" else 3
    student = tiny.model(architecture, layers=1, num_labels=labels, problem_type=problem_type, seed=1)
    teacher = tiny.model(architecture, layers=2, num_labels=labels, problem_type=problem_type, seed=2)
    freeze_batch_norm(student)
    return student, teacher


def trained(
    architecture: str, problem_type: str, folder: Path, student: nn.Module | None = None, **arguments: Any
) -> tuple[DistillationTrainer, dict[str, torch.Tensor]]:
    """Train for three optimizer steps of eight examples; parameters, gradient norms and logged parts by name."""
    made, teacher = models(architecture, problem_type)
    config = by_sgd.arguments(folder, alpha=0.6, temperature=3.0, **arguments)
    trainer = DistillationTrainer(
        student or made, config, teacher_model=teacher, train_dataset=examples(architecture, problem_type)
    )
    trainer.train()
    return trainer, by_sgd.seen_in(trainer)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Compare two trainings name by name, within the rounding of float32 sums taken in another order."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def main(folder: Path) -> None:
    """Train every problem on the processes of this launch."""
    torch.set_num_threads(1)
    for architecture, problem_type in PROBLEMS:
        trainer, seen = trained(architecture, problem_type, folder / "out", per_device_train_batch_size=4)
        seen["processes"] = torch.tensor(trainer.accelerator.num_processes)
        if trainer.is_world_process_zero():
            save_file(seen, folder / f"{architecture}-{problem_type}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
