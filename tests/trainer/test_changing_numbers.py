"""Weights and temperatures that change: schedules, a temperature for each row, weights found by measuring."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hfdistill import DistillationTrainer, HfDistillError, Logits, Objective, TaskLoss
from hfdistill.losses import forward_kl
from hfdistill.recipe.objective import terms_of
from hfdistill.schedules import Auto, Cosine, Linear, Schedule, WarmUp
from hfdistill.temperatures import LearnedTemperature, TeacherEntropy, distance
from tests import by_sgd
from tests.trainer.trajectory import assert_same, examples, models


def trained(
    folder: Path, objective: Objective, resume: str | None = None, dropout: float = 0.0, **arguments: Any
) -> DistillationTrainer:
    student, teacher = models("vit", "single_label_classification")
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    trainer = DistillationTrainer(
        student,
        by_sgd.arguments(folder, **arguments),
        teacher_model=teacher,
        objective=objective,
        train_dataset=examples("vit", "single_label_classification"),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer: DistillationTrainer, key: str) -> list[float]:
    return [row[key] for row in trainer.state.log_history if key in row]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Linear(8, 2, epochs=3), {0: 8, 1.5: 5, 3: 2, 9: 2}),
        (Cosine(1, 5, epochs=4), {0: 1, 1: 3 - math.sqrt(2), 2: 3, 4: 5, 7: 5}),
        (WarmUp(4, value=2), {0: 0.5, 0.9: 0.5, 1: 1, 2.5: 1.5, 3: 2, 20: 2}),
    ],
)
def test_a_schedule_tells_the_number_of_each_moment(schedule: Schedule, values: dict[float, float]) -> None:
    for epoch, value in values.items():
        assert schedule.at(epoch) == pytest.approx(value), epoch


def test_a_scheduled_weight_makes_the_total_of_its_moment(tmp_path: Path) -> None:
    objective = Objective([TaskLoss(), Logits(weight=Linear(0, 2, epochs=1), temperature=3.0)])
    # 24 examples: three steps make the epoch, so that the weights are 0, 2/3 and 4/3.
    trainer = trained(tmp_path, objective)
    for row, weight in zip(trainer.state.log_history[:3], (0, 2 / 3, 4 / 3), strict=True):
        assert row["loss"] == pytest.approx(row["loss/task"] + weight * row["loss/kd"], rel=1e-4)
    # What is logged is the weight after the step.
    assert logged(trainer, "weight/kd") == pytest.approx([2 / 3, 4 / 3, 2])


def test_a_scheduled_temperature_is_that_of_its_moment(tmp_path: Path) -> None:
    changing = trained(tmp_path, Objective([Logits(temperature=Linear(1, 7, epochs=1))]), learning_rate=0.0)
    constants = [
        trained(tmp_path, Objective([Logits(temperature=value)]), learning_rate=0.0) for value in (1.0, 3.0, 5.0)
    ]
    expected = [logged(trainer, "loss/kd")[step] for step, trainer in enumerate(constants)]
    assert logged(changing, "loss/kd") == pytest.approx(expected)


@pytest.mark.parametrize(
    "objective",
    [
        Objective([TaskLoss(weight=Linear(1, 0.5, epochs=1)), Logits(weight=WarmUp(2), temperature=Cosine(4, 1, 1))]),
        Objective([TaskLoss(), Logits(temperature=TeacherEntropy(1, 6))]),
        Objective([TaskLoss(), Logits(temperature=LearnedTemperature(epochs=1))]),
        Objective([TaskLoss(weight=2), Logits(weight="auto"), Logits("logit_mse", weight=Auto(2), name="mse")]),
    ],
    ids=["schedules", "entropy", "learned", "auto"],
)
def test_the_update_does_not_depend_on_how_the_batch_is_cut(objective: Objective, tmp_path: Path) -> None:
    gently = {"learning_rate": 0.02}
    whole = trained(tmp_path / "whole", objective, **gently)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    pieces = trained(tmp_path / "pieces", objective, **gently, **cut)
    assert_same(by_sgd.seen_in(whole), by_sgd.seen_in(pieces))
    for key in ("weight/kd", "weight/task", "weight/mse", "temperature/kd"):
        assert logged(whole, key) == pytest.approx(logged(pieces, key), rel=1e-3)


def test_a_teacher_that_is_sure_is_softened_more() -> None:
    teacher = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [math.log(2), 0.0, -math.inf]])
    # The entropy of (2/3, 1/3) among two classes, in shares of log 2.
    share = (math.log(3) - 2 / 3 * math.log(2)) / math.log(2)
    expected = [2.0, 6.0, 2 + 4 * (1 - share)]
    assert TeacherEntropy(2, 6).rows(teacher).tolist() == pytest.approx(expected, abs=1e-5)


def test_each_row_has_its_own_temperature() -> None:
    student, teacher = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    temperature = TeacherEntropy(1, 9)
    values = distance(forward_kl, student, teacher, {"temperature": temperature})
    for row, own in enumerate(temperature.rows(teacher).tolist()):
        alone = forward_kl(student[row : row + 1], teacher[row : row + 1], temperature=own)
        torch.testing.assert_close(values[row : row + 1], alone)


def test_a_learned_temperature_goes_against_the_student(tmp_path: Path) -> None:
    def objective(temperature: float | LearnedTemperature) -> Objective:
        return Objective([Logits(temperature=temperature)])

    whole_batch = {"per_device_train_batch_size": 24, "max_steps": 3, "learning_rate": 0.05}
    learning = LearnedTemperature(low=1, high=9, start=3, epochs=0.1)
    trainer = trained(tmp_path, objective(learning), **whole_batch)
    constant = trained(tmp_path, objective(3.0), **whole_batch)
    temperatures = logged(trainer, "temperature/kd")
    # In the first step the gradient counts for nothing: the epochs begin at 0.
    assert temperatures[0] == 3
    assert logged(trainer, "loss/kd")[:2] == pytest.approx(logged(constant, "loss/kd")[:2])
    assert temperatures[2] > temperatures[1] > 3
    # The same student at the temperature before and at the one after: the latter is harder.
    student, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
    settings = LearnedTemperature(low=1, high=9, start=3, epochs=1)
    module = settings.module()
    before = module()
    distance(forward_kl, student, teacher, {"temperature": settings.reversed(before, epoch=5)}).mean().backward()
    with torch.no_grad():
        assert module.bias.grad is not None
        module.bias -= 0.1 * module.bias.grad
    values = [
        forward_kl(student, teacher, temperature=float(each)).mean() for each in (before.detach(), module().detach())
    ]
    assert values[0] < values[1]


def test_a_learned_temperature_is_resumed_and_not_exported(tmp_path: Path) -> None:
    def objective() -> Objective:
        return Objective([TaskLoss(), Logits(temperature=LearnedTemperature(epochs=0.5))])

    whole = trained(tmp_path / "whole", objective(), max_steps=4, learning_rate=0.05)
    trained(tmp_path / "cut", objective(), max_steps=2, learning_rate=0.05, save_strategy="steps", save_steps=2)
    checkpoint = str(tmp_path / "cut" / "checkpoint-2")
    resumed = trained(tmp_path / "cut", objective(), checkpoint, max_steps=4, learning_rate=0.05)
    assert logged(resumed, "temperature/kd")[-1] == logged(whole, "temperature/kd")[-1]
    resumed.save_model(str(tmp_path / "exported"))
    assert not any("temperature" in name for name in load_file(tmp_path / "exported" / "model.safetensors"))


def test_an_automatic_weight_makes_the_gradients_equally_long(tmp_path: Path) -> None:
    objective = Objective([TaskLoss(weight=0.5), Logits("logit_mse", weight="auto", name="mse")])
    trainer = trained(tmp_path, objective, learning_rate=0.0, max_steps=1)
    found = logged(trainer, "weight/mse")[0]
    lengths = [
        logged(trained(tmp_path, Objective([term]), learning_rate=0.0, max_steps=1), "grad_norm")[0]
        for term in (TaskLoss(weight=0.5), Logits("logit_mse", weight=found, name="mse"))
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)


def test_measured_weights_go_on_after_a_resume(tmp_path: Path) -> None:
    def objective() -> Objective:
        return Objective([TaskLoss(), Logits(weight=Auto(2))])

    whole = trained(tmp_path / "whole", objective(), max_steps=4)
    trained(tmp_path / "cut", objective(), max_steps=2, save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "cut" / "checkpoint-2"
    kept = json.loads((checkpoint / "distillation" / "weights.json").read_text(encoding="utf-8"))
    assert kept["weights"]["kd"] == pytest.approx(logged(whole, "weight/kd")[1])
    resumed = trained(tmp_path / "cut", objective(), str(checkpoint), max_steps=4)
    assert logged(resumed, "weight/kd")[-1] == pytest.approx(logged(whole, "weight/kd")[-1])
    resumed.save_model(str(tmp_path / "exported"))
    assert not (tmp_path / "exported" / "distillation").exists()
    (checkpoint / "distillation" / "weights.json").unlink()
    with pytest.raises(HfDistillError, match="holds no measured weights"):
        trained(tmp_path / "cut", objective(), str(checkpoint), max_steps=4)


def test_measuring_leaves_the_course_of_dropout_alone(tmp_path: Path) -> None:
    measured, plain, without = (
        trained(tmp_path, Objective([TaskLoss(), Logits("logit_mse", weight=weight)]), learning_rate=0.0, dropout=drop)
        for weight, drop in ((Auto(3), 0.3), (1.0, 0.3), (1.0, 0.0))
    )
    assert logged(measured, "loss/task") == pytest.approx(logged(plain, "loss/task"))
    assert logged(plain, "loss/task") != pytest.approx(logged(without, "loss/task"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(1, 2, epochs=0), "epochs above 0"),
        (lambda: TaskLoss(weight=Linear(1, -1, epochs=2)), "at least 0"),
        (lambda: TaskLoss(weight="much"), "'auto'"),
        (lambda: Logits(temperature=Linear(4, 0, epochs=2)), "finite number above 0"),
        (lambda: Logits("dist", temperature=TeacherEntropy()), "temperature of its own"),
        (lambda: Logits("normalized_kd", temperature=TeacherEntropy()), "temperature of its own"),
        (lambda: Logits(standardized=True, temperature=TeacherEntropy()), "temperature of its own"),
        (lambda: TeacherEntropy(low=0), "above 0"),
        (lambda: LearnedTemperature(start=1), "low < start < high"),
        (lambda: Logits("reverse_kl", temperature=LearnedTemperature()), "no gradient in its temperature"),
        (lambda: Auto(steps=0), "at least one step"),
    ],
)
def test_numbers_that_cannot_be_are_refused(make: Any, words: str) -> None:
    with pytest.raises(HfDistillError, match=words):
        make()


def test_an_automatic_weight_needs_another_term(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="measured against another term"):
        trained(tmp_path, Objective([Logits(weight="auto")]))


def test_a_recipe_names_schedules() -> None:
    task, kd = terms_of(
        [
            {"task": {"weight": {"warm_up": {"epochs": 20}}}},
            {"logits": {"weight": "auto", "temperature": {"linear": {"start": 8, "end": 1, "epochs": 10}}}},
        ],
        "objective.terms",
    )
    assert task.weight == WarmUp(20)
    assert kd.weight == Auto()
    assert isinstance(kd, Logits)
    assert kd.options == {"temperature": Linear(8, 1, 10)}


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ({"logits": {"weight": "aut"}}, "a number, a schedule, or auto"),
        ({"logits": {"weight": {"liner": {}}}}, "did you mean 'linear'"),
        ({"logits": {"temperature": {"linear": {"start": 1, "end": 2}}}}, "linear.epochs: this key is missing"),
        ({"logits": {"temperature": {"teacher_entropy": {"low": "x"}}}}, "expected a number"),
        ({"logits": {"weight": {"teacher_entropy": {}}}}, "no such key"),
        ({"relations": {"weight": {"linear": {"start": 0, "end": 1, "epochs": "x"}}}}, "expected a number"),
    ],
)
def test_a_recipe_that_misnames_them_is_refused(term: dict[str, Any], words: str) -> None:
    with pytest.raises(HfDistillError, match=words):
        terms_of([term], "objective.terms")
