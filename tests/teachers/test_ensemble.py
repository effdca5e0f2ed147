"""Several teachers as one: what is averaged, at which temperature, with which weights, and who teaches what."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import CLIPImageProcessorPil, PreTrainedModel, ViTImageProcessorPil

from hfdistill import DistillationTrainer, EnsembleTeacher, Logits, Objective, TaskLoss
from hfdistill.knowledge import StepContext
from hfdistill.losses import bernoulli_kl, forward_kl
from hfdistill.tasks import TASKS
from hfdistill.teachers import LiveEnsemble, LiveMember, Targets
from hfdistill.teachers.ensemble import confidence_weights
from hfdistill.teachers.mixture import Mixture, weighted_mean
from tests import by_sgd, tiny, tiny_dense, tiny_pairs
from tests.tasks import token_models
from tests.teachers.test_zero_shot import NAMES, image_processor, pictures, student_of, teacher_of
from tests.trainer.test_no_sync import META, Classifier, copies_in_a_step, features
from tests.trainer.test_vocabulary import FAMILY, tokenizer, with_vocabulary
from tests.trainer.test_vocabulary import batch as words
from tests.trainer.trajectory import assert_same, examples

SINGLE = "single_label_classification"


def three_of(architecture: str = "vit", **settings: Any) -> list[PreTrainedModel]:
    """A student and two teachers."""
    return [tiny.model(architecture, layers=1, seed=seed, **settings) for seed in (1, 2, 3)]


def made(folder: Path, student: nn.Module, ensemble: EnsembleTeacher, **kwargs: Any) -> DistillationTrainer:
    arguments = kwargs.pop("args", by_sgd.arguments(folder, alpha=1.0, temperature=2.0))
    return DistillationTrainer(student, arguments, teacher_model=ensemble, **kwargs)


def said(logits: torch.Tensor) -> LiveMember:
    """A member that says the same of every batch."""
    return LiveMember("one", lambda inputs: Targets(logits), lambda inputs: inputs)


def ensemble_of(*logits: torch.Tensor, task: str = SINGLE, **options: Any) -> LiveEnsemble:
    description = EnsembleTeacher([nn.Identity() for _ in logits], **options)
    return LiveEnsemble([said(each) for each in logits], description, TASKS[task])


# ---- the mean --------------------------------------------------------------------------------------------------------


def test_a_mixture_by_hand() -> None:
    """softmax(2 ln 3 / 2, 0) = (3, 1) / 4 and softmax(0, 0) = (1, 1) / 2, at 3 to 1: (11, 5) / 16; at 1 (4, 1) / 5."""
    first, second = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    targets = ensemble_of(first, second, weights=[3, 1])({"labels": torch.zeros(1)})
    at_two = targets.at(2.0)
    torch.testing.assert_close((at_two / 2).softmax(-1), torch.tensor([[11 / 16, 5 / 16]]))
    torch.testing.assert_close(targets.logits.softmax(-1), torch.tensor([[0.8, 0.2]]))
    torch.testing.assert_close((targets.at(torch.tensor([[2.0]])) / 2).softmax(-1), (at_two / 2).softmax(-1))


def test_a_mixture_of_sigmoids_by_hand() -> None:
    """The same numbers: sigmoid(2 ln 3 / 2) = 3 / 4."""
    first, second = torch.tensor([[2 * math.log(3), -80.0]]), torch.zeros(1, 2)
    targets = ensemble_of(first, second, weights=[3, 1], task="multi_label_classification")({})
    torch.testing.assert_close((targets.at(2.0) / 2).sigmoid(), torch.tensor([[11 / 16, 1 / 8]]))
    torch.testing.assert_close(targets.at(2.0)[0, 0], torch.tensor(2 * math.log(11 / 5)))


def test_what_is_impossible_for_one_or_for_all() -> None:
    """A probability of 0 and a weight of 0 leave no NaN, neither in a mixture nor in a mean of logits."""
    first, second = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[0.0, -torch.inf, -torch.inf]])
    mixed = Mixture([first, second], torch.tensor([0.5, 0.5])).at(2.0)
    torch.testing.assert_close((mixed / 2).softmax(-1), torch.tensor([[0.75, 0.25, 0.0]]))
    for weights in (torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0]])):
        assert torch.equal(weighted_mean([first, second], weights), first)
        assert torch.equal(Mixture([first, second], weights).at(1.0).softmax(-1), first.softmax(-1))
    huge = Mixture([1e4 * first.clamp(-1, 1), torch.full((1, 3), -1e4)], torch.tensor([0.5, 0.5]), sigmoid=True).at(4.0)
    assert huge.isfinite().all()


@pytest.mark.parametrize("loss", ["forward_kl", "jensen_shannon"])
def test_each_term_has_the_mixture_at_its_own_temperature(loss: str, tmp_path: Path) -> None:
    student, *teachers = three_of()
    objective = Objective([Logits(loss, temperature=2.0, name="two"), Logits(loss, temperature=5.0, name="five")])
    trainer = made(tmp_path, student, EnsembleTeacher(teachers, weights=[1, 3]), objective=objective)
    batch = tiny.batch("vit")
    context = trainer.outputs_and_context(trainer.model, batch)[1]
    for temperature, term in zip((2.0, 5.0), objective.terms, strict=True):
        with torch.no_grad():
            one, other = ((teacher(batch["pixel_values"]).logits / temperature).softmax(-1) for teacher in teachers)
            own = student(batch["pixel_values"]).logits
        mixture = temperature * (0.25 * one + 0.75 * other).log()
        expected = term.loss(own, mixture, temperature=temperature)  # type: ignore[attr-defined]
        torch.testing.assert_close(term.values(context), expected, rtol=1e-4, atol=1e-5)
    assert all(not value.requires_grad for teacher in teachers for value in teacher.parameters())
    assert not any(teacher.training for teacher in teachers)


def test_a_step_mixes_once_a_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the term's temperature, whether that is 1 or not; the watch over faults needs no mixture."""
    student, *teachers = three_of()
    asked: list[object] = []
    at = Mixture.at

    def counted(mixture: Mixture, temperature: float, *others: Any) -> torch.Tensor:
        asked.append(temperature)
        return at(mixture, temperature, *others)

    monkeypatch.setattr(Mixture, "at", counted)
    for temperature in (1.0, 4.0):
        arguments = by_sgd.arguments(tmp_path, alpha=0.5, temperature=temperature, max_steps=2)
        data = examples("vit", SINGLE)
        made(tmp_path, student, EnsembleTeacher(teachers), args=arguments, train_dataset=data).train()
        assert len(asked) >= 2 and set(asked) == {temperature}
        assert len(asked) == 2 * arguments.gradient_accumulation_steps
        asked.clear()
    targets = ensemble_of(torch.zeros(1, 2), torch.ones(1, 2))({})
    assert asked == [] and targets.logits is targets.logits and asked == [1.0]


