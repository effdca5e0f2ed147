"""The student's own base as its teacher: one model in memory, and a student that is as it was after each question."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hfdistill import DistillationTrainer, HfDistillError, Objective, OwnBase, TaskLoss
from hfdistill.teachers import OwnBaseTeacher
from hfdistill.teachers.own_base import base_of
from tests import tiny
from tests.by_sgd import seen_in
from tests.trainer.adapter_runs import KINDS, batch, loaded, lora, run, saved


def stirred(student: peft.PeftModel) -> peft.PeftModel:
    """The student with adapters that say something of their own."""
    with torch.no_grad():
        for name, value in student.named_parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    return student


def settings(student: nn.Module) -> list[bool]:
    """Each module's mode, and whether each parameter learns."""
    modes = [module.training for module in student.modules()]
    return [*modes, *(parameter.requires_grad for parameter in student.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_those_of_the_base_and_the_student_stays_as_it_was(kind: str, tmp_path: Path) -> None:
    base = loaded(kind, saved(kind, tmp_path / "base", layers=2))
    options = {} if kind == "llama" else {"modules_to_save": ["classifier"]}
    student = stirred(peft.get_peft_model(loaded(kind, tmp_path / "base"), lora(kind, lora_dropout=0.5, **options)))
    # As with checkpointing: from the embeddings on everything would ask for a gradient.
    student.get_base_model().enable_input_require_grads()
    student.train()
    next(iter(student.get_base_model().modules())).training = False
    first = next(value for value in student.parameters() if value.requires_grad)
    first.requires_grad_(False)
    before = settings(student)
    logits = OwnBaseTeacher(lambda: student)(batch(kind)).logits
    assert not logits.requires_grad
    with torch.no_grad():
        assert torch.equal(logits, base.eval()(**batch(kind)).logits)
        assert not torch.equal(logits, student(**batch(kind)).logits)
    assert settings(student) == before
    with pytest.raises(KeyError), base_of(student):
        raise KeyError
    assert settings(student) == before
    assert student.get_model_status().enabled is True


def test_dropout_does_not_reach_the_targets(tmp_path: Path) -> None:
    saved("bert", tmp_path / "base")
    base = loaded("bert", tmp_path / "base", hidden_dropout_prob=0.5)
    student = peft.get_peft_model(base, lora("bert")).train()
    teacher = OwnBaseTeacher(lambda: student)
    assert torch.equal(teacher(batch("bert")).logits, teacher(batch("bert")).logits)
    assert not torch.equal(student(**batch("bert")).logits, student(**batch("bert")).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_like_a_copy_of_the_base_from_zero_on(kind: str, tmp_path: Path) -> None:
    own = run(kind, tmp_path, lora(kind), teacher=OwnBase())
    copy = run(kind, tmp_path, lora(kind), teacher=loaded(kind, saved(kind, tmp_path / "base")))
    own.train()
    copy.train()
    one, other = seen_in(own), seen_in(copy)
    assert one["step 1 loss/kd"] == 0
    assert one["step 3 loss/kd"] > 1e-6
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_memory_holds_one_model(tmp_path: Path) -> None:
    saved("bert", tmp_path / "base")
    # What is there now is not looked at again.
    gc.freeze()
    try:
        trainer = run("bert", tmp_path, lora("bert"), teacher=OwnBase(), max_steps=1)
        trainer.train()
        # By type: isinstance asks every object for its class, and some warn of that.
        made = {id(each) for each in gc.get_objects() if issubclass(type(each), PreTrainedModel)}
    finally:
        gc.unfreeze()
    base = trainer.model.get_base_model()
    # The model with its head, and the body in it.
    assert made == {id(base), id(base.bert)}
    assert trainer.teacher.student() is trainer.model
    assert trainer.teacher_name == str(tmp_path / "base")


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def gradients(trainer: DistillationTrainer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of two micro-batches, for what learns."""
    trainer.model.zero_grad()
    for rows in (batch("bert"), batch("bert", rows=6)):
        labels = torch.zeros(len(rows["input_ids"]), dtype=torch.long)
        trainer.compute_loss(model, {**rows, "labels": labels}).backward()
    return {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.grad is not None}


@pytest.mark.usefixtures("one_process")
def test_a_wrapped_student_learns_the_same(tmp_path: Path) -> None:
    trainer = run("bert", tmp_path, lora("bert"), teacher=OwnBase())
    stirred(trainer.model)
    plain = gradients(trainer, trainer.model)
    wrapped = gradients(trainer, DistributedDataParallel(trainer.model, find_unused_parameters=True))
    assert plain.keys() == wrapped.keys() != set()
    for name, value in plain.items():
        torch.testing.assert_close(wrapped[name], value)
        assert value.abs().sum() > 0, name


def test_a_control_asks_no_base(tmp_path: Path) -> None:
    trainer = run("bert", tmp_path, lora("bert"), teacher=OwnBase())
    control = DistillationTrainer(
        loaded("bert", tmp_path / "base"),
        trainer.args,
        teacher_model=OwnBase(),
        objective=Objective([TaskLoss()]),
        train_dataset=trainer.train_dataset,
    )
    assert control.teacher is None


def test_a_base_that_cannot_teach_is_refused(tmp_path: Path) -> None:
    body = loaded("bert", saved("bert", tmp_path / "base")).bert
    body.save_pretrained(tmp_path / "body")
    with pytest.raises(HfDistillError, match="no adapters; expected a student whose base stays"):
        run("bert", tmp_path, teacher=OwnBase())
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body")
    with pytest.raises(HfDistillError, match=r"classifier\.original_module\.bias' came from no checkpoint"):
        run("bert", tmp_path, lora("bert"), student=student, teacher=OwnBase())
    with pytest.raises(HfDistillError, match="learns along with the adapters"):
        run("bert", tmp_path, lora("bert", bias="all"), teacher=OwnBase())
    with pytest.raises(HfDistillError, match="init_lora_weights='pissa' takes a part"):
        run("bert", tmp_path, lora("bert", init_lora_weights="pissa"), teacher=OwnBase())
    resnet = tiny.model("resnet", layers=1)
    with pytest.raises(HfDistillError, match="running statistics"):
        run("vit", tmp_path, lora("vit", target_modules=["convolution"]), student=resnet, teacher=OwnBase())


def test_a_prefix_is_left_out_too(tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    student = peft.get_peft_model(loaded("llama", saved("llama", tmp_path / "base")), config).train()
    before = settings(student)
    with torch.no_grad():
        expected = loaded("llama", tmp_path / "base").eval()(**batch("llama")).logits
        assert not torch.equal(student(**batch("llama")).logits, expected)
    torch.testing.assert_close(OwnBaseTeacher(lambda: student)(batch("llama")).logits, expected)
    assert settings(student) == before
    assert not torch.equal(student(**batch("llama")).logits, expected)
