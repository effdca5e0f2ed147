"""What two models must agree on, checked before the first step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForMaskedLM, TrainingArguments

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, Logits, Objective, TaskLoss
from hfdistill.contract import aligned_classes, check_trained, fresh_parameters
from hfdistill.losses import decoupled_kl, dist, forward_kl
from tests import tiny
from tests.trainer.test_trainer import config


def test_same_names_in_another_order_are_reordered() -> None:
    alignment = aligned_classes(["cat", "dog", "Polar bear"], ["polar_bear", "Cat", "dog"])
    assert alignment.columns == (1, 2, 0)
    assert "reordered" in alignment.notice


def test_a_teacher_with_more_classes_is_restricted() -> None:
    alignment = aligned_classes(["cat", "dog"], ["dog", "fish", "cat"])
    assert alignment.columns == (2, 0)
    assert "renormalised" in alignment.notice


def test_equal_names_twice_keep_their_order() -> None:
    assert aligned_classes(["crane", "owl", "crane"], ["crane", "crane", "owl"]).columns == (0, 2, 1)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (["cat", "dog"], ["car", "bus"], "share no class by name"),
        (["cat", "dog"], ["cat", "bus"], "only 1 of 2 classes"),
        (["LABEL_0", "LABEL_1"], ["a", "b", "c"], "2 classes and the teacher 3"),
    ],
)
def test_spaces_that_do_not_meet_are_refused(student: list[str], teacher: list[str], words: str) -> None:
    with pytest.raises(HfDistillError, match=words):
        aligned_classes(student, teacher)


def test_generic_names_match_by_index() -> None:
    assert aligned_classes(["LABEL_0", "LABEL_1"], ["no", "yes"]).columns is None


def test_reordered_teacher_trains_the_same_student(tmp_path: Path) -> None:
    student, teacher = tiny.model("bert", seed=1), tiny.model("bert", seed=2)
    other = copy.deepcopy(teacher)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        other.classifier.weight.copy_(teacher.classifier.weight[order])
        other.classifier.bias.copy_(teacher.classifier.bias[order])
    other.config.id2label = {place: f"class_{int(index)}" for place, index in enumerate(order)}
    batch = tiny.batch("bert")
    losses = []
    for each in (teacher, other):
        trainer = DistillationTrainer(student, config(tmp_path), teacher_model=each)
        losses.append(trainer.compute_loss(trainer.model, dict(batch)))
    torch.testing.assert_close(*losses)


def test_head_from_no_checkpoint_is_refused(tmp_path: Path) -> None:
    BertForMaskedLM(tiny.model("bert").config).save_pretrained(tmp_path / "mlm")
    teacher = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mlm", num_labels=3)
    assert "classifier.weight" in fresh_parameters(teacher)
    with pytest.raises(HfDistillError, match="freshly initialised"):
        DistillationTrainer(tiny.model("bert"), config(tmp_path), teacher_model=teacher)
    with pytest.raises(HfDistillError, match="two heads for the same task"):
        DistillationTrainer(tiny.model("bert"), config(tmp_path), teacher_model=str(tmp_path / "mlm"))
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1)
    teacher(**tiny.batch("bert")).loss.backward()
    optimizer.step()
    check_trained(teacher)


def test_headless_folder_is_refused_by_name(tmp_path: Path) -> None:
    bert = tiny.model("bert")
    bert.bert.save_pretrained(tmp_path / "body")
    settings = bert.bert.config
    settings.architectures = ["BertForSequenceClassification"]
    settings.save_pretrained(tmp_path / "body")
    with pytest.raises(HfDistillError, match=r"classifier\.weight"):
        DistillationTrainer(tiny.model("bert"), config(tmp_path), teacher_model=str(tmp_path / "body"))


def test_teacher_must_be_another_object(tmp_path: Path) -> None:
    model = tiny.model("bert")
    with pytest.raises(HfDistillError, match="same object"):
        DistillationTrainer(model, config(tmp_path), teacher_model=model)
    sharing = tiny.model("bert", seed=3)
    sharing.bert = model.bert
    with pytest.raises(HfDistillError, match="of their own"):
        DistillationTrainer(model, config(tmp_path), teacher_model=sharing)


def test_problem_types_must_agree(tmp_path: Path) -> None:
    student = tiny.model("bert", problem_type="single_label_classification")
    teacher = tiny.model("bert", problem_type="multi_label_classification")
    with pytest.raises(HfDistillError, match="same task"):
        DistillationTrainer(student, config(tmp_path), teacher_model=teacher)


def test_mismatched_number_of_labels(tmp_path: Path) -> None:
    student, teacher = tiny.model("bert", num_labels=3), tiny.model("bert", num_labels=4)
    for each in (student, teacher):
        each.config.id2label = {place: f"LABEL_{place}" for place in range(each.config.num_labels)}
    with pytest.raises(HfDistillError, match="3 classes and the teacher 4"):
        DistillationTrainer(student, config(tmp_path), teacher_model=teacher)


@pytest.mark.parametrize(
    ("term", "classes"),
    [(Logits(forward_kl), 1), (Logits(decoupled_kl), 2), (Logits(dist), 2), (Logits(forward_kl, standardized=True), 2)],
    ids=repr,
)
def test_loss_that_is_dead_for_the_head_is_refused(term: Logits, classes: int, tmp_path: Path) -> None:
    pair = [tiny.model("bert", num_labels=classes, seed=seed) for seed in (1, 2)]
    with pytest.raises(HfDistillError, match="got"):
        DistillationTrainer(pair[0], config(tmp_path), teacher_model=pair[1], objective=Objective([term]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Logits("forward_lk"), "did you mean 'forward_kl'"),
        (lambda: Logits(forward_kl, temprature=2.0), "did you mean 'temperature'"),
        (lambda: Logits(weight=-1), "at least 0"),
        (lambda: Logits(temperature=-1.0), "temperature"),
        (lambda: Logits("jensen_shannon", beta=2.0), "beta"),
        (lambda: Logits("top_k_kl"), "use forward_kl"),
        (lambda: Logits("channel_wise_kl"), "positions"),
        (lambda: Objective([]), "without terms"),
        (lambda: Objective([Logits(), Logits()]), "same name"),
        (lambda: Objective([TaskLoss(0.0)]), "All weights are 0"),
        (lambda: DistillationConfig(output_dir="x", alpha=1.5), "from 0 to 1"),
        (lambda: DistillationConfig(output_dir="x", temperature=0), "above 0"),
    ],
)
def test_wrong_settings_say_what_to_change(make: object, words: str) -> None:
    with pytest.raises(HfDistillError, match=words):
        make()  # type: ignore[operator]


def test_wrong_arguments_say_what_to_change(tmp_path: Path) -> None:
    student, teacher = tiny.model("bert"), tiny.model("bert", seed=1)
    with pytest.raises(HfDistillError, match="DistillationConfig"):
        DistillationTrainer(student, TrainingArguments(str(tmp_path), report_to="none"), teacher_model=teacher)
    with pytest.raises(HfDistillError, match="Objective"):
        DistillationTrainer(student, config(tmp_path), teacher_model=teacher, compute_loss_func=lambda *a: 0)
    with pytest.raises(HfDistillError, match="empty"):
        DistillationTrainer(student, config(tmp_path), teacher_model=teacher, train_dataset=[])