def test_the_default_temperature_and_none() -> None:
    """A loss without a temperature, and one with standardised logits, sees the mixture at 1; else its own default."""
    one, other = torch.tensor([[3.0, 0.0, -1.0]]), torch.tensor([[-1.0, 0.0, 2.0]])
    targets = ensemble_of(one, other)({})
    own = torch.tensor([[0.5, 0.0, -0.5]])
    context = StepContext(own, targets, TASKS[SINGLE].rows({"x": own}), TASKS[SINGLE])
    for term, at in (
        (Logits("logit_mse"), 1.0),
        (Logits("forward_kl", standardized=True), 1.0),
        (Logits("forward_kl"), 2.0),
        (Logits("reverse_kl"), 1.0),
    ):
        torch.testing.assert_close(term.values(context), term.loss(own, targets.at(at), **term.options))


def test_logits_and_outputs_are_averaged_as_they_are(tmp_path: Path) -> None:
    student, *teachers = three_of()
    trainer = made(tmp_path, student, EnsembleTeacher(teachers, [1, 3], average="logits"))
    batch = tiny.batch("vit")
    logits = [teacher(batch["pixel_values"]).logits.detach() for teacher in teachers]
    targets = trainer.teacher(trainer.views.teacher(batch))
    torch.testing.assert_close(targets.logits, 0.25 * logits[0] + 0.75 * logits[1])
    assert targets.at(7.0) is targets.logits
    values = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])]
    assert ensemble_of(*values, task="regression")({}).at(3.0).tolist() == [[2.0], [4.0]]


