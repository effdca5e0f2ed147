"""A teacher in another label space: several of its classes are one of the student's, by their names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hfdistill import DistillationTrainer, EnsembleTeacher, HfDistillError, MappedTeacher
from hfdistill.losses import forward_kl
from hfdistill.teachers.mapped import MappedLogits, any_of
from tests import by_sgd, tiny
from tests.tasks import token_models
from tests.teachers.test_zero_shot import teacher_of
from tests.trainer.trajectory import assert_same, examples

SINGLE = "single_label_classification"
BREEDS = ["tabby, tabby cat", "Persian cat", "sports car", "beagle", "malinois"]
MEANT = {"cat": ["Persian_Cat", "tabby, tabby cat"], "dog": ["malinois", "beagle"]}


def named(model: PreTrainedModel, names: list[str]) -> PreTrainedModel:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: place for place, name in enumerate(names)}
    return model


def two_models(**kind: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student of two classes and a teacher of five."""
    student = named(tiny.model("bert", layers=1, num_labels=2, seed=1, **kind), ["dog", "cat"])
    return student, named(tiny.model("bert", num_labels=5, seed=2, **kind), BREEDS)


def made(folder: Path, student: Any, teacher: Any, **kwargs: Any) -> DistillationTrainer:
    arguments = kwargs.pop("args", by_sgd.arguments(folder, alpha=1.0, temperature=2.0))
    return DistillationTrainer(student, arguments, teacher_model=teacher, **kwargs)


def test_probabilities_of_a_group_add_up_by_hand() -> None:
    """Odds 1, 2, 3, 4: the first and the last together are 5 of 10 beside 2, so 5 / 7 without the third."""
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()
    mapped = MappedLogits(lambda outputs, inputs: outputs, [[1], [0, 3]], sigmoid=False)
    torch.testing.assert_close(mapped(logits, {}).softmax(-1), torch.tensor([[2 / 7, 5 / 7]]))
    one_to_one = MappedLogits(lambda outputs, inputs: outputs, [[3], [1]], sigmoid=False)
    assert torch.equal(one_to_one(logits, {}), logits[:, [3, 1]])


def test_at_least_one_of_several_by_hand() -> None:
    """1 - (1 - 1/2) (1 - 1/3) = 2/3, whose logit is ln 2; what is far from 0 stays finite and exact."""
    logits = torch.tensor([0.0, -math.log(2)])
    torch.testing.assert_close(any_of(logits), torch.tensor(math.log(2)))
    torch.testing.assert_close(any_of(torch.tensor([-30.0, -30.0])), torch.tensor(-30 + math.log(2)))
    torch.testing.assert_close(any_of(torch.tensor([-1e4, -1e4])), torch.tensor(-1e4 + math.log(2)))
    torch.testing.assert_close(any_of(torch.tensor([40.0, -1e4])), torch.tensor(40.0))
    assert any_of(torch.tensor([-torch.inf, -torch.inf])) == -torch.inf
    assert any_of(torch.tensor([1.0, float("nan")])).isnan()
    # On both sides of the place where the formula changes.
    for exponent in (-16.0, -14.5, -13.8, -13.0, -3.0, -1.0):
        exact = torch.tensor([exponent, exponent - 1], dtype=torch.float64)
        expected = (1 - (1 - exact.sigmoid()).prod()).logit()
        torch.testing.assert_close(any_of(exact.float()), expected.float(), rtol=1e-6, atol=1e-6)


def test_the_step_compares_the_sums(tmp_path: Path) -> None:
    student, teacher = two_models()
    batch = tiny.batch("bert", num_labels=2)
    loss = made(tmp_path, student, MappedTeacher(teacher, MEANT)).compute_loss(student, dict(batch))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    p = teacher(**inputs).logits.softmax(-1)
    sums = torch.stack([p[:, 3] + p[:, 4], p[:, 0] + p[:, 1]], dim=1).log()
    expected = forward_kl(student(**inputs).logits, sums, temperature=2.0).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_labels_that_are_true_each_for_itself(tmp_path: Path) -> None:
    """A class of the teacher may then count for several of the student's."""
    kind = {"problem_type": "multi_label_classification"}
    student, teacher = two_models(**kind)
    batch = tiny.batch("bert", num_labels=2, **kind)
    trainer = made(tmp_path, student, MappedTeacher(teacher, {"dog": "beagle", "cat": BREEDS[:4]}))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    p = teacher(**inputs).logits.sigmoid()
    expected = torch.stack([p[:, 3], 1 - (1 - p[:, :4]).prod(-1)], dim=1)
    torch.testing.assert_close(trainer.teacher(inputs).logits.sigmoid(), expected.detach())


