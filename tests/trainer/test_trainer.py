"""DistillationTrainer as a Trainer: evaluate, predict, resume, save, search; with modules, names and folders."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForImageClassification, EvalPrediction, TrainerCallback

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, Logits, Objective, TaskLoss
from tests import tiny
from tests.trainer.trajectory import examples, trained

SINGLE = "single_label_classification"
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}


def config(folder: Path, **arguments: Any) -> DistillationConfig:
    return DistillationConfig(output_dir=str(folder), **{**QUIET, **arguments})


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_default_loss_by_hand(tmp_path: Path) -> None:
    student, teacher = tiny.model("vit", seed=1), tiny.model("vit", layers=3, seed=2)
    batch = tiny.batch("vit", rows=6)
    trainer = DistillationTrainer(student, config(tmp_path, alpha=0.3, temperature=4.0), teacher_model=teacher)
    total = trainer.compute_loss(trainer.model, dict(batch))
    with torch.no_grad():
        ours, theirs = student(batch["pixel_values"]).logits, teacher(batch["pixel_values"]).logits
    soft = functional.kl_div((ours / 4).log_softmax(-1), (theirs / 4).softmax(-1), reduction="batchmean")
    expected = 0.7 * functional.cross_entropy(ours, batch["labels"]) + 0.3 * 16 * soft
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("architecture", ["vit", "deit", "resnet", "bert"])
def test_resume_is_exact(architecture: str, tmp_path: Path) -> None:
    arguments = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
    }
    _, whole = trained(architecture, SINGLE, tmp_path / "whole", **arguments)
    interrupted, _ = trained(architecture, SINGLE, tmp_path / "cut", **{**arguments, "max_steps": 3})
    torch.manual_seed(99)
    anew = DistillationTrainer(
        tiny.model(architecture, layers=1, seed=5),
        dataclasses.replace(interrupted.args, max_steps=6),
        teacher_model=interrupted.teacher.model,
        train_dataset=interrupted.train_dataset,
    )
    if architecture == "resnet":
        for module in anew.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = lambda mode=True, module=module: module
    anew.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for name, value in anew.model.named_parameters():
        torch.testing.assert_close(value.detach(), whole[f"parameter {name}"], rtol=0, atol=0)


def test_best_model_is_the_saved_one(tmp_path: Path) -> None:
    student, teacher = tiny.model("vit", layers=1, seed=1), tiny.model("vit", seed=2)
    data = examples("vit", SINGLE, unlabelled=False)
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    # The highest loss counts as best, so that the best checkpoint is the first and not the last.
    best_first = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    arguments = config(tmp_path, max_steps=4, learning_rate=0.1, optim="sgd", **often, **best_first)
    trainer = DistillationTrainer(student, arguments, teacher_model=teacher, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.state.best_global_step == 1
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    for name, value in best.named_parameters():
        assert torch.equal(value, dict(trainer.model.named_parameters())[name]), name
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)


def test_rows_without_label_count_for_the_teacher_only(tmp_path: Path) -> None:
    student, teacher = tiny.model("vit", seed=1), tiny.model("vit", seed=2)
    batch = tiny.batch("vit", rows=6)
    batch["labels"][1:3] = -100
    trainer = DistillationTrainer(student, config(tmp_path, alpha=0.3, temperature=2.0), teacher_model=teacher)
    total = trainer.compute_loss(trainer.model, dict(batch))
    with torch.no_grad():
        ours, theirs = student(batch["pixel_values"]).logits, teacher(batch["pixel_values"]).logits
    soft = 4 * functional.kl_div((ours / 2).log_softmax(-1), (theirs / 2).softmax(-1), reduction="batchmean")
    labelled = [0, 3, 4, 5]
    torch.testing.assert_close(
        total, 0.7 * functional.cross_entropy(ours[labelled], batch["labels"][labelled]) + 0.3 * soft
    )


def test_evaluation_reports_each_part_and_metrics(tmp_path: Path) -> None:
    student, teacher = tiny.model("bert", seed=1), tiny.model("bert", layers=3, seed=2)
    data = examples("bert", SINGLE, unlabelled=False)
    arguments = config(tmp_path, per_device_eval_batch_size=7, alpha=0.3, label_smoothing_factor=0.1)
    trainer = DistillationTrainer(
        student, arguments, teacher_model=teacher, eval_dataset=data, compute_metrics=accuracy
    )
    metrics = trainer.evaluate()
    prediction = trainer.predict(data)
    logits, labels = torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids)
    assert metrics["eval_loss/task"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert (
        metrics["eval_accuracy"] == accuracy(EvalPrediction(prediction.predictions, prediction.label_ids))["accuracy"]
    )
    whole = 0.7 * metrics["eval_loss/task"] + 0.3 * metrics["eval_loss/kd"]
    assert metrics["eval_loss"] == pytest.approx(whole, rel=2e-2)
    assert {"test_loss/task", "test_loss/kd", "test_accuracy"} <= prediction.metrics.keys()


def test_predict_without_labels_uses_the_student_alone(tmp_path: Path) -> None:
    student, teacher = tiny.model("vit", seed=1), tiny.model("vit", seed=2)
    trainer = DistillationTrainer(student, config(tmp_path), teacher_model=teacher)
    trainer.teacher = None
    data = [{"pixel_values": row["pixel_values"]} for row in examples("vit", SINGLE)]
    assert trainer.predict(data).predictions.shape == (24, 3)


def test_wholly_unlabelled_data_trains_on_the_teacher(tmp_path: Path) -> None:
    student, teacher = tiny.model("vit", layers=1, seed=1), tiny.model("vit", seed=2)
    data = [{"pixel_values": row["pixel_values"]} for row in examples("vit", SINGLE)]
    arguments = config(tmp_path, num_train_epochs=30, learning_rate=1e-2, logging_steps=1)
    trainer = DistillationTrainer(student, arguments, teacher_model=teacher, train_dataset=data)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss/kd" in row]
    assert rows[-1]["loss/kd"] < 0.3 * rows[0]["loss/kd"]
    assert "loss/task" not in rows[0]


def test_control_needs_no_teacher(tmp_path: Path) -> None:
    arguments = config(tmp_path, max_steps=1, logging_steps=1)
    data = examples("vit", SINGLE)
    trainer = DistillationTrainer(
        tiny.model("vit"), arguments, teacher_model=None, objective=Objective([TaskLoss()]), train_dataset=data
    )
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["loss"] == pytest.approx(row["loss/task"])
    with pytest.raises(HfDistillError, match="pass teacher_model"):
        DistillationTrainer(tiny.model("vit"), arguments, teacher_model=None)


class Perceptron(nn.Module):
    """A plain module, as an introductory article would write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layers(x))