def test_multiple_labels_and_one_member(tmp_path: Path) -> None:
    kind = {"problem_type": "multi_label_classification"}
    student, *teachers = three_of("bert", **kind)
    batch = tiny.batch("bert", **kind)
    loss = made(tmp_path, student, EnsembleTeacher(teachers)).compute_loss(student, dict(batch))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    p = sum((teacher(**inputs).logits / 2).sigmoid() for teacher in teachers) / 2
    expected = bernoulli_kl(student(**inputs).logits, 2 * p.logit(), temperature=2.0).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    alone = made(tmp_path, student, EnsembleTeacher(teachers[:1])).compute_loss(student, dict(batch))
    single = DistillationTrainer(
        student, by_sgd.arguments(tmp_path, alpha=1.0, temperature=2.0), teacher_model=teachers[0]
    )
    torch.testing.assert_close(alone, single.compute_loss(student, dict(batch)))


# ---- weights by confidence -------------------------------------------------------------------------------------------


def test_confidence_by_hand() -> None:
    """Probabilities 1/2 and 1/4 of the label: losses ln 2 and ln 4, whose softmax is (1, 2) / 3."""
    losses = torch.tensor([[math.log(2), math.log(4)], [0.0, 1e9]])
    torch.testing.assert_close(
        confidence_weights(losses, torch.tensor([0.5, 0.5])), torch.tensor([[2 / 3, 1 / 3], [1.0, 0.0]])
    )
    torch.testing.assert_close(confidence_weights(losses[:1], torch.tensor([1 / 3, 2 / 3])), torch.tensor([[0.5, 0.5]]))
    impossible = torch.full((1, 3), torch.inf)
    torch.testing.assert_close(confidence_weights(impossible, torch.ones(3) / 3), torch.ones(1, 3) / 3)


def test_rows_without_a_label_take_the_plain_weights() -> None:
    first, second = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[-math.log(3), 0.0], [-math.log(3), 0.0]])
    batch = {"x": first, "labels": torch.tensor([0, -100])}
    logits = ensemble_of(first, second, confidence=True)(batch).logits
    expected = torch.tensor([2 / 3 * 0.5 + 1 / 3 * 0.25, 0.5 * 0.5 + 0.5 * 0.25])
    torch.testing.assert_close(logits.softmax(-1)[:, 0], expected)
    plain = ensemble_of(first, second, confidence=True)({"x": first}).logits
    torch.testing.assert_close(plain.softmax(-1)[:, 0], expected[1:].expand(2))


def test_confidence_of_each_token(tmp_path: Path) -> None:
    """A decoder's token is weighed by the label that stands one place further on; padding takes part in nothing."""
    student, *teachers = (token_models.model("llama", seed=seed) for seed in (1, 2, 3))
    batch = token_models.padded(token_models.examples("llama", 4))
    trainer = made(tmp_path, student, EnsembleTeacher(teachers, confidence=True))
    loss = trainer.compute_loss(student, dict(batch))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    own, *theirs = (model(**inputs).logits[:, :-1].detach() for model in (student, *teachers))
    targets = batch["labels"][:, 1:]
    kept = targets != -100
    losses = torch.stack([functional.cross_entropy(each[kept], targets[kept], reduction="none") for each in theirs], -1)
    weights = 1 - losses.softmax(-1)
    p = sum(weights[:, place, None] * (each[kept] / 2).softmax(-1) for place, each in enumerate(theirs))
    expected = forward_kl(own[kept], 2 * p.log(), temperature=2.0).mean()  # type: ignore[union-attr]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


# ---- a member for each example ---------------------------------------------------------------------------------------


def data_of(architecture: str = "vit", members: int = 2) -> list[dict[str, torch.Tensor]]:
    rows = examples(architecture, SINGLE)
    return [row | {"language": torch.tensor(place % members)} for place, row in enumerate(rows)]


