"""Batches that are wrong: training stops, names the batch and leaves no spoilt checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hfdistill import DistillationTrainer, HfDistillError
from hfdistill.faults import FaultWatch
from tests import tiny
from tests.trainer.test_trainer import SINGLE, config
from tests.trainer.trajectory import examples


def test_nan_teacher_names_the_batch(tmp_path: Path) -> None:
    student, teacher = tiny.model("vit", layers=1, seed=1), tiny.model("vit", seed=2)
    data = examples("vit", SINGLE)
    data[5]["pixel_values"] = torch.full_like(data[5]["pixel_values"], float("nan"))
    arguments = config(tmp_path, save_strategy="steps", save_steps=1)
    arguments.per_device_train_batch_size = 4
    trainer = DistillationTrainer(student, arguments, teacher_model=teacher, train_dataset=data)
    with pytest.raises(HfDistillError, match=r"optimizer step \d, rows \[\d\] of 4") as caught:
        trainer.train()
    step = int(re.findall(r"step (\d)", str(caught.value))[0])
    saved = sorted(int(folder.name.removeprefix("checkpoint-")) for folder in tmp_path.glob("checkpoint-*"))
    assert saved == list(range(1, step))


def test_labels_out_of_range(tmp_path: Path) -> None:
    student, teacher = tiny.model("vit", layers=1, seed=1), tiny.model("vit", seed=2)
    data = examples("vit", SINGLE)
    data[2]["labels"] = torch.tensor(3)
    trainer = DistillationTrainer(student, config(tmp_path), teacher_model=teacher, train_dataset=data)
    with pytest.raises(HfDistillError, match=r"label 3 .* from 0 to 2"):
        trainer.train()


def test_float_labels_for_a_single_label_head(tmp_path: Path) -> None:
    student, teacher = (tiny.model("vit", seed=seed, problem_type=SINGLE) for seed in (1, 2))
    data = examples("vit", SINGLE, unlabelled=False)
    for row in data:
        row["labels"] = row["labels"].float()
    trainer = DistillationTrainer(student, config(tmp_path), teacher_model=teacher, train_dataset=data)
    with pytest.raises(HfDistillError, match="one class index"):
        trainer.train()


def test_loss_of_the_wrong_shape(tmp_path: Path) -> None:
    from hfdistill import Logits, Objective

    student, teacher = tiny.model("vit", seed=1), tiny.model("vit", seed=2)
    objective = Objective([Logits(torch.nn.functional.mse_loss)])
    trainer = DistillationTrainer(student, config(tmp_path), teacher_model=teacher, objective=objective)
    with pytest.raises(HfDistillError, match="one value a row"):
        trainer.compute_loss(trainer.model, tiny.batch("vit"))


def test_labels_are_needed_where_no_term_does_without(tmp_path: Path) -> None:
    from hfdistill import Logits, Objective

    student, teacher = tiny.model("vit", seed=1), tiny.model("vit", seed=2)
    trainer = DistillationTrainer(
        student, config(tmp_path), teacher_model=teacher, objective=Objective([Logits("decoupled_kl")])
    )
    with pytest.raises(HfDistillError, match="batch without labels"):
        trainer.compute_loss(trainer.model, {"pixel_values": tiny.batch("vit")["pixel_values"]})


def test_an_accelerator_remembers_until_it_is_asked() -> None:
    watch = FaultWatch()
    fine, bad = torch.zeros(2, 3, device="meta"), torch.tensor(True)
    watch._remember("teacher", ~bad, 1)
    watch.check()
    watch._remember("teacher", bad, 4)
    watch._remember("teacher", bad, 5)
    assert fine.device.type == "meta"
    with pytest.raises(HfDistillError, match="optimizer step 4"):
        watch.check()


def test_impossible_classes_are_no_fault() -> None:
    logits = torch.tensor([[0.0, float("-inf")]])
    FaultWatch().teacher_logits(logits, "a batch", 1)