def test_plain_modules_work(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [{"x": row, "label": int(row.sum() > 0)} for row in torch.randn(32, 4)]
    arguments = config(
        tmp_path,
        num_train_epochs=5,
        learning_rate=1e-2,
        save_strategy="epoch",
        logging_steps=4,
        label_smoothing_factor=0.1,
    )
    trainer = DistillationTrainer(
        Perceptron(4),
        arguments,
        teacher_model=Perceptron(16),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=accuracy,
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] >= 0
    assert trainer.predict(data).predictions.shape == (32, 3)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.95 * losses[0]


def test_plain_modules_regress_on_single_floats(tmp_path: Path) -> None:
    data = [{"x": row, "labels": row.sum()} for row in torch.randn(8, 4)]
    trainer = DistillationTrainer(Perceptron(4), config(tmp_path), teacher_model=Perceptron(8), train_dataset=data)
    assert trainer.task.name == "regression"


def test_teacher_stays_out_of_everything(tmp_path: Path) -> None:
    student, teacher = tiny.model("resnet", layers=1, seed=1), tiny.model("resnet", layers=3, seed=2)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    arguments = config(tmp_path, max_steps=3, save_strategy="steps", save_steps=3, learning_rate=0.1)
    trainer = DistillationTrainer(
        student,
        arguments,
        teacher_model=teacher,
        train_dataset=examples("resnet", SINGLE),
        callbacks=[PutInTrainMode(teacher)],
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())
    optimised = {id(each) for group in trainer.optimizer.param_groups for each in group["params"]}
    assert not optimised & {id(each) for each in teacher.parameters()}
    assert not any(each.requires_grad for each in teacher.parameters())
    students = set(student.state_dict())
    for folder in (tmp_path / "final", tmp_path / "checkpoint-3"):
        assert set(load_file(folder / "model.safetensors")) <= students
        assert sum(each.numel() for each in load_file(folder / "model.safetensors").values()) == sum(
            each.numel() for each in student.state_dict().values()
        )


class PutInTrainMode(TrainerCallback):
    """A callback that does the wrong thing on purpose."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.module.train()


def test_names_and_folders(tmp_path: Path) -> None:
    teacher = tiny.model("vit", layers=3, num_labels=5, seed=2)
    teacher.save_pretrained(tmp_path / "teacher")
    tiny.model("resnet", num_labels=7, seed=1).save_pretrained(tmp_path / "student")
    arguments = config(tmp_path, teacher_model_name_or_path=str(tmp_path / "teacher"), max_steps=1)
    data = examples("resnet", SINGLE)
    trainer = DistillationTrainer(str(tmp_path / "student"), arguments, train_dataset=data)
    assert trainer.model.config.id2label == teacher.config.id2label
    trainer.train()
    with pytest.raises(HfDistillError, match="could not be loaded"):
        DistillationTrainer("nobody/nothing", arguments)


def test_objective_by_hand_and_custom_loss(tmp_path: Path) -> None:
    def distance(student: torch.Tensor, teacher: torch.Tensor, power: float = 1.0) -> torch.Tensor:
        return (student - teacher).abs().pow(power).sum(-1)

    objective = Objective([TaskLoss(0.5), Logits(distance, weight=2.0, name="distance", power=2.0)])
    student, teacher = tiny.model("vit", seed=1), tiny.model("vit", seed=2)
    batch = tiny.batch("vit")
    trainer = DistillationTrainer(student, config(tmp_path), teacher_model=teacher, objective=objective)
    total = trainer.compute_loss(trainer.model, dict(batch))
    with torch.no_grad():
        ours, theirs = student(batch["pixel_values"]).logits, teacher(batch["pixel_values"]).logits
    expected = 0.5 * functional.cross_entropy(ours, batch["labels"]) + 2 * (ours - theirs).square().sum(-1).mean()
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("evaluation", [{"eval_strategy": "steps", "eval_steps": 1}, {}])
def test_hyperparameter_search_reaches_the_objective(evaluation: dict[str, Any], tmp_path: Path) -> None:
    """Whether a trial is evaluated on its way or at its end only."""
    pytest.importorskip("optuna")
    data = examples("vit", SINGLE, unlabelled=False)
    seen = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            seen.append([term.weight for term in trainer.distillation_objective.terms])

    trainer = DistillationTrainer(
        None,
        config(tmp_path, max_steps=3, **evaluation),
        teacher_model=tiny.model("vit", seed=2),
        model_init=lambda: tiny.model("vit", layers=1, seed=1),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[Watch],
    )
    best = trainer.hyperparameter_search(
        lambda trial: {"alpha": trial.suggest_categorical("alpha", [0.25])}, n_trials=2, direction="minimize"
    )
    assert seen == [[0.75, 0.25]] * 2
    assert 0 < best.objective < float("inf")


def test_label_smoothing_is_cross_entropy_with_soft_targets(tmp_path: Path) -> None:
    _, smooth = trained("vit", SINGLE, tmp_path, max_steps=1, label_smoothing_factor=0.2)
    student = tiny.model("vit", layers=1, seed=1)
    _, plain = trained("vit", SINGLE, tmp_path, student=student, max_steps=1)
    assert smooth["step 1 loss/task"] != plain["step 1 loss/task"]
    assert smooth["step 1 loss/kd"] == plain["step 1 loss/kd"]


def test_bfloat16_autocast_is_close(tmp_path: Path) -> None:
    _, wide = trained("vit", SINGLE, tmp_path)
    _, narrow = trained("vit", SINGLE, tmp_path, bf16=True)
    torch.testing.assert_close(wide["step 1 loss"], narrow["step 1 loss"], rtol=3e-2, atol=0)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    student, teacher = tiny.model("bert", seed=1), tiny.model("bert", seed=2)
    batch = tiny.batch("bert")
    trainer = DistillationTrainer(student, config(tmp_path), teacher_model=teacher)
    padded = {key: functional.pad(value, (0, 5), value=0) for key, value in batch.items() if key != "labels"}
    padded["input_ids"][:, -5:] = tiny.PAD
    one = trainer.compute_loss(trainer.model, dict(batch))
    torch.testing.assert_close(one, trainer.compute_loss(trainer.model, {**padded, "labels": batch["labels"]}))


def test_adapters_are_resumed(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"], r=2)
    arguments = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}
    made = [peft.get_peft_model(tiny.model("bert", layers=1, seed=1), settings) for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    _, whole = trained("bert", SINGLE, tmp_path / "whole", student=made[0], **arguments)
    assert (tmp_path / "whole" / "checkpoint-1" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "whole" / "checkpoint-1" / "model.safetensors").exists()
    again = DistillationTrainer(
        made[1],
        config(
            tmp_path,
            learning_rate=0.5,
            alpha=0.6,
            temperature=3.0,
            lr_scheduler_type="constant",
            max_grad_norm=1e9,
            per_device_train_batch_size=8,
            **{**arguments, "save_strategy": "no"},
        ),
        teacher_model=tiny.model("bert", layers=2, seed=2),
        train_dataset=examples("bert", SINGLE),
    )
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    for name, value in again.model.named_parameters():
        torch.testing.assert_close(value.detach(), whole[f"parameter {name}"], rtol=1e-6, atol=1e-7)


def test_arguments_survive_a_round_trip(tmp_path: Path) -> None:
    arguments = config(tmp_path, teacher_model_init_kwargs='{"dtype": "bfloat16"}', alpha=0.25)
    assert arguments.teacher_model_init_kwargs == {"dtype": "bfloat16"}
    assert json.loads(arguments.to_json_string())["alpha"] == 0.25


def test_card_names_teacher_and_terms(tmp_path: Path) -> None:
    teacher = tiny.model("vit", seed=2)
    teacher.save_pretrained(tmp_path / "teacher")
    arguments = config(tmp_path / "student", temperature=3.0)
    trainer = DistillationTrainer(tiny.model("vit", seed=1), arguments, teacher_model=str(tmp_path / "teacher"))
    trainer.save_model()
    trainer.create_model_card(model_name="student")
    card = (tmp_path / "student" / "README.md").read_text()
    assert str(tmp_path / "teacher") in card
    assert "temperature = 3.0" in card
    assert "knowledge-distillation" in card