def test_a_member_of_an_ensemble_and_accumulation(tmp_path: Path) -> None:
    def trained(**arguments: Any) -> dict[str, torch.Tensor]:
        student, teacher = two_models()
        other = named(tiny.model("bert", num_labels=2, seed=3), ["cat", "dog"])
        args = by_sgd.arguments(tmp_path, alpha=0.6, temperature=3.0, **arguments)
        data = [{**row, "labels": row["labels"].clamp(max=1)} for row in examples("bert", SINGLE)]
        ensemble = EnsembleTeacher([MappedTeacher(teacher, MEANT), other])
        trainer = made(tmp_path, student, ensemble, args=args, train_dataset=data)
        trainer.train()
        return by_sgd.seen_in(trainer)

    assert_same(trained(), trained(per_device_train_batch_size=2, gradient_accumulation_steps=4))


def test_a_student_by_name_gets_the_mapped_classes(tmp_path: Path) -> None:
    _, teacher = two_models()
    tiny.model("bert", layers=1).save_pretrained(tmp_path / "student")
    for mapped in (MappedTeacher(teacher, MEANT), EnsembleTeacher([MappedTeacher(teacher, MEANT)])):
        trainer = made(tmp_path, str(tmp_path / "student"), mapped)
        assert trainer.model.config.id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"cat": "Persian cat"}, "maps no class of the teacher to 'dog'"),
        ({"cat": "Persian cat", "dog": []}, "maps no class of the teacher to 'dog'"),
        (MEANT | {"birds": "beagle"}, "maps 'birds', and the student has no such class"),
        (MEANT | {"dogs": "beagle"}, "did you mean 'dog'"),
        (
            {"cat": "Persian cats", "dog": "beagle"},
            "names 'Persian cats', and the teacher .* did you mean 'Persian cat'",
        ),
        ({"cat": BREEDS[:4], "dog": "beagle"}, "maps the teacher's 'beagle' more than once"),
    ],
)
def test_names_that_do_not_fit(classes: dict[str, Any], message: str, tmp_path: Path) -> None:
    student, teacher = two_models()
    with pytest.raises(HfDistillError, match=message):
        made(tmp_path, student, MappedTeacher(teacher, classes))
    with pytest.raises(HfDistillError, match=rf"members\[0\] \(BertForSequenceClassification\): .*{message}"):
        made(tmp_path, student, EnsembleTeacher([MappedTeacher(teacher, classes)]))


def test_a_name_of_two_classes(tmp_path: Path) -> None:
    """ImageNet has two classes called crane."""
    student, teacher = two_models()
    named(teacher, ["crane", "tabby", "crane", "beagle", "boxer"])
    with pytest.raises(HfDistillError, match=r"'crane', which is the name of 2 classes of the teacher \(0, 2\)"):
        made(tmp_path, student, MappedTeacher(teacher, {"cat": "crane", "dog": "beagle"}))


def test_tasks_without_names(tmp_path: Path) -> None:
    student, teacher = (token_models.model("llama", seed=seed) for seed in (1, 2))
    with pytest.raises(HfDistillError, match="maps classes that have names"):
        made(tmp_path, student, MappedTeacher(teacher, {"a": "b"}))
    picture = named(tiny.model("vit", num_labels=2), ["cat", "dog"])
    with pytest.raises(HfDistillError, match=r"ZeroShotTeacher\(\.\.\., classes="):
        made(tmp_path, picture, MappedTeacher(teacher_of(), MEANT))
    head = torch.nn.Linear(4, 2)
    with pytest.raises(HfDistillError, match="the student has no config with class names"):
        data = [{"input": torch.zeros(4), "labels": torch.tensor(0)}]
        made(tmp_path, head, MappedTeacher(picture, MEANT), train_dataset=data)
