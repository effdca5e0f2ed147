"""The moving average of a student's own weights as its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hfdistill import DistillationTrainer, EmaTeacher, HfDistillError, HiddenStates, Logits, Objective, TaskLoss
from hfdistill.teachers import AverageTeacher
from tests import by_sgd, tiny
from tests.trainer.trajectory import assert_same, examples


def trainer_of(folder: Path, decay: float = 0.5, architecture: str = "vit", **arguments: Any) -> DistillationTrainer:
    student = tiny.model(architecture, layers=1, num_labels=3, seed=1)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    return DistillationTrainer(
        student,
        by_sgd.arguments(folder, alpha=0.5, **{"learning_rate": 0.05, **arguments}),
        teacher_model=EmaTeacher(decay),
        train_dataset=examples(architecture, "single_label_classification"),
    )


def average_of(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    teacher = trainer.teacher
    assert isinstance(teacher, AverageTeacher)
    return dict(teacher.model.named_parameters())


def test_the_average_follows_the_student(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=1)
    start = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    trainer.train()
    name = "classifier.weight"
    expected = start[name]
    # t / (t + 9): 0.1, 2/11, 0.25, all below the decay of 0.5.
    for step, keep in ((1, 0.1), (2, 2 / 11), (3, 0.25)):
        weights = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")[name]
        expected = keep * expected + (1 - keep) * weights
    torch.testing.assert_close(average_of(trainer)[name].detach(), expected)


def test_the_decay_is_a_bound(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, decay=0.0)
    trainer.train()
    for name, own in trainer.model.named_parameters():
        torch.testing.assert_close(average_of(trainer)[name], own, rtol=0, atol=0)


def test_the_student_learns_from_it(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train()
    parts = [row["loss/kd"] for row in trainer.state.log_history if "loss/kd" in row]
    # Dropout makes the two differ from the first step on.
    assert all(part > 1e-4 for part in parts)


def test_statistics_of_batch_normalisation_are_taken_as_they_are(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, architecture="resnet")
    trainer.train()
    assert isinstance(trainer.teacher, AverageTeacher)
    own = dict(trainer.model.named_buffers())
    for name, buffer in trainer.teacher.model.named_buffers():
        torch.testing.assert_close(buffer, own[name], rtol=0, atol=0)


def test_a_resumed_training_goes_on_with_the_same_average(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", max_steps=4)
    whole.train()
    trainer_of(tmp_path / "cut", max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "cut" / "checkpoint-2"
    resumed = trainer_of(tmp_path / "cut", max_steps=4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, value in average_of(whole).items():
        torch.testing.assert_close(average_of(resumed)[name], value, rtol=0, atol=0)
    (checkpoint / "distillation" / "moving_average.safetensors").unlink()
    with pytest.raises(HfDistillError, match="holds no moving average"):
        trainer_of(tmp_path / "cut", max_steps=4).train(resume_from_checkpoint=str(checkpoint))


def test_the_update_does_not_depend_on_how_the_batch_is_cut(tmp_path: Path) -> None:
    seen = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path / str(size), per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=3
        )
        for module in trainer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer.train()
        seen.append({**by_sgd.seen_in(trainer), **{f"average {k}": v for k, v in average_of(trainer).items()}})
    assert_same(*seen)


def test_what_is_saved_is_the_student_alone(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    assert not (tmp_path / "student" / "distillation").exists()
    saved = load_file(tmp_path / "student" / "model.safetensors")
    torch.testing.assert_close(saved["classifier.weight"], trainer.model.classifier.weight.detach())


def test_it_teaches_hidden_states_too(tmp_path: Path) -> None:
    trainer = DistillationTrainer(
        tiny.model("bert", layers=2, num_labels=3, seed=1),
        by_sgd.arguments(tmp_path, learning_rate=0.05),
        teacher_model=EmaTeacher(0.9),
        objective=Objective([TaskLoss(), Logits(), HiddenStates("cosine_distance")]),
        train_dataset=examples("bert", "single_label_classification"),
    )
    trainer.train()
    assert trainer.state.log_history[2]["loss/hidden"] > 0


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0])
def test_a_decay_outside_of_its_domain_is_refused(decay: float) -> None:
    with pytest.raises(HfDistillError, match="0 to below 1"):
        EmaTeacher(decay)