def test_each_member_teaches_and_reads_its_own_examples(tmp_path: Path) -> None:
    student, *teachers = three_of("bert")
    read = []
    for teacher in teachers:
        teacher.register_forward_hook(lambda module, args, kwargs, output: read.append(set(kwargs)), with_kwargs=True)
    student.register_forward_hook(lambda module, args, kwargs, output: read.append(set(kwargs)), with_kwargs=True)
    rows = [{key: value.tolist() for key, value in row.items()} for row in data_of("bert")]
    dataset = datasets.Dataset.from_list(rows).add_column("note", ["x"] * len(rows))
    trainer = made(tmp_path, student, EnsembleTeacher(teachers, by="language"), train_dataset=dataset)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "language"}
    numbers = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1])
    batch = {**batch, "language": numbers}
    logits = trainer.teacher(trainer.views.teacher(batch)).logits
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    both = torch.stack([teacher(**inputs).logits for teacher in teachers], 1)
    torch.testing.assert_close(logits, both[torch.arange(8), numbers].detach())
    # A batch of one language leaves the other alone.
    read.clear()
    trainer.teacher({**batch, "language": torch.ones(8, dtype=torch.long)})
    assert len(read) == 1
    trainer.train()
    assert all("language" not in names for names in read)


class TakesAnything(nn.Module):
    """A model that does not say what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        assert set(inputs) == {"x"}
        return {"logits": self.head(inputs["x"])}


def test_the_number_never_reaches_a_model(tmp_path: Path) -> None:
    data = [{"x": torch.zeros(4), "labels": torch.tensor(0), "who": torch.tensor(place % 2)} for place in range(8)]
    ensemble = EnsembleTeacher([TakesAnything(), TakesAnything()], by="who")
    args = by_sgd.arguments(tmp_path, remove_unused_columns=False)
    trainer = made(tmp_path, TakesAnything(), ensemble, args=args, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.evaluate()["eval_loss/kd"] > 0
    assert trainer.predict(data).predictions.shape == (8, 2)


def test_raw_columns_keep_the_number(tmp_path: Path) -> None:
    rows = [{"image": row["image"], "who": place % 2} for place, row in enumerate(pictures(8))]
    teachers = [teacher_of(), teacher_of()]
    with torch.no_grad():
        teachers[1].model.logit_scale.add_(1.0)
    trainer = made(
        tmp_path,
        student_of(*NAMES),
        EnsembleTeacher(teachers, by="who"),
        train_dataset=rows,
        processing_class=image_processor(ViTImageProcessorPil, 0.5),
        teacher_processing_class=image_processor(CLIPImageProcessorPil, 0.2),
    )
    batch = trainer.data_collator(rows)
    assert batch["who"].tolist() == [0, 1] * 4
    logits = trainer.teacher(trainer.views.teacher(batch)).logits
    each = [teacher(batch["teacher_pixel_values"]).logits for teacher in teachers]
    torch.testing.assert_close(logits[0::2], each[0][0::2].detach())
    torch.testing.assert_close(logits[1::2], each[1][1::2].detach())


# ---- kinds of heads --------------------------------------------------------------------------------------------------


def test_maps_of_other_sizes(tmp_path: Path) -> None:
    """Each member's map is brought to the student's resolution before they are mixed."""
    student, first, second = (tiny_dense.model("segformer", seed=seed) for seed in (1, 2, 3))
    second.forward = lambda pixel_values, **_: {"logits": 5 * torch.ones(len(pixel_values), 3, 4, 4).cumsum(-1)}
    ensemble = made(tmp_path, student, EnsembleTeacher([first, second])).teacher
    batch = tiny_dense.batch("segformer", 2)
    targets = ensemble(batch)
    assert targets.logits.shape == (2, 8, 8, 3)
    own = torch.zeros(2, 8, 8, 3)
    mixed = targets.at(2.0, lambda logits: ensemble.task.matched(logits, own))
    maps = [first(batch["pixel_values"])["logits"], second(batch["pixel_values"])["logits"]]
    maps[1] = functional.interpolate(maps[1], (8, 8), mode="bilinear", align_corners=False)
    expected = sum((each / 2).softmax(1) for each in maps) / 2
    torch.testing.assert_close((mixed / 2).softmax(-1), expected.movedim(1, -1).detach())  # type: ignore[union-attr]


@pytest.mark.parametrize("sizes", [(24, 30), (24, 24), (30, 40)], ids=str)
def test_padded_vocabularies(sizes: tuple[int, int], tmp_path: Path) -> None:
    """Heads of other sizes are compared over the tokens that there are; a head of the student's own size too."""
    student, *teachers = (token_models.model("llama", seed=seed, vocabulary=len(FAMILY)) for seed in (1, 2, 3))
    both = {"processing_class": tokenizer(FAMILY), "teacher_processing_class": tokenizer(FAMILY)}
    plain = made(tmp_path, student, EnsembleTeacher(teachers), **both).compute_loss(student, words())
    wide = [with_vocabulary(teacher, size) for teacher, size in zip(teachers, sizes, strict=True)]
    padded = with_vocabulary(student, 24)
    trainer = made(tmp_path, padded, EnsembleTeacher(wide), **both)
    assert trainer.task.compared == (None if sizes == (24, 24) else len(FAMILY))
    if sizes != (24, 24):
        torch.testing.assert_close(trainer.compute_loss(padded, words()), plain)


