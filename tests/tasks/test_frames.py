"""Transcripts and classes of frames: rows, logits and labels worked by hand, the heads' own losses, short trainings."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hfdistill.errors import HfDistillError
from hfdistill.knowledge import Logits, StepContext
from hfdistill.losses import bernoulli_kl
from hfdistill.objective import Objective
from hfdistill.rows import RowCounts
from hfdistill.tasks import TASKS, task_of
from hfdistill.tasks.frames import Frames, Transcripts
from hfdistill.teachers import Targets
from tests import tiny_dense
from tests.trainer.trajectory import assert_same

# Two samples make a frame: sounds of 4 and 2 samples are 2 frames and 1.
SOUNDS = {"input_values": torch.zeros(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}


def halved(samples: torch.Tensor) -> torch.Tensor:
    """Frames of so many samples."""
    return samples // 2


CTC = replace(TASKS["ctc"], layout=Transcripts(lengths=halved))
FRAMES = replace(TASKS["audio_frame_classification"], layout=Frames(lengths=halved))


def test_a_transcript_by_hand() -> None:
    """Of two frames, "1" is heard as 1 1, 1 blank, or blank 1; of one frame, as 1."""
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]], [[0.1, 0.3, 0.6], [0.9, 0.05, 0.05]]])
    inputs = {**SOUNDS, "labels": torch.tensor([[1, -100], [2, -100]])}
    rows = CTC.rows(inputs)
    assert rows.every.valid is not None
    assert rows.every.valid.tolist() == [True, True, True, False]
    assert len(rows.labelled) == 2
    values = CTC.label_values(CTC.logits({"logits": probabilities.log()}, inputs), rows, 0.0, None)
    heard = 0.25 * 0.6 + 0.25 * 0.2 + 0.5 * 0.6
    torch.testing.assert_close(values, -torch.tensor([heard, 0.6]).log())

    # The last frame is padding: what the teacher says there does not count.
    teacher = probabilities.log().clone()
    teacher[1, 1] = torch.tensor([0.0, 5.0, 0.0])
    teacher[1, 0] = torch.zeros(3)
    context = StepContext(probabilities.log(), Targets(teacher), rows, CTC)
    part = Objective([Logits(temperature=1.0)])(context, RowCounts.of([rows], torch.device("cpu")))[1]["kd"]
    expected = -sum(math.log(3 * p) for p in (0.1, 0.3, 0.6)) / 3
    assert part.item() == pytest.approx(expected / 3, rel=1e-5)


def test_what_is_no_label() -> None:
    """-100 alone is no label, blanks alone are silence; both are left out within a transcript."""
    labels = torch.tensor([[-100, -100, -100], [0, -100, -100], [-100, 2, 0]])
    rows = CTC.rows({"input_values": torch.zeros(3, 4), "labels": labels})
    assert rows.labelled.valid is not None
    assert rows.labelled.valid.tolist() == [False, True, True]
    values = CTC.label_values(torch.zeros(3, 2, 4), rows, 0.0, None)
    # Silence is blank twice; "2" has three alignments of probability 1/16.
    torch.testing.assert_close(values[1:], torch.tensor([math.log(16), math.log(16 / 3)]))


def test_an_impossible_transcript() -> None:
    """Two tokens in one frame, or the same one twice in two: no label, or 0 where the config says so, and no NaN."""
    inputs = {**SOUNDS, "labels": torch.tensor([[1, 1], [1, 2]])}
    rows = CTC.rows(inputs)
    assert rows.labelled.count(torch.device("cpu")) == 0
    assert CTC.rows({**SOUNDS, "labels": torch.tensor([[1, 2], [1, 0]])}).labelled.count(torch.device("cpu")) == 2
    counted = replace(CTC, layout=replace(CTC.layout, zero_infinity=True))
    assert counted.rows(inputs).labelled.count(torch.device("cpu")) == 2
    logits = torch.zeros(2, 2, 4, requires_grad=True)
    values = CTC.label_values(logits, rows, 0.0, None)
    values.sum().backward()
    assert logits.grad is not None
    assert not values.any() and not logits.grad.any()


def test_frame_classes_by_hand() -> None:
    """Indices or a number for each class; frames of padding and those labelled -100 do not count."""
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]], [[math.log(7.0), 0.0], [9.0, 0.0]]])
    indices = torch.tensor([[1, -100], [1, 0]])
    one_hot = functional.one_hot(indices.clamp(min=0), 2).masked_fill((indices < 0)[..., None], -100)
    for labels in (indices, one_hot, one_hot.float()):
        inputs = {**SOUNDS, "labels": labels}
        rows = FRAMES.rows(inputs)
        assert rows.labelled.valid is not None
        assert rows.labelled.valid.tolist() == [True, False, True, False]
        values = FRAMES.label_values(FRAMES.logits({"logits": logits}, inputs), rows, 0.0, None)
        assert rows.labelled.total(values).item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 8))
        assert rows.every.count(values.device) == 3


def test_several_classes_of_a_frame_at_once() -> None:
    student = tiny_dense.model("frames", problem_type="multi_label_classification")
    task = task_of(student).bound(student)
    assert task.default_loss is bernoulli_kl
    labels = torch.tensor([[[1.0, 1.0, 0.0]] * 8 + [[float("nan")] * 3]])
    rows = task.rows({"input_values": torch.zeros(1, tiny_dense.SAMPLES), "labels": labels})
    values = task.label_values(torch.tensor([2.0, 2.0, -2.0]).expand(1, 9, 3), rows, 0.0, None)
    assert rows.labelled.total(values).item() == pytest.approx(8 * math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_task_loss_is_the_heads_own_transcript_loss(reduction: str) -> None:
    """The mean of a head that takes the mean; a sum is divided by the examples."""
    student, batch = tiny_dense.model("ctc", ctc_loss_reduction=reduction), tiny_dense.batch("ctc", 4)
    task = task_of(student).bound(student)
    outputs = student(**batch)
    outputs.loss.backward()
    gradient = student.lm_head.weight.grad.clone()
    student.zero_grad()
    rows = task.rows(batch)
    logits = task.logits(student(batch["input_values"], batch["attention_mask"]), batch)
    ours = rows.labelled.total(task.label_values(logits, rows, 0.0, None)) / rows.labelled.count(logits.device)
    ours.backward()
    examples = 4 if reduction == "sum" else 1
    assert ours.item() * examples == pytest.approx(outputs.loss.item(), rel=1e-5)
    torch.testing.assert_close(student.lm_head.weight.grad * examples, gradient, rtol=1e-4, atol=1e-6)


def test_the_task_loss_is_the_heads_own_frame_loss() -> None:
    """Where nothing is padded: Transformers counts the frames of padding too."""
    student, batch = tiny_dense.model("frames"), tiny_dense.batch("frames", 2)
    task = task_of(student).bound(student)
    outputs = student(**batch)
    rows = task.rows(batch)
    values = task.label_values(outputs.logits, rows, 0.0, None)
    assert rows.labelled.total(values).item() / 18 == pytest.approx(outputs.loss.item(), rel=1e-5)


@pytest.mark.parametrize("head", ["ctc", "frames"])
def test_the_update_does_not_depend_on_the_cut(head: str, tmp_path: Path) -> None:
    whole = tiny_dense.trajectory(head, tmp_path)
    cut = tiny_dense.trajectory(head, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(whole, cut)


@pytest.mark.parametrize("head", ["ctc", "frames"])
def test_padding_adds_nothing(head: str, tmp_path: Path) -> None:
    job = tiny_dense.trainer(head, tmp_path)
    plain = tiny_dense.batch(head)
    more = {name: functional.pad(plain[name], (0, 8)) for name in ("input_values", "attention_mask")}
    labels = plain["labels"] if head == "ctc" else functional.pad(plain["labels"], (0, 0, 0, 2))
    parts = []
    for batch in (plain, {**more, "labels": labels}):
        with torch.no_grad():
            _, context = job.outputs_and_context(job.model, batch)
            parts.append(job.distillation_objective(context, RowCounts.of([context.rows], torch.device("cpu")))[1])
    for name in ("task", "kd"):
        torch.testing.assert_close(parts[0][name], parts[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["ctc", "frames"])
def test_evaluation_and_prediction(head: str, tmp_path: Path) -> None:
    teacher = tiny_dense.model(head, seed=2)
    job = tiny_dense.trainer(head, tmp_path, copy.deepcopy(teacher), teacher)
    scores = job.evaluate()
    assert scores["eval_loss/kd"] == pytest.approx(0, abs=1e-6)
    assert scores["eval_loss/task"] > 0
    batch = tiny_dense.batch(head)
    predicted = job.predict(job.eval_dataset)
    with torch.no_grad():
        expected = teacher.eval()(batch["input_values"], batch["attention_mask"]).logits
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), expected, rtol=1e-4, atol=1e-5)
    assert predicted.label_ids.shape == batch["labels"].shape
    unlabelled = [{key: value for key, value in row.items() if key != "labels"} for row in job.eval_dataset]
    assert job.predict(unlabelled).predictions.shape == expected.shape


@pytest.mark.parametrize("head", ["ctc", "frames"])
def test_a_teacher_with_other_frames_is_named(head: str, tmp_path: Path) -> None:
    job = tiny_dense.trainer(head, tmp_path, teacher=tiny_dense.model(head, seed=2, conv_stride=(2, 1)))
    with pytest.raises(HfDistillError, match=r"teacher gives 17 frames .* the student 9 for .*conv_stride"):
        job.train()


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (CTC, torch.zeros(2, 3), r"type torch.float32 .* tokens of a transcript \(integers\)"),
        (CTC, torch.zeros(6, dtype=torch.long), r"shape \(6,\)"),
        (CTC, torch.zeros(3, 2, dtype=torch.long), r"for 2 examples"),
        (FRAMES, torch.zeros(2, 2), r"type torch.float32 .* a class index \(an integer\) for each frame"),
        (FRAMES, torch.zeros(2, 4, dtype=torch.long), r"shape \(2, 4\) .* 2 frames for each of 2 examples"),
        (FRAMES, torch.zeros(2, dtype=torch.long), r"shape \(2,\)"),
    ],
    ids=["float tokens", "flat", "too many", "float classes", "samples", "one an example"],
)
def test_labels_that_do_not_fit_are_named(task: Any, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(HfDistillError, match=message):
        task.rows({**SOUNDS, "labels": labels})


@pytest.mark.parametrize(("head", "beyond"), [("ctc", tiny_dense.TOKENS), ("frames", tiny_dense.CLASSES)])
def test_labels_out_of_range_stop_the_training(head: str, beyond: int, tmp_path: Path) -> None:
    job = tiny_dense.trainer(head, tmp_path)
    for row in job.train_dataset:
        row["labels"] = row["labels"].argmax(-1) if head == "frames" else row["labels"]
    job.train_dataset[3]["labels"][0] = beyond
    with pytest.raises(HfDistillError, match=f"label {beyond} .* from 0 to {beyond - 1}"):
        job.train()


def test_models_that_do_not_tell_enough_are_named() -> None:
    with pytest.raises(HfDistillError, match="Linear does not tell how many frames"):
        TASKS["ctc"].bound(nn.Linear(1, 1))
    with pytest.raises(HfDistillError, match="does not know how many frames"):
        TASKS["ctc"].rows(SOUNDS)
    student = tiny_dense.model("ctc")
    student.config.pad_token_id = None
    with pytest.raises(HfDistillError, match="Wav2Vec2ForCTC has no pad_token_id"):
        task_of(student).bound(student)
    assert CTC.bound(nn.Linear(1, 1)) == CTC
