"""One switch compiles student and teacher, and one lays out both for convolutions; neither changes what is learnt."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import ResNetForImageClassification

from hfdistill import DistillationTrainer, HfDistillError, Objective, TaskLoss
from hfdistill.features import Module
from hfdistill.sight import unwrapped
from tests import by_sgd, tiny
from tests.teachers.test_forward import SINGLE, live, trained
from tests.trainer.trajectory import assert_same, examples, models

EAGER: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}
"""Traces as every backend does, and then runs what it has traced as it is."""


@pytest.fixture
def compiling() -> Iterator[None]:
    """TrainingArguments tell Accelerate what to compile by the environment, and it is told once a process."""
    before = dict(os.environ)
    AcceleratorState._reset_state()
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    AcceleratorState._reset_state()
    torch._dynamo.reset()


class Net(nn.Module):
    """Small enough to be traced in no time."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.body(features).tanh())}


def net_trained(folder: Path, objective: Objective | None = None, **arguments: Any) -> tuple[DistillationTrainer, Any]:
    """A training of two such nets."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"features": torch.randn(8, generator=generator), "labels": torch.tensor(row % 3)} for row in range(24)]
    config = by_sgd.arguments(folder, alpha=0.6, temperature=3.0, **arguments)
    trainer = DistillationTrainer(Net(1), config, teacher_model=Net(2), objective=objective, train_dataset=rows)
    trainer.train()
    return trainer, by_sgd.seen_in(trainer)


def is_compiled(model: nn.Module) -> bool:
    return model is not unwrapped(model)


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("further", [{}, {"teacher_device": "cpu"}], ids=["by Accelerate", "on its own"])
def test_the_switch_of_trainer_compiles_both(further: dict[str, Any], tmp_path: Path) -> None:
    _, plain = net_trained(tmp_path)
    traced = torch._dynamo.utils.counters["stats"]
    traced.clear()
    trainer, compiled = net_trained(tmp_path, **EAGER, **further)
    assert is_compiled(trainer.model_wrapped) and is_compiled(live(trainer).model)
    assert traced["unique_graphs"] == 2
    assert_same(plain, compiled)


@pytest.mark.usefixtures("compiling")
def test_a_teacher_that_is_looked_into_is_not_compiled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def objective() -> Objective:
        return Objective([TaskLoss(0.5), Module("body")])

    _, plain = net_trained(tmp_path, objective())
    caplog.set_level(logging.INFO, logger="hfdistill")
    traced = torch._dynamo.utils.counters["stats"]
    traced.clear()
    _, compiled = net_trained(tmp_path, objective(), **EAGER)
    assert traced["unique_graphs"] == 1, "the student's"
    assert [record.message for record in caplog.records].count(
        "The teacher is not compiled: a term looks inside of it, by hooks that a compiled model skips."
    ) == 1
    assert_same(plain, compiled)


# ---- channels last -----------------------------------------------------------------------------------------------


def last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@pytest.mark.parametrize("architecture", ["resnet", "convnext"])
def test_channels_last_in_models_and_pictures(architecture: str, tmp_path: Path) -> None:
    _, plain = trained(architecture, tmp_path)
    trainer, laid_out = trained(architecture, tmp_path, channels_last=True)
    assert_same(plain, laid_out)
    for model in (trainer.model, live(trainer).model):
        kernels = [each.weight for each in model.modules() if isinstance(each, nn.Conv2d)]
        assert any(last(kernel) for kernel in kernels)
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    seen: list[torch.Tensor] = []
    for model in (trainer.model, live(trainer).model):
        model.register_forward_pre_hook(
            lambda module, arguments, inputs: seen.append(inputs["pixel_values"]), with_kwargs=True
        )
    trainer.evaluate(examples(architecture, SINGLE)[:8])
    assert len(seen) == 2 and all(last(pictures) for pictures in seen)


def test_a_checkpoint_of_channels_last_goes_on_exactly(tmp_path: Path) -> None:
    saved: dict[str, Any] = {"channels_last": True, "save_strategy": "steps", "save_steps": 2}
    saved |= {"optim": "adamw_torch", "learning_rate": 0.01}
    _, whole = trained("resnet", tmp_path / "whole", **saved)
    trained("resnet", tmp_path / "again", max_steps=2, **saved)
    student, teacher = models("resnet", SINGLE)
    config = by_sgd.arguments(tmp_path / "again", alpha=0.6, temperature=3.0, **saved)
    trainer = DistillationTrainer(student, config, teacher_model=teacher, train_dataset=examples("resnet", SINGLE))
    trainer.train(resume_from_checkpoint=True)
    for name, value in by_sgd.seen_in(trainer).items():
        assert torch.equal(value, whole[name]), name
    folder = tmp_path / "student"
    trainer.save_model(str(folder))
    again = ResNetForImageClassification.from_pretrained(folder)
    assert all(
        torch.equal(one, other)
        for one, other in zip(trainer.model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_plain_module_in_channels_last_is_saved(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 3)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return SimpleNamespace(logits=self.convolution(pixel_values).mean((2, 3)))

    config = by_sgd.arguments(tmp_path, channels_last=True, max_steps=1)
    rows = examples("resnet", SINGLE)
    trainer = DistillationTrainer(Small(), config, teacher_model=tiny.model("resnet", seed=2), train_dataset=rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert last(trainer.model.convolution.weight)
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_a_model_without_convolutions_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * tiny.IMAGE_SIZE**2, 3)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return SimpleNamespace(logits=self.head(pixel_values.flatten(1)))

    caplog.set_level(logging.INFO, logger="hfdistill")
    rows = examples("resnet", SINGLE)

    def trainer(student: nn.Module, teacher: nn.Module) -> DistillationTrainer:
        config = by_sgd.arguments(tmp_path, channels_last=True)
        return DistillationTrainer(student, config, teacher_model=teacher, train_dataset=rows)

    trainer(Linear(), tiny.model("resnet", seed=2))
    assert any("the student (Linear) has no convolution" in record.message for record in caplog.records)
    with pytest.raises(HfDistillError, match="Linear and Linear has no convolution over pictures"):
        trainer(Linear(), Linear())
