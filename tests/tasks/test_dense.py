"""Segmentation and depth: rows, logits and labels worked by hand, the heads' own losses, and short trainings."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hfdistill import DistillationTrainer
from hfdistill.errors import HfDistillError
from hfdistill.knowledge import Logits, StepContext
from hfdistill.losses import bernoulli_kl, logit_mse
from hfdistill.objective import Objective
from hfdistill.rows import RowCounts
from hfdistill.tasks import TASKS, task_of
from hfdistill.tasks.pixels import scale_invariant_log_error, squared_depth_error
from hfdistill.teachers import Targets
from tests import by_sgd, tiny_dense
from tests.trainer.trajectory import assert_same

SEGMENTATION, DEPTH = TASKS["semantic_segmentation"], TASKS["depth_estimation"]


def value_of(context: StepContext, term: Any) -> float:
    """A term's part of a batch that is a whole step."""
    counts = RowCounts.of([context.rows], torch.device("cpu"))
    return Objective([term])(context, counts)[1][term.name].item()


def test_segmentation_by_hand() -> None:
    """Two pictures of one pixel against label maps of two; the second teacher has four pixels."""
    a, b = math.log(3.0), math.log(7.0)
    logits = torch.tensor([[0.0, a], [0.0, b]]).reshape(2, 2, 1, 1)
    labels = torch.tensor([[[1, 255]], [[0, -100]]])
    inputs = {"pixel_values": torch.zeros(2, 3, 4, 4), "labels": labels}
    rows = SEGMENTATION.rows(inputs)
    assert (rows.every.size, len(rows.labelled)) == (2, 4)
    assert rows.labelled.count(labels.device) == 2
    student = SEGMENTATION.logits({"logits": logits}, inputs)
    assert student.shape == (2, 1, 1, 2)
    values = SEGMENTATION.label_values(student, rows, 0.0, None)
    # Pixels 0 and 2 count: -log(3/4) and -log(1/8); the logits of one pixel stand for both of the map.
    assert rows.labelled.total(values).item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 8))

    teacher = torch.zeros(2, 2, 2, 2)
    teacher[0, 1] = torch.tensor([[0.0, a], [a, 2 * a]])  # its bilinear mean is a: what the student says
    matched = SEGMENTATION.matched(SEGMENTATION.logits({"logits": teacher}, inputs), student)
    torch.testing.assert_close(matched[0], student[0])
    context = StepContext(student, Targets(matched), rows, SEGMENTATION)
    # KL of a fair coin to one of 1/8, and 0 for the first picture; the mean over two.
    expected = (0.5 * math.log(0.5 / (1 / 8)) + 0.5 * math.log(0.5 / (7 / 8))) / 2
    assert value_of(context, Logits(temperature=1.0)) == pytest.approx(expected, rel=1e-5)


def test_the_ignored_label_is_the_configs_own() -> None:
    student = tiny_dense.model("segformer")
    student.config.semantic_loss_ignore_index = 2
    labels = torch.tensor([[[0, 1], [2, 255]]])
    rows = task_of(student).bound(student).rows({"pixel_values": torch.zeros(1, 3, 4, 4), "labels": labels})
    assert rows.labelled.valid is not None
    assert rows.labelled.valid.tolist() == [True, True, False, True]


def test_depth_by_hand() -> None:
    """Pixels at 0 or NaN do not count, and a picture without any other has no label."""
    labels = torch.tensor([[[1.0, 0.0], [4.0, float("nan")]], [[0.0, 0.0], [0.0, float("inf")]]])
    inputs = {"pixel_values": torch.zeros(2, 3, 4, 4), "labels": labels}
    depths = torch.tensor([[[2.0, 9.0], [2.0, 9.0]], [[1.0, 1.0], [1.0, 1.0]]])
    rows = DEPTH.rows(inputs)
    assert rows.labelled.valid is not None and rows.labels is not None
    assert rows.labelled.valid.tolist() == [True, False]
    student = DEPTH.logits({"predicted_depth": depths}, inputs)
    assert student.shape == (2, 2, 2, 1)
    values = DEPTH.label_values(student, rows, 0.0, None)
    assert values[0].item() == pytest.approx((1 + 4) / 2)
    # log(1/2) and log(2): their mean is 0, so the scale-invariant error is log 2.
    assert scale_invariant_log_error(depths, rows.labels, 0.0)[0].item() == pytest.approx(math.log(2))
    assert squared_depth_error(depths, rows.labels, 0.0).isfinite().all()
    context = StepContext(student, Targets(student + 2), rows, DEPTH)
    assert value_of(context, Logits(logit_mse)) == pytest.approx(4.0)