def test_pairs_of_images_and_texts(tmp_path: Path) -> None:
    student, *teachers = (tiny_pairs.model("clip", seed=seed) for seed in (1, 2, 3))
    batch = tiny_pairs.batch(3)
    trainer = made(tmp_path, student, EnsembleTeacher(teachers, confidence=True))
    targets = trainer.teacher(trainer.views.teacher(batch))
    assert targets.logits.shape == (6, 3)
    losses = torch.stack(
        [functional.cross_entropy(each.logits, torch.arange(3).repeat(2), reduction="none") for each in targets.said], 1
    )
    weights = 1 - losses.softmax(1)
    p = sum(weights[:, place, None] * each.logits.softmax(-1) for place, each in enumerate(targets.said))
    torch.testing.assert_close(targets.logits.softmax(-1), p)


# ---- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"confidence": True, "weights": [1, 2]}, {"by": "language"}], ids=str)
def test_accumulation_changes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    def trained(**arguments: Any) -> dict[str, torch.Tensor]:
        student, *teachers = three_of("bert")
        args = by_sgd.arguments(tmp_path, alpha=0.6, temperature=3.0, **arguments)
        trainer = made(
            tmp_path, student, EnsembleTeacher(teachers, **options), args=args, train_dataset=data_of("bert")
        )
        trainer.train()
        return by_sgd.seen_in(trainer)

    whole = trained()
    assert_same(whole, trained(per_device_train_batch_size=2, gradient_accumulation_steps=4))
    assert whole["step 3 loss/kd"] > 0


def test_a_checkpoint_holds_the_student_and_resumes(tmp_path: Path) -> None:
    def trainer() -> DistillationTrainer:
        student, *teachers = three_of("bert")
        args = by_sgd.arguments(tmp_path, save_strategy="steps", save_steps=2)
        return made(tmp_path, student, EnsembleTeacher(teachers), args=args, train_dataset=data_of("bert"))

    whole = trainer()
    whole.train()
    saved = tmp_path / "checkpoint-2"
    assert load_file(saved / "model.safetensors").keys() == three_of("bert")[0].state_dict().keys()
    again = trainer()
    again.train(resume_from_checkpoint=str(saved))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{}, {"average": "logits"}, {"confidence": True}], ids=str)
def test_the_step_does_not_wait(options: dict[str, Any], tmp_path: Path) -> None:
    models = nn.ModuleList([Classifier(), Classifier(), Classifier()])
    data = [{"features": torch.zeros(8), "labels": torch.tensor(0)}]
    objective = Objective([TaskLoss(), Logits()])
    trainer = made(
        tmp_path, models[0], EnsembleTeacher(list(models)[1:], **options), train_dataset=data, objective=objective
    )
    models.to(META)
    trainer.train_parts.sums = trainer.train_parts.sums.to(META)
    assert copies_in_a_step(trainer, features()) == 0
