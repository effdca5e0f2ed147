"""The step never makes the host wait for the device.

No device is needed to see it: on `meta` tensors, which have no values, every read of a value raises (`.item()`,
`bool(tensor)`, selection by a mask, a copy to the host); copies from the host to the device are noticed as they happen.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfdistill import DistillationConfig, DistillationTrainer, Logits, Objective, TaskLoss
from tests import tiny

META = torch.device("meta")
SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
RESPONSE_LOSSES = (
    "bernoulli_kl",
    "decoupled_kl",
    "dist",
    "forward_kl",
    "hard_label",
    "jensen_shannon",
    "logit_mse",
    "normalized_kd",
    "reverse_kl",
    "skew_kl",
)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Crossings(TorchDispatchMode):
    """Counts copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in COPIES:
            devices = {leaf.device for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)}
            self.count += len(devices) > 1
        return result


class Classifier(nn.Module):
    """A head alone: what waits in the step is then the trainer's doing."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(8, outputs)

    def forward(self, features: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(features))


def trainer_on_meta(folder: Path, student: nn.Module, teacher: nn.Module, **arguments: Any) -> DistillationTrainer:
    """A trainer as it is once everything is on its device."""
    settings = DistillationConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", label_smoothing_factor=arguments.pop("smoothing", 0.0)
    )
    trainer = DistillationTrainer(student, settings, teacher_model=teacher, **arguments)
    student.to(META)
    teacher.to(META)
    trainer.train_parts.sums = trainer.train_parts.sums.to(META)
    return trainer


def copies_in_a_step(trainer: DistillationTrainer, batch: dict[str, torch.Tensor]) -> int:
    """Copies between devices in one optimizer step of two micro-batches; raises where a value is read."""
    one_step(trainer, batch)  # the first step may bring constants to the device
    with Crossings() as crossings:
        one_step(trainer, batch)
    return crossings.count


def one_step(trainer: DistillationTrainer, batch: dict[str, torch.Tensor]) -> None:
    batches, counts = trainer.get_batch_samples(iter([dict(batch), dict(batch)]), 2, META)
    for each in batches:
        loss = trainer.compute_loss(trainer.model, each, num_items_in_batch=counts)
        assert isinstance(loss, torch.Tensor) and loss.device == META
        loss.backward()


def labels(problem_type: str) -> torch.Tensor:
    return torch.zeros(4, dtype=torch.long) if problem_type == SINGLE else torch.zeros(4, 3)


def heads_on_meta(folder: Path, problem_type: str = SINGLE, **arguments: Any) -> DistillationTrainer:
    """A trainer of two bare heads, which knows its task by the label of its only example."""
    data = [{"features": torch.zeros(8), "labels": labels(problem_type)[0]}]
    trainer = trainer_on_meta(folder, Classifier(), Classifier(), train_dataset=data, **arguments)
    assert trainer.task.name == problem_type
    return trainer


def features(problem_type: str = SINGLE) -> dict[str, torch.Tensor]:
    """A labelled batch for `Classifier`, without values."""
    return {"features": torch.zeros(4, 8, device=META), "labels": labels(problem_type).to(META)}


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_default_objective(tmp_path: Path, problem_type: str) -> None:
    assert copies_in_a_step(heads_on_meta(tmp_path, problem_type), features(problem_type)) == 0


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_without_labels(tmp_path: Path, problem_type: str) -> None:
    batch = features(problem_type)
    del batch["labels"]
    assert copies_in_a_step(heads_on_meta(tmp_path, problem_type), batch) == 0


@pytest.mark.parametrize("loss", RESPONSE_LOSSES)
def test_response_losses(tmp_path: Path, loss: str) -> None:
    trainer = heads_on_meta(tmp_path, objective=Objective([TaskLoss(), Logits(loss)]))
    assert copies_in_a_step(trainer, features()) == 0


def test_control(tmp_path: Path) -> None:
    trainer = heads_on_meta(tmp_path, objective=Objective([TaskLoss()]))
    assert copies_in_a_step(trainer, features()) == 0


@pytest.mark.parametrize(("architecture", "problem_type"), [("vit", SINGLE), ("resnet", "regression")])
def test_whole_models(tmp_path: Path, architecture: str, problem_type: str) -> None:
    kind = {"num_labels": 3 if problem_type == SINGLE else 1, "problem_type": problem_type}
    student, teacher = tiny.model(architecture, layers=1, seed=1, **kind), tiny.model(architecture, seed=2, **kind)
    if problem_type == SINGLE:
        student.config.id2label, teacher.config.id2label = dict(enumerate("abc")), dict(enumerate("bca"))
    trainer = trainer_on_meta(tmp_path, student, teacher, smoothing=0.1)
    batch = {key: value.to(META) for key, value in tiny.batch(architecture, **kind).items()}
    assert copies_in_a_step(trainer, batch) == 0


def test_the_probe_sees_a_read(tmp_path: Path) -> None:
    def reading(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return (student - teacher).square().sum(-1) / max(float(teacher.amax()), 1.0)

    with pytest.raises(RuntimeError, match="meta"):
        copies_in_a_step(heads_on_meta(tmp_path, objective=Objective([Logits(reading)])), features())


def test_the_probe_sees_a_copy(tmp_path: Path) -> None:
    def copying(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return ((student - teacher) * torch.ones(3).to(student.device)).square().sum(-1)

    assert copies_in_a_step(heads_on_meta(tmp_path, objective=Objective([Logits(copying)])), features()) == 2
