"""What cannot be an ensemble, or cannot teach this student: refused early, by place and name of the member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn

from hfdistill import (
    DistillationConfig,
    DistillationTrainer,
    EnsembleTeacher,
    HfDistillError,
    HiddenStates,
    Logits,
    MappedTeacher,
    Objective,
    OwnBase,
    TaskLoss,
)
from hfdistill.losses import forward_kl
from tests import by_sgd, tiny, tiny_pairs, tiny_queries
from tests.tasks import token_models
from tests.teachers.test_ensemble import data_of, three_of
from tests.trainer.test_vocabulary import FAMILY, tokenizer


def made(folder: Path, student: nn.Module, ensemble: EnsembleTeacher, **kwargs: Any) -> DistillationTrainer:
    arguments = kwargs.pop("args", by_sgd.arguments(folder))
    return DistillationTrainer(student, arguments, teacher_model=ensemble, **kwargs)


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([], {}, "No members came"),
        ("bert", {}, "expected a list of Hub ids"),
        ([nn.Identity(), OwnBase()], {}, r"members\[1\] of an EnsembleTeacher is a OwnBase"),
        ([EnsembleTeacher(["a"])], {}, r"members\[0\] of an EnsembleTeacher is a EnsembleTeacher"),
        (["a", "b"], {"weights": [1]}, r"weights=\[1\] came for 2 members"),
        (["a", "b"], {"weights": [0, 0]}, "some above 0"),
        (["a", "b"], {"weights": [1, -1]}, "at least 0"),
        (["a", "b"], {"weights": [1, float("nan")]}, "finite"),
        (["a", "b"], {"weights": "ab"}, "finite"),
        (["a", "b"], {"average": "logit"}, "did you mean 'logits'"),
        (["a", "b"], {"by": "language", "weights": [1, 2]}, "came beside weights"),
        (["a", "b"], {"by": "language", "confidence": True}, "came beside confidence"),
        (["a"], {"confidence": True}, "one member came"),
    ],
)
def test_no_ensemble(members: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HfDistillError, match=message):
        EnsembleTeacher(members, **options)


def test_weights_sum_to_one() -> None:
    assert EnsembleTeacher(["a", "b", "c"], [1, 0, 3]).shares == [0.25, 0.0, 0.75]
    assert EnsembleTeacher(["a", "b"]).shares == [0.5, 0.5]


def test_a_member_without_weight_is_not_asked(tmp_path: Path) -> None:
    student, *teachers = three_of()
    teachers[1].register_forward_hook(lambda *_: pytest.fail("asked"))
    trainer = made(tmp_path, student, EnsembleTeacher(teachers, [2, 0], confidence=True), train_dataset=data_of())
    trainer.train()


def test_a_member_with_other_classes_is_named(tmp_path: Path) -> None:
    student, first, _ = three_of()
    other = tiny.model("vit", num_labels=4)
    other.config.id2label = dict(enumerate(["class_0", "class_1", "cat", "dog"]))
    with pytest.raises(HfDistillError, match=r"members\[1\] \(ViTForImageClassification\): .*only 2 of 3 classes"):
        made(tmp_path, student, EnsembleTeacher([first, other]))
    with pytest.raises(
        HfDistillError, match=r"members\[1\] \(ViTForImageClassification\): Student and teacher are the"
    ):
        made(tmp_path, student, EnsembleTeacher([first, student]))


def test_a_member_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    student, first, _ = three_of()
    with pytest.raises(HfDistillError, match=r"members\[1\] \(no/such\): The teacher 'no/such' could not be loaded"):
        made(tmp_path, student, EnsembleTeacher([first, "no/such"]))
    with pytest.raises(HfDistillError, match=r"members\[0\] \(no/such\)"):
        made(tmp_path, student, EnsembleTeacher([MappedTeacher("no/such", {"class_0": "a"})]))
    args = DistillationConfig(output_dir=str(tmp_path), teacher_model_revision="main", report_to="none", use_cpu=True)
    with pytest.raises(HfDistillError, match="have revisions of their own"):
        made(tmp_path, student, EnsembleTeacher([first]), args=args)


def test_folders_are_loaded_and_named(tmp_path: Path) -> None:
    student, *teachers = three_of()
    for place, teacher in enumerate(teachers):
        teacher.save_pretrained(tmp_path / f"t{place}")
    folders = [str(tmp_path / f"t{place}") for place in range(2)]
    trainer = made(tmp_path, student, EnsembleTeacher(folders))
    assert trainer.teacher_name == ", ".join(folders)
    batch = tiny.batch("vit")
    one = trainer.teacher(batch).at(2.0)
    torch.testing.assert_close(one, made(tmp_path, student, EnsembleTeacher(teachers)).teacher(batch).at(2.0))
    # Without a term that asks a teacher none is loaded.
    control = made(tmp_path, student, EnsembleTeacher(["no/such"]), objective=Objective([TaskLoss()]))
    assert control.teacher is None and control.teacher_name is None


def test_classes_in_another_order(tmp_path: Path) -> None:
    student, first, second = three_of()
    batch = tiny.batch("vit")
    second.config.id2label = {0: "class_2", 1: "Class 0", 2: "class_1"}
    targets = made(tmp_path, student, EnsembleTeacher([first, second])).teacher(batch)
    raw = second(batch["pixel_values"]).logits.detach()
    torch.testing.assert_close(targets.said[1].logits, raw[:, [1, 2, 0]])


def test_members_that_read_different_inputs(tmp_path: Path) -> None:
    student, first, _ = three_of()
    config = tiny.config("vit")
    config.image_size = 32
    with pytest.raises(HfDistillError, match=r"members\[0\] .* and members\[1\] .*\(image size 16 against 32\)"):
        made(tmp_path, student, EnsembleTeacher([first, type(first)(config)]))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("langage", 0, "did you mean 'language'"),
        ("attention_mask", torch.ones(12), "holds tensor"),
        ("share", 0.5, r"holds 0.5"),
        ("flag", True, r"holds True"),
        ("text", "fr", r"holds 'fr'.*class_encode_column\('text'\)"),
        ("token_type_ids", 0, "an input of a model"),
    ],
)
def test_columns_that_name_no_member(column: str, value: Any, message: str, tmp_path: Path) -> None:
    student, *teachers = three_of("bert")
    data = [row if column == "langage" else {**row, column: value} for row in data_of("bert")]
    with pytest.raises(HfDistillError, match=message):
        made(tmp_path, student, EnsembleTeacher(teachers, by=column), train_dataset=data)


def test_a_number_that_no_member_has(tmp_path: Path) -> None:
    student, *teachers = three_of("bert")
    rows = [{key: value.tolist() for key, value in row.items()} for row in data_of("bert", members=3)]
    trainer = made(
        tmp_path, student, EnsembleTeacher(teachers, by="language"), train_dataset=datasets.Dataset.from_list(rows)
    )
    with pytest.raises(HfDistillError, match=r"'language' holds 2, and the ensemble has 2 members"):
        trainer.train()
    batch = tiny.batch("bert")
    with pytest.raises(HfDistillError, match="Nothing came in the column 'language'"):
        trainer.compute_loss(student, batch)
    wrong = batch | {"language": torch.tensor([0, 1, 0, 1]), "packed": torch.zeros(1, 48)}
    with pytest.raises(HfDistillError, match="'packed' of shape"):
        trainer.compute_loss(student, wrong)


@pytest.mark.parametrize("options", [{}, {"by": "language"}, {"average": "logits"}], ids=str)
def test_a_member_that_gives_no_number_is_named(options: dict[str, Any], tmp_path: Path) -> None:
    student, *teachers = three_of()
    teachers[1].classifier.bias.data[1] = float("nan")
    args = by_sgd.arguments(tmp_path, save_strategy="steps", save_steps=1)
    trainer = made(tmp_path, student, EnsembleTeacher(teachers, **options), args=args, train_dataset=data_of())
    batch = tiny.batch("vit") | {"language": torch.tensor([0, 1, 0, 1])}
    rows = r"\[1, 3\];" if options.get("by") else r"\[0, 1, 2, 3\] of 4;"
    with pytest.raises(HfDistillError, match=rf"members\[1\] \(ViTForImageClassification\) gave NaN .* rows {rows}"):
        trainer.compute_loss(student, batch)
    with pytest.raises(HfDistillError, match=r"members\[1\] .* optimizer step 1"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_confidence_needs_a_class_a_row(problem_type: str, tmp_path: Path) -> None:
    student, *teachers = three_of("bert", problem_type=problem_type)
    with pytest.raises(HfDistillError, match=f"the labels of {problem_type} are not one class a row"):
        made(tmp_path, student, EnsembleTeacher(teachers, confidence=True))


def test_sets_of_queries_and_divided_pairs(tmp_path: Path) -> None:
    detectors = [tiny_queries.model("detr", seed) for seed in (1, 2)]
    with pytest.raises(HfDistillError, match="whose queries are a set"):
        made(tmp_path, detectors[0], EnsembleTeacher(detectors[1:]))
    pairs = [tiny_pairs.model("clip", seed=seed) for seed in (1, 2)]
    with pytest.raises(HfDistillError, match="cannot be divided among teachers"):
        made(tmp_path, pairs[0], EnsembleTeacher(pairs[1:], by="language"))


def test_terms_on_the_insides_of_a_teacher(tmp_path: Path) -> None:
    student, *teachers = three_of()
    with pytest.raises(HfDistillError, match=r"HiddenStates.* insides of one teacher"):
        made(tmp_path, student, EnsembleTeacher(teachers), objective=Objective([Logits(), HiddenStates()]))


class Head(nn.Module):
    """A module without a config, which cannot be looked at before it is asked."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(x)}


