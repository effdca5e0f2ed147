"""An old model as the teacher of a student that learns further classes: compared over the old ones alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hfdistill import DistillationTrainer, EnsembleTeacher, HfDistillError, Logits, MappedTeacher, Objective, TaskLoss
from hfdistill.losses import forward_kl
from tests import by_sgd, tiny
from tests.trainer.trajectory import EXAMPLES, assert_same

OLD, NEW = ["ant", "bee", "cat"], ["dog", "bee", "ant", "cat", "eel"]


def model_of(names: list[str], seed: int) -> nn.Module:
    model = tiny.model("vit", layers=1, num_labels=len(names), seed=seed)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: place for place, name in enumerate(names)}
    return model


def examples() -> list[dict[str, torch.Tensor]]:
    batch = tiny.batch("vit", EXAMPLES, seed=7, num_labels=len(NEW))
    return [{key: value[place] for key, value in batch.items()} for place in range(EXAMPLES)]


def trainer_of(folder: Path, teacher: Any, objective: Objective | None = None, **arguments: Any) -> DistillationTrainer:
    return DistillationTrainer(
        model_of(NEW, seed=1),
        by_sgd.arguments(folder, **{"learning_rate": 0.05, **arguments}),
        teacher_model=teacher,
        objective=objective or Objective([TaskLoss(), Logits(temperature=2.0)]),
        train_dataset=examples(),
    )


def test_the_old_classes_are_compared_and_the_new_ones_learn_from_labels(tmp_path: Path) -> None:
    old = model_of(OLD, seed=2)
    trainer = trainer_of(tmp_path, MappedTeacher(old, unmapped="ignore"), max_steps=1, per_device_train_batch_size=24)
    pixels = torch.stack([example["pixel_values"] for example in examples()])
    labels = torch.stack([example["labels"] for example in examples()])
    with torch.no_grad():
        student, teacher = trainer.model(pixels).logits, old(pixels).logits
    # In the student's order: bee, ant, cat are its classes 1, 2, 3.
    expected = forward_kl(student[:, [1, 2, 3]], teacher[:, [1, 0, 2]], temperature=2.0).mean()
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["loss/kd"] == pytest.approx(float(expected), rel=1e-4)
    assert row["loss/task"] == pytest.approx(float(nn.functional.cross_entropy(student, labels)), rel=1e-4)


def test_some_classes_may_be_mapped_by_hand(tmp_path: Path) -> None:
    teacher = MappedTeacher(model_of(OLD, seed=2), {"eel": "ant", "dog": ["bee", "cat"]}, unmapped="ignore")
    trainer = trainer_of(tmp_path, teacher)
    assert trainer.task.known == (0, 4)
    trainer.train()


def test_the_update_does_not_depend_on_how_the_batch_is_cut(tmp_path: Path) -> None:
    seen = []
    for size, steps in ((8, 1), (2, 4)):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = trainer_of(tmp_path / str(size), MappedTeacher(model_of(OLD, seed=2), unmapped="ignore"), **cut)
        trainer.train()
        seen.append(by_sgd.seen_in(trainer))
    assert_same(*seen)


@pytest.mark.parametrize(
    ("teacher", "objective", "words"),
    [
        (lambda: MappedTeacher(model_of(OLD, 2)), None, "maps no class of the teacher to 'dog'"),
        (lambda: MappedTeacher(model_of(["ant", "fly"], 2), unmapped="ignore"), None, "two or more have to be known"),
        (
            lambda: MappedTeacher(model_of(OLD, 2), unmapped="ignore"),
            Objective([Logits("decoupled_kl")]),
            "loss without labels",
        ),
        (
            lambda: EnsembleTeacher([MappedTeacher(model_of(OLD, 2), unmapped="ignore"), model_of(NEW, 3)]),
            None,
            "such a teacher alone",
        ),
        (lambda: MappedTeacher(model_of(OLD, 2), unmapped="drop"), None, "'refuse' or 'ignore'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    teacher: Any, objective: Objective | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(HfDistillError, match=words):
        trainer_of(tmp_path, teacher(), objective)
