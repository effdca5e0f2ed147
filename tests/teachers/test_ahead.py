"""A teacher that is asked a micro-batch ahead teaches the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hfdistill import (
    Attentions,
    CachedTeacher,
    DistillationTrainer,
    EmaTeacher,
    EnsembleTeacher,
    HfDistillError,
    HiddenStates,
    Logits,
    Objective,
    TaskLoss,
)
from hfdistill.teachers import Targets
from hfdistill.teachers.ahead import Ahead, tensors_of
from hfdistill.teachers.mixture import Mixture
from hfdistill.teachers.targets import Said
from tests import by_sgd, tiny
from tests.tasks import trajectory as of_tokens
from tests.teachers.test_forward import SINGLE, trained
from tests.trainer.trajectory import assert_same, examples, models

CUT: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


def insides() -> Objective:
    return Objective([TaskLoss(0.5), Logits(), HiddenStates(), Attentions("attention_map_kl")])


@pytest.mark.parametrize("cut", [{}, CUT], ids=["whole batches", "micro-batches"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_it_is_the_same_training(architecture: str, cut: dict[str, Any], tmp_path: Path) -> None:
    _, plain = trained(architecture, tmp_path, **cut)
    _, ahead = trained(architecture, tmp_path, teacher_prefetch=True, **cut)
    assert_same(plain, ahead)


def test_with_an_evaluation_after_each_step_and_over_several_epochs(tmp_path: Path) -> None:
    """An evaluation asks for itself; a new epoch begins with a batch that nobody has asked about."""
    options: dict[str, Any] = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 1}

    def run(**arguments: Any) -> dict[str, torch.Tensor]:
        student, teacher = models("bert", SINGLE)
        trainer = DistillationTrainer(
            student,
            by_sgd.arguments(tmp_path, **options, **arguments),
            teacher_model=teacher,
            train_dataset=examples("bert", SINGLE),
            eval_dataset=examples("bert", SINGLE)[:5],  # type: ignore[arg-type]
        )
        trainer.train()
        evaluated = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
        assert len(evaluated) == 8
        return by_sgd.seen_in(trainer) | {"evaluated": torch.tensor(evaluated)}

    assert_same(run(), run(teacher_prefetch=True))


@pytest.mark.parametrize("head", ["llama", "t5", "bert_spans"])
@pytest.mark.parametrize("fused", [False, True])
def test_heads_over_tokens(head: str, fused: bool, tmp_path: Path) -> None:
    if fused and head == "bert_spans":
        pytest.skip("no head over a vocabulary")
    _, plain = of_tokens.trained(head, tmp_path)
    _, ahead = of_tokens.trained(head, tmp_path, teacher_prefetch=True, fused_head=fused)
    assert_same(plain, ahead)


@pytest.mark.parametrize(
    ("teacher", "objective"),
    [
        (lambda: EnsembleTeacher([tiny.model("bert", seed=seed) for seed in (2, 3)], weights=[1, 3]), None),
        (lambda: EnsembleTeacher([tiny.model("bert", seed=seed) for seed in (2, 3)], confidence=True), None),
        (lambda: models("bert", SINGLE)[1], insides),
    ],
    ids=["ensemble", "by confidence", "insides"],
)
def test_several_teachers_and_their_insides(
    teacher: Callable[[], Any], objective: Callable[[], Objective] | None, tmp_path: Path
) -> None:
    def run(**arguments: Any) -> dict[str, torch.Tensor]:
        terms = None if objective is None else objective()
        return trained("bert", tmp_path, teacher=teacher(), objective=terms, **arguments)[1]

    assert_same(run(), run(teacher_prefetch=True))


class Noted(nn.Module):
    """A model that notes when it is asked."""

    def __init__(self, model: nn.Module, role: str, notes: list[str]) -> None:
        super().__init__()
        self.model, self.role, self.notes = model, role, notes
        self.config = model.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.notes.append(self.role)
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


def test_the_teacher_is_one_micro_batch_ahead(tmp_path: Path) -> None:
    """Also from one optimizer step to the next; at the end of the data it has nothing more to say."""
    student, teacher = models("bert", SINGLE)
    notes: list[str] = []
    trainer = DistillationTrainer(
        Noted(student, "student", notes),
        by_sgd.arguments(tmp_path, teacher_prefetch=True, **CUT),
        teacher_model=Noted(teacher, "teacher", notes),
        train_dataset=examples("bert", SINGLE),
        task="single_label_classification",
    )
    notes.clear()
    trainer.train()
    assert notes == ["teacher", *["teacher", "student"] * 11, "student"]


def test_a_training_that_is_left_in_an_epoch_begins_anew(tmp_path: Path) -> None:
    """What was drawn from another epoch is not taken for this one's."""
    asked: list[int] = []

    def ask(batch: Any) -> Targets:
        asked.append(batch["number"])
        return Targets(torch.tensor([batch["number"]]))

    ahead = Ahead(ask, torch.device("cpu"))
    first = iter([{"number": number} for number in range(5)])
    given = ahead.batches(first, 2)
    for batch in given:
        with ahead.of(batch):
            present = ahead.present()
            assert present is not None
            assert present.targets is not None
            assert present.targets.logits == batch["number"]
    assert asked == [0, 1, 2]
    assert ahead.present() is None
    second = iter([{"number": number} for number in range(10, 13)])
    (batch,) = ahead.batches(second, 1)
    with ahead.of(batch):
        present = ahead.present()
        assert present is not None
        assert present.targets is not None
        assert present.targets.logits == 10
    assert asked == [0, 1, 2, 10, 11]
    assert [each["number"] for each in ahead.batches(second, 9)] == [11, 12]


def test_all_tensors_of_targets_are_found() -> None:
    """A tensor that another stream does not know of could be overwritten while it is read."""
    logits, one, field = torch.ones(2), torch.ones(3), torch.ones(4)
    targets = Targets(logits, {"field": field}, mixture=Mixture([one], torch.ones(1)), said=(Said("a", one),))
    found = {id(tensor) for tensor in tensors_of(targets)}
    assert {id(logits), id(one), id(field)} <= found
    assert list(tensors_of(None)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_stream_of_its_own(tmp_path: Path) -> None:
    _, plain = trained("bert", tmp_path, use_cpu=False, **CUT)
    _, ahead = trained("bert", tmp_path, use_cpu=False, teacher_prefetch=True, **CUT)
    assert_same(plain, ahead)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (lambda folder: EmaTeacher(), "teacher_prefetch came beside EmaTeacher"),
        (
            lambda folder: CachedTeacher(folder / "cache", tiny.model("bert", seed=2)),
            "teacher_prefetch came beside a StoredTeacher",
        ),
    ],
)
def test_teachers_that_are_no_models_standing_still_are_refused(
    teacher: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(HfDistillError, match=said):
        trained("bert", tmp_path, teacher=teacher(tmp_path), teacher_prefetch=True)


def test_a_teacher_in_pieces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="teacher_prefetch came beside teacher_sharded"):
        by_sgd.arguments(tmp_path, teacher_prefetch=True, teacher_sharded=True)