def test_outputs_of_other_widths(tmp_path: Path) -> None:
    data = [{"x": torch.zeros(4), "labels": torch.tensor(0)}]
    trainer = made(tmp_path, Head(3), EnsembleTeacher([Head(3), Head(4)]), train_dataset=data)
    with pytest.raises(HfDistillError, match=r"members\[0\] \(Head\) gives .* members\[1\] \(Head\) of shape \(1, 4\)"):
        trainer.compute_loss(trainer.model, {"x": torch.zeros(1, 4), "labels": torch.zeros(1, dtype=torch.long)})


def test_a_member_with_another_vocabulary_is_named(tmp_path: Path) -> None:
    student, *teachers = (token_models.model("llama", seed=seed, vocabulary=len(FAMILY)) for seed in (1, 2, 3))
    for place, words in enumerate((FAMILY, [*FAMILY[:5], *reversed([f"{word}x" for word in FAMILY[5:]])])):
        teachers[place].save_pretrained(tmp_path / f"t{place}")
        tokenizer(words).save_pretrained(tmp_path / f"t{place}")
    folders = [str(tmp_path / f"t{place}") for place in range(2)]
    with pytest.raises(HfDistillError, match=r"members\[1\] .*t1\): The tokenizers of student and teacher agree on"):
        made(tmp_path, student, EnsembleTeacher(folders), processing_class=tokenizer(FAMILY))
    assert made(tmp_path, student, EnsembleTeacher(folders[:1]), processing_class=tokenizer(FAMILY)).teacher is not None


def test_a_loss_of_ones_own_sees_the_mixture_at_its_temperature(tmp_path: Path) -> None:
    def own_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 4.0) -> torch.Tensor:
        return forward_kl(student, teacher, temperature=temperature)

    student, *teachers = three_of()
    trainer = made(tmp_path, student, EnsembleTeacher(teachers), objective=Objective([Logits(own_loss)]))
    context = trainer.outputs_and_context(student, tiny.batch("vit"))[1]
    (term,) = trainer.distillation_objective.terms
    assert context.targets is not None
    expected = forward_kl(context.logits, context.targets.at(4.0), temperature=4.0)
    torch.testing.assert_close(term.values(context), expected)
