"""Two heads over the same classes: labels teach one, the teacher the other, and a prediction is the mean of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    LevitConfig,
    LevitForImageClassificationWithTeacher,
    PreTrainedModel,
)

from hfdistill import (
    DistillationTrainer,
    EnsembleTeacher,
    HfDistillError,
    HiddenStates,
    Logits,
    Objective,
    TaskLoss,
    student_with_distillation_token,
)
from hfdistill.losses import bernoulli_kl
from hfdistill.tasks import TASKS, TwoHeads, task_of
from tests import by_sgd, tiny
from tests.trainer import trajectory

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LABELS_ALONE = Objective([TaskLoss()])


def student(problem_type: str = SINGLE, seed: int = 1) -> PreTrainedModel:
    return student_with_distillation_token(tiny.model("vit", layers=1, problem_type=problem_type, seed=seed))


def trainer(
    folder: Path, model: nn.Module, objective: Objective | None = None, problem_type: str = SINGLE, **arguments: Any
) -> DistillationTrainer:
    """A trainer of 24 examples, every fifth without a label; the teacher is a ViT of two layers."""
    control = objective is LABELS_ALONE
    teacher = None if control else tiny.model("vit", layers=2, problem_type=problem_type, seed=2)
    rows = trajectory.examples("vit", problem_type)
    config = by_sgd.arguments(folder, **{"alpha": 0.6, "temperature": 3.0, **arguments})
    return DistillationTrainer(
        model, config, teacher_model=teacher, objective=objective, train_dataset=rows, eval_dataset=rows
    )


class Heads(nn.Module):
    """Gives the logits that it was made with, of as many heads as it has."""

    def __init__(self, **logits: list[list[float]]) -> None:
        super().__init__()
        self.given = nn.ParameterDict({name: nn.Parameter(torch.tensor(value)) for name, value in logits.items()})

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: value[features.long().flatten()] for name, value in self.given.items()}


def by_hand(folder: Path, objective: Objective, smoothing: float = 0.0) -> tuple[Heads, float]:
    """The loss of one batch of two examples, the second without a label, after one backward of it."""
    model = Heads(cls_logits=[[0.0, math.log(3)], [5.0, 7.0]], distillation_logits=[[0.0, 0.0], [0.0, math.log(4)]])
    teacher = Heads(logits=[[0.0, math.log(3)], [0.0, math.log(4)]]) if objective.needs_teacher else None
    rows = [{"features": torch.tensor([place]), "labels": torch.tensor(label)} for place, label in enumerate((1, -100))]
    config = by_sgd.arguments(folder, label_smoothing_factor=smoothing)
    made = DistillationTrainer(
        model, config, teacher_model=teacher, objective=objective, task="two_head_classification", train_dataset=rows
    )
    batches, counts = made.get_batch_samples(iter(made.get_train_dataloader()), 1, torch.device("cpu"))
    loss = made.compute_loss(model, batches[0], num_items_in_batch=counts)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    return model, loss.item()


def test_labels_teach_one_head_and_the_teacher_the_other(tmp_path: Path) -> None:
    model, loss = by_hand(tmp_path, Objective([TaskLoss(0.5), Logits(weight=2.0, temperature=1.0)]))
    # Of the labelled example the class head says 3/4; the distillation head says 1/2 and 1/2 for a teacher's 1/4 and
    # 3/4, and agrees about the other one.
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert loss == pytest.approx(0.5 * -math.log(0.75) + 2.0 * divergence / 2, rel=1e-6)
    classes, distilled = model.given["cls_logits"].grad, model.given["distillation_logits"].grad
    torch.testing.assert_close(classes, torch.tensor([[0.125, -0.125], [0.0, 0.0]]))
    torch.testing.assert_close(distilled, torch.tensor([[0.25, -0.25], [0.0, 0.0]]))


def test_hard_labels_of_the_teacher_are_for_the_distillation_head(tmp_path: Path) -> None:
    _, loss = by_hand(tmp_path, Objective([TaskLoss(0.5), Logits("hard_label", weight=0.5)]))
    # Equation 3 of DeiT: half of each; the teacher decides for class 1 twice.
    distilled = (-math.log(0.5) - math.log(0.8)) / 2
    assert loss == pytest.approx(0.5 * -math.log(0.75) + 0.5 * distilled, rel=1e-6)


def test_without_a_teacher_the_labels_teach_both_heads(tmp_path: Path) -> None:
    model, loss = by_hand(tmp_path, LABELS_ALONE)
    assert loss == pytest.approx((-math.log(0.75) - math.log(0.5)) / 2, rel=1e-6)
    assert model.given["cls_logits"].grad is not None
    torch.testing.assert_close(model.given["distillation_logits"].grad, torch.tensor([[0.25, -0.25], [0.0, 0.0]]))


def test_labels_of_the_class_head_are_smoothed(tmp_path: Path) -> None:
    _, loss = by_hand(tmp_path, Objective([TaskLoss(), Logits(weight=1e-12)]), smoothing=0.2)
    assert loss == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25), rel=1e-6)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("objective", [None, LABELS_ALONE], ids=["taught", "control"])
def test_the_update_does_not_depend_on_how_a_batch_is_cut(
    problem_type: str, objective: Objective | None, tmp_path: Path
) -> None:
    seen = []
    for size, steps in ((8, 1), (2, 4)):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        made = trainer(tmp_path, student(problem_type), objective, problem_type, **cut)
        made.train()
        seen.append(by_sgd.seen_in(made))
    trajectory.assert_same(*seen)


@pytest.mark.parametrize("objective", [None, LABELS_ALONE, "features"], ids=["taught", "control", "features"])
def test_both_heads_learn(objective: Any, tmp_path: Path) -> None:
    if objective == "features":
        objective = Objective([TaskLoss(), HiddenStates(layers="last")])
    model = student()
    before = {name: value.detach().clone() for name, value in model.named_parameters() if "classifier" in name}
    trainer(tmp_path, model, objective, max_steps=1).train()
    after = dict(model.named_parameters())
    assert len(before) == 4 and not any(torch.equal(value, after[name]) for name, value in before.items())
    # Both heads begin as equals here, so that equal ones would have learnt from the same.
    same = torch.equal(after["cls_classifier.weight"], after["distillation_classifier.weight"])
    assert same is (objective is not None)


@pytest.mark.parametrize("objective", [None, LABELS_ALONE], ids=["taught", "control"])
def test_predictions_are_the_mean_that_the_model_gives(objective: Objective | None, tmp_path: Path) -> None:
    made = trainer(tmp_path, student(), objective)
    made.train()
    made.compute_metrics = lambda given: {"shown": float(given.predictions.sum())}
    shown = made.evaluate()["eval_shown"]
    with torch.no_grad():
        pixels = torch.stack([row["pixel_values"] for row in made.eval_dataset])
        outputs = made.model.eval()(pixels)
    for rows in (made.eval_dataset, [{"pixel_values": each} for each in pixels]):
        predicted = torch.from_numpy(made.predict(rows).predictions)
        torch.testing.assert_close(predicted, outputs.logits)
    assert shown == pytest.approx(float(outputs.logits.sum()), abs=1e-4)
    torch.testing.assert_close(predicted, (outputs.cls_logits + outputs.distillation_logits) / 2)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "one of two"])
def test_a_teacher_with_two_heads_teaches_by_their_mean(alone: bool, tmp_path: Path) -> None:
    teacher = DeiTForImageClassificationWithTeacher(tiny.model("deit").config).eval()
    second = tiny.model("vit", seed=3).eval()
    rows = trajectory.examples("vit", SINGLE)[:8]
    made = DistillationTrainer(
        student(),
        by_sgd.arguments(tmp_path),
        teacher_model=teacher if alone else EnsembleTeacher([teacher, second]),
        objective=Objective([TaskLoss(), Logits(temperature=1.0)]),
        eval_dataset=rows,
    )
    inputs = next(iter(made.get_eval_dataloader()))
    outputs, context = made.outputs_and_context(made.model, inputs)
    teachers = [teacher] if alone else [teacher, second]
    said = torch.stack([each(inputs["pixel_values"]).logits.softmax(-1) for each in teachers]).mean(0).detach()
    expected = (said * (said.log() - outputs.distillation_logits.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(made.distillation_objective.terms[1].values(context), expected)


def test_a_levit_has_two_heads_too(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_sizes": [8] * 3, "num_attention_heads": [1] * 3, "depths": [1] * 3}
    config = LevitConfig(image_size=32, key_dim=[8] * 3, num_labels=3, **sizes)
    model = LevitForImageClassificationWithTeacher(config)
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": torch.tensor(place % 3)} for place in range(4)]
    made = DistillationTrainer(
        model, by_sgd.arguments(tmp_path, max_steps=1), teacher_model=tiny.model("resnet"), train_dataset=rows
    )
    made.train()
    assert isinstance(made.task.layout, TwoHeads) and made.task.layout.taught
    assert made.predict(rows).predictions.shape == (4, 3)


def test_the_row_is_found_by_the_class_and_knows_the_kind_of_problem() -> None:
    row = task_of(student())
    assert row.name == "two_head_classification" and row == TASKS[row.name]
    several = task_of(student(MULTI))
    assert several.default_loss is bernoulli_kl and not several.integer_labels
    deit = DeiTForImageClassificationWithTeacher(DeiTConfig(**tiny._vision_transformer(1), num_labels=3))
    assert not task_of(deit, torch.tensor([0.0, 1.0, 1.0])).integer_labels
    assert not isinstance(task_of(tiny.model("deit")).layout, TwoHeads)


def test_a_teacher_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=r"class head learns .* Set alpha below 1"):
        trainer(tmp_path, student(), alpha=1.0)
    with pytest.raises(HfDistillError, match="put a TaskLoss into the objective"):
        trainer(tmp_path, student(), Objective([Logits()]))
    # Without a share of the teacher's it is a control, and both heads learn from the labels.
    layout = trainer(tmp_path, student(), alpha=0.0).task.layout
    assert isinstance(layout, TwoHeads) and not layout.taught


def test_a_student_with_one_head_is_refused(tmp_path: Path) -> None:
    rows = [{"features": torch.tensor([0]), "labels": torch.tensor(0)}]
    made = DistillationTrainer(
        Heads(logits=[[0.0, 1.0]]),
        by_sgd.arguments(tmp_path),
        objective=LABELS_ALONE,
        task="two_head_classification",
        train_dataset=rows,
    )
    with pytest.raises(HfDistillError, match="expected a mapping with cls_logits and distillation_logits"):
        made.train()
