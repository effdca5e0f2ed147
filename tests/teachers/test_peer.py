"""Two students that learn from each other in one optimizer step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback

from hfdistill import DistillationTrainer, HfDistillError, HiddenStates, Logits, Objective, Peer, TaskLoss
from hfdistill.losses import forward_kl
from hfdistill.teachers import PeerTeacher
from tests import tiny
from tests.teachers.peers import batch_of, make, seen_of, trained
from tests.trainer.trajectory import assert_same, examples

ROOT = Path(__file__).parents[2]


def squared(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """A loss that would let a gradient through to the teacher."""
    return (student - teacher).square().mean(1)


def softened(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The default loss."""
    return forward_kl(student, teacher, temperature=3.0)


@pytest.mark.parametrize("loss", [squared, softened])
def test_one_step_is_the_sum_of_both_objectives(loss: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    """By hand: each model's cross-entropy and its distance from the other, which stands still for it."""
    student, peer = make("bert")
    rows = examples("bert", "single_label_classification", unlabelled=False)[:8]
    batch = batch_of(rows)
    labels = batch.pop("labels")
    parts: dict[str, float] = {"loss": 0.0}
    gradients = {}
    logits = {"": student(**batch).logits, "peer/": peer(**batch).logits}
    for prefix, own, other, model in (("", "", "peer/", student), ("peer/", "peer/", "", peer)):
        task = nn.functional.cross_entropy(logits[own], labels)
        kd = loss(logits[own], logits[other].detach()).mean()
        total = 0.4 * task + 0.6 * kd
        parts |= {f"{prefix}loss/task": task.item(), f"{prefix}loss/kd": kd.item()}
        parts["loss"] += total.item()
        gradients[prefix] = torch.autograd.grad(total, model.classifier.weight)[0]
    start = {"": student.classifier.weight.detach().clone(), "peer/": peer.classifier.weight.detach().clone()}
    terms = None if loss is softened else Objective([TaskLoss(0.4), Logits(loss, weight=0.6)])
    once: dict[str, Any] = {"max_steps": 1, "learning_rate": 0.1}
    trainer = trained("bert", tmp_path, pair=(student, peer), rows=rows, objective=terms, **once)
    first = trainer.state.log_history[0]
    for name, value in parts.items():
        assert first[name] == pytest.approx(value, rel=2e-4), name
    for prefix, model in (("", student), ("peer/", peer)):
        expected = start[prefix] - 0.1 * gradients[prefix]
        torch.testing.assert_close(model.classifier.weight.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "vit", "resnet"])