def test_a_perfect_depth_has_a_gradient() -> None:
    """The root in the scale-invariant error has no slope at 0, where a picture without labels is too."""
    depths = torch.ones(2, 2, 2, requires_grad=True)
    scale_invariant_log_error(depths, torch.tensor([1.0, 0.0])[:, None, None].expand(2, 2, 2), 0.0).sum().backward()
    assert depths.grad is not None and not depths.grad.any()


@pytest.mark.parametrize("head", ["segformer", "beit", "glpn"])
def test_the_task_loss_is_the_heads_own(head: str) -> None:
    """GLPN pools the pixels of a batch, so that it agrees for one picture."""
    student, batch = tiny_dense.model(head), tiny_dense.batch(head, 1 if head == "glpn" else 4)
    task = task_of(student).bound(student)
    own = student(**batch).loss
    own.backward()
    reached = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    gradient = {name: parameter.grad.clone() for name, parameter in student.named_parameters() if name in reached}
    student.zero_grad()
    outputs = student(**(batch if task.loss_inside else {"pixel_values": batch["pixel_values"]}))
    rows = task.rows(batch)
    values = task.label_values(task.logits(outputs, batch), rows, 0.0, outputs.get("loss"))
    ours = rows.labelled.total(values) / rows.labelled.count(values.device)
    ours.backward()
    assert ours.item() == pytest.approx(own.item(), rel=1e-5)
    for name in reached:
        torch.testing.assert_close(student.get_parameter(name).grad, gradient[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("head", ["segformer", "beit", "dpt", "glpn"])
def test_the_update_does_not_depend_on_the_cut(head: str, tmp_path: Path) -> None:
    whole = tiny_dense.trajectory(head, tmp_path)
    cut = tiny_dense.trajectory(head, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(whole, cut)


def test_the_auxiliary_head_of_a_student_is_trained(tmp_path: Path) -> None:
    """It shows in no output, and the loss of a micro-batch in which no pixel counts is NaN inside the model."""
    job = tiny_dense.trainer("beit", tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    job.train_dataset[1]["labels"].fill_(tiny_dense.IGNORED)
    before = {name: value.clone() for name, value in job.model.named_parameters() if "auxiliary_head" in name}
    job.train()
    assert before
    for name, value in job.model.named_parameters():
        assert value.isfinite().all()
        assert name not in before or not torch.equal(value, before[name])


@pytest.mark.parametrize("head", ["segformer", "beit", "glpn"])
def test_evaluation_and_prediction(head: str, tmp_path: Path) -> None:
    teacher = tiny_dense.model(head, seed=2)
    job = tiny_dense.trainer(head, tmp_path, copy.deepcopy(teacher), teacher)
    seen = []
    job.compute_metrics = lambda prediction: seen.append((prediction.predictions, prediction.label_ids)) or {}
    scores = job.evaluate()
    assert scores["eval_loss/kd"] == pytest.approx(0, abs=1e-6)
    assert scores["eval_loss/task"] > 0
    batch = tiny_dense.batch(head)
    with torch.no_grad():
        expected = teacher.eval()(batch["pixel_values"])[0]
    predictions, labels = seen[0]
    torch.testing.assert_close(torch.from_numpy(predictions), expected, rtol=1e-4, atol=1e-5)
    assert labels.shape == batch["labels"].shape
    unlabelled = [{"pixel_values": picture} for picture in batch["pixel_values"]]
    assert job.predict(unlabelled).predictions.shape == expected.shape


def test_a_teacher_at_another_resolution_with_more_classes(tmp_path: Path) -> None:
    """BEiT gives four times as many pixels as SegFormer; its classes are matched by name."""
    names = ["sky", "road", "tree", "car"]
    student, teacher = tiny_dense.model("segformer"), tiny_dense.model("beit", num_labels=4)
    student.config.id2label = dict(enumerate(["tree", "sky", "road"]))
    teacher.config.id2label = dict(enumerate(names))
    job = tiny_dense.trainer("segformer", tmp_path, student, teacher)
    job.train()
    assert job.state.log_history[0]["loss/kd"] > 0


def test_a_teachers_auxiliary_head_may_be_untrained(tmp_path: Path) -> None:
    tiny_dense.model("beit", seed=2, use_auxiliary_head=False).save_pretrained(tmp_path / "teacher")
    teacher = type(tiny_dense.model("beit")).from_pretrained(tmp_path / "teacher", use_auxiliary_head=True)
    tiny_dense.trainer("beit", tmp_path, teacher=teacher)


def test_one_class_is_a_yes_or_no(tmp_path: Path) -> None:
    student = tiny_dense.model("segformer", num_labels=1)
    task = task_of(student).bound(student)
    assert task.default_loss is bernoulli_kl
    labels = torch.tensor([[[0, 1], [1, 255]]])
    batch = {"pixel_values": torch.zeros(1, 3, 4, 4), "labels": labels}
    rows = task.rows(batch)
    values = task.label_values(torch.zeros(1, 2, 2, 1), rows, 0.0, None)
    assert rows.labelled.total(values).item() == pytest.approx(3 * math.log(2))
    job = tiny_dense.trainer("segformer", tmp_path, student, tiny_dense.model("segformer", 2, num_labels=1))
    for row in job.train_dataset:
        row["labels"] = row["labels"].clamp(max=1)
    job.train()


def test_a_module_of_ones_own_needs_the_name_of_the_task(tmp_path: Path) -> None:
    row = replace(SEGMENTATION, name="mine")
    assert row.bound(nn.Conv2d(3, 3, 1)) is row


PIXELS = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        ("segformer", torch.zeros(2, 4, 4), r"type torch.float32 .* a class index"),
        ("segformer", torch.zeros(2, 16, dtype=torch.long), r"shape \(2, 16\) .* \(examples, height, width\)"),
        ("segformer", torch.zeros(1, 4, 4, dtype=torch.long), r"for 2 examples"),
        ("beit", torch.full((2, 4, 4), -100), r"label -100 .* auxiliary head; expected 255"),
        ("beit", torch.full((2, 4, 4), 3), r"label 3; expected class indices from 0 to 2, or 255"),
        ("dpt", torch.ones(2, 16), r"shape \(2, 16\) .* a depth for each pixel"),
    ],
    ids=["floats", "flat", "too few", "unlabelled", "outside", "flat depths"],
)
def test_labels_that_do_not_fit_are_named(head: str, labels: torch.Tensor, message: str) -> None:
    student = tiny_dense.model(head)
    with pytest.raises(HfDistillError, match=message):
        task_of(student).bound(student).rows({"pixel_values": PIXELS, "labels": labels})


def test_labels_out_of_range_stop_the_training(tmp_path: Path) -> None:
    job = tiny_dense.trainer("segformer", tmp_path)
    job.train_dataset[3]["labels"][0, 0] = 7
    with pytest.raises(HfDistillError, match=r"label 7 .* from 0 to 2"):
        job.train()


def test_a_loss_that_needs_the_label_of_each_row_is_refused() -> None:
    with pytest.raises(HfDistillError, match="labels of semantic_segmentation are of other rows"):
        Objective([Logits("decoupled_kl")]).check(tiny_dense.CLASSES, SEGMENTATION)


def test_a_softmax_over_depths_is_refused_at_once(tmp_path: Path) -> None:
    """One number a pixel has no distribution, whatever num_labels says."""
    student, teacher = tiny_dense.model("glpn", seed=1), tiny_dense.model("glpn", seed=2)
    for loss in ("forward_kl", "dist"):
        with pytest.raises(HfDistillError, match=rf"{loss} got 1 class\(es\)"):
            DistillationTrainer(
                student, by_sgd.arguments(tmp_path), teacher_model=teacher, objective=Objective([Logits(loss)])
            )