def test_the_update_does_not_depend_on_the_cut(architecture: str, tmp_path: Path) -> None:
    whole = trained(architecture, tmp_path)
    cut = trained(architecture, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(seen_of(whole), seen_of(cut))
    assert "step 3 peer/loss/kd" in seen_of(whole)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "tests.teachers.peers", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for architecture in ("bert", "resnet"):
        both = load_file(tmp_path / f"{architecture}.safetensors")
        assert both.pop("processes") == 2
        assert_same(seen_of(trained(architecture, tmp_path / "alone")), both)


def test_the_student_of_another_order_of_classes_is_the_same(tmp_path: Path) -> None:
    """A peer whose classes stand in another order, its head's rows moved with them, gives the same training."""
    seen = []
    order = [2, 0, 1]
    for moved in (False, True):
        student, peer = make("bert")
        if moved:
            names = [peer.config.id2label[place] for place in order]
            peer.config.id2label = dict(enumerate(names))
            peer.config.label2id = {name: place for place, name in enumerate(names)}
            with torch.no_grad():
                peer.classifier.weight.copy_(peer.classifier.weight[order].clone())
                peer.classifier.bias.copy_(peer.classifier.bias[order].clone())
        trainer = trained("bert", tmp_path, pair=(student, peer))
        seen.append({name: value for name, value in seen_of(trainer).items() if not name.startswith("peer parameter")})
    assert_same(*seen)


def test_a_resumed_training_goes_on_exactly(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optim": "adamw_torch", "dropout": 0.1, "learning_rate": 0.01}
    whole = trained("bert", tmp_path / "a", save_strategy="steps", save_steps=1, **settings)
    checkpoint = tmp_path / "a" / "checkpoint-2"
    resumed = trained("bert", tmp_path / "b", resume=str(checkpoint), **settings)
    for name, value in seen_of(whole).items():
        if not name.startswith("step"):
            assert torch.equal(value, seen_of(resumed)[name]), name
    assert not any("peer" in name for name in load_file(checkpoint / "model.safetensors"))
    (checkpoint / "distillation" / "peer.safetensors").unlink()
    with pytest.raises(HfDistillError, match="holds no weights of this peer"):
        trained("bert", tmp_path / "c", resume=str(checkpoint), **settings)


def test_each_is_saved_alone(tmp_path: Path) -> None:
    trainer = trained("bert", tmp_path)
    trainer.save_model(str(tmp_path / "student"))
    trainer.save_peer(str(tmp_path / "peer"))
    assert isinstance(trainer.teacher, PeerTeacher)
    for folder, model in (("student", trainer.model), ("peer", trainer.teacher.model)):
        assert not (tmp_path / folder / "distillation").exists()
        saved, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not info["unexpected_keys"] and not info["missing_keys"]
        torch.testing.assert_close(saved.classifier.weight, model.classifier.weight)
    assert "distillation_peer" not in dict(trainer.model.named_children())


def test_the_best_checkpoint_brings_back_both(tmp_path: Path) -> None:
    trainer = trained(
        "bert",
        tmp_path,
        evaluate=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss/task",
        greater_is_better=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    best = Path(str(trainer.state.best_model_checkpoint))
    assert best.name != "checkpoint-3"
    assert isinstance(trainer.teacher, PeerTeacher)
    own = dict(trainer.teacher.model.named_parameters())["classifier.weight"]
    kept = load_file(best / "distillation" / "peer.safetensors")["classifier.weight"]
    assert torch.equal(own, kept)


def test_both_are_clipped_together(tmp_path: Path) -> None:
    once: dict[str, Any] = {"max_steps": 1, "max_grad_norm": 0.01}
    start = seen_of(trained("bert", tmp_path, learning_rate=0.0, **once))
    after = seen_of(trained("bert", tmp_path, learning_rate=1.0, **once))
    moved = [(after[name] - start[name]).square().sum() for name in start if "parameter" in name]
    torch.testing.assert_close(torch.stack(moved).sum().sqrt(), torch.tensor(0.01), rtol=1e-3, atol=0)


def test_evaluation_scores_the_student_against_the_peer(tmp_path: Path) -> None:
    trainer = trained("bert", tmp_path, dropout=0.3)
    rows = examples("bert", "single_label_classification", unlabelled=False)[:6]
    metrics = trainer.evaluate(rows)
    assert isinstance(trainer.teacher, PeerTeacher)
    models = [trainer.model.eval(), trainer.teacher.model.eval()]
    batch = batch_of(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        own, other = (model(**batch).logits for model in models)
    assert metrics["eval_loss/task"] == pytest.approx(float(nn.functional.cross_entropy(own, labels)), rel=1e-4)
    assert metrics["eval_loss/kd"] == pytest.approx(float(forward_kl(own, other, temperature=3.0).mean()), rel=1e-4)


class Modes(TrainerCallback):
    """Notes in which mode both models are when a step has been taken."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        student = kwargs["model"]
        self.seen += [student.training, student.distillation_peer.training]


def test_evaluating_in_between_leaves_both_learning(tmp_path: Path) -> None:
    modes = Modes()
    trainer = trained(
        "bert", tmp_path, callbacks=[modes], dropout=0.3, evaluate=True, eval_strategy="steps", eval_steps=1
    )
    assert modes.seen == [True] * 6
    first, plain = (run.state.log_history[0] for run in (trainer, trained("bert", tmp_path)))
    assert first["peer/loss/task"] != pytest.approx(plain["peer/loss/task"])


def test_a_peer_by_name_gets_the_students_head(tmp_path: Path) -> None:
    student, peer = make("bert")
    peer.save_pretrained(tmp_path / "peer")
    trainer = trained("bert", tmp_path, pair=(student, str(tmp_path / "peer")), max_steps=1)
    assert isinstance(trainer.teacher, PeerTeacher)
    assert trainer.teacher.model.config.id2label == student.config.id2label
    assert any(each.requires_grad for each in trainer.teacher.model.parameters())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Objective([TaskLoss(), Logits(), HiddenStates()]), "TaskLoss and Logits terms alone"),
        (Objective([Logits()]), "only agree with each other"),
    ],
)
def test_terms_that_two_students_cannot_share_are_refused(objective: Objective, message: str, tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=message):
        trained("bert", tmp_path, objective=objective, max_steps=0)


def test_what_cannot_learn_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="A int came to Peer"):
        Peer(3)  # type: ignore[arg-type]
    with pytest.raises(HfDistillError, match="no parameter that requires a gradient"):
        Peer(tiny.model("bert").requires_grad_(False))
    student, _ = make("bert")
    with pytest.raises(HfDistillError, match="same object"):
        trained("bert", tmp_path, pair=(student, student))
    wide = tiny.model("bert", layers=2, num_labels=4, seed=2)
    with pytest.raises(HfDistillError, match="has 3 classes and its peer 4"):
        trained("bert", tmp_path, pair=(student, wide))
    peer = make("bert")[1]
    with pytest.raises(HfDistillError, match="lacks parameters of the peer"):
        trained("bert", tmp_path, optimizers=(torch.optim.SGD(student.parameters()), None), pair=(student, peer))
    with pytest.raises(HfDistillError, match="came with model_init"):
        trained("bert", tmp_path, pair=(None, peer), model_init=lambda: make("bert")[0])
    plain = DistillationTrainer(student, trained("bert", tmp_path, max_steps=1).args, teacher_model=peer)
    with pytest.raises(HfDistillError, match="the peer is missing"):
        plain.save_peer(str(tmp_path / "none"))
