"""Images and texts: rows and losses by hand, the heads' own losses, short trainings, what cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForZeroShotImageClassification, EvalPrediction

from hfdistill import DistillationConfig, DistillationTrainer, Embeddings, HfDistillError, Logits, Objective, TaskLoss
from hfdistill.knowledge import StepContext
from hfdistill.rows import RowCounts
from hfdistill.tasks import TASKS, task_of
from hfdistill.tasks.pairs import pair_width
from hfdistill.teachers import Targets
from tests import by_sgd, tiny, tiny_pairs
from tests.trainer.trajectory import assert_same

KINDS = ("clip", "siglip")
SOFTMAX, SIGMOID = TASKS["image_text"], TASKS["image_text_sigmoid"]


def trainer_of(folder: Path, kind: str = "clip", objective: Objective | None = None, **changes: Any) -> Any:
    """A student of one layer and its teacher of two, on 24 pairs without labels, by SGD."""
    student = changes.pop("student", None) or tiny_pairs.model(kind, seed=1)
    teacher = changes.pop("teacher", None) or tiny_pairs.model(kind, layers=2, seed=2)
    data = changes.pop("data", None) or tiny_pairs.pairs(24)
    extra = {name: changes.pop(name) for name in ("eval_dataset", "compute_metrics") if name in changes}
    config = by_sgd.arguments(folder, **{"learning_rate": 0.1, **changes})
    return DistillationTrainer(student, config, teacher_model=teacher, train_dataset=data, objective=objective, **extra)


def test_softmax_by_hand() -> None:
    """Two pairs whose similarities are logarithms, so that each row is a coin of known odds."""
    images = torch.tensor([[math.log(3.0), 0.0], [math.log(2.0), math.log(7.0)]])  # 3 : 1 and 2 : 7 over texts
    texts = images.mT  # 3 : 2 and 1 : 7 over images
    outputs = {"logits_per_image": images, "logits_per_text": texts}
    inputs = {"input_ids": torch.zeros(2, 5), "pixel_values": torch.zeros(2, 3, 4, 4)}
    rows, logits = SOFTMAX.rows(inputs), SOFTMAX.logits(outputs, inputs)
    assert rows.labels is not None
    assert rows.labels.tolist() == [0, 1, 0, 1]
    values = SOFTMAX.label_values(logits, rows, 0.0, None)
    torch.testing.assert_close(values, torch.tensor([4 / 3, 9 / 7, 5 / 3, 8 / 7]).log())
    # A teacher that is undecided: KL of a fair coin to each of them.
    context = StepContext(logits, Targets(torch.zeros(4, 2)), rows, SOFTMAX)
    kl = [0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)) for p in (3 / 4, 7 / 9, 3 / 5, 7 / 8)]
    _, parts = Objective([Logits(temperature=1.0)])(context, RowCounts.of([rows], torch.device("cpu")))
    assert parts["kd"].item() == pytest.approx(sum(kl) / 4, rel=1e-5)


def test_sigmoid_by_hand() -> None:
    """Each pair by itself: odds 3 : 1 for its own, 1 : 1 for the other; the sum over counterparts."""
    images = torch.tensor([[math.log(3.0), 0.0], [0.0, -math.log(3.0)]])
    outputs = {"logits_per_image": images, "logits_per_text": images.mT}
    inputs = {"input_ids": torch.zeros(2, 5), "pixel_values": torch.zeros(2, 3, 4, 4)}
    rows, logits = SIGMOID.rows(inputs), SIGMOID.logits(outputs, inputs)
    values = SIGMOID.label_values(logits, rows, 0.0, None)
    one, other = math.log(4 / 3) + math.log(2), math.log(4) + math.log(2)
    torch.testing.assert_close(values, torch.tensor([one, other, one, other]))


@pytest.mark.parametrize("kind", KINDS)
def test_task_loss_is_the_heads_own(kind: str) -> None:
    network, batch = tiny_pairs.model(kind, seed=1), tiny_pairs.batch(5)
    outputs = network(**batch, return_loss=True)
    task = task_of(network)
    assert task.name == {"clip": "image_text", "siglip": "image_text_sigmoid"}[kind]
    values = task.label_values(task.logits(outputs, batch), task.rows(batch), 0.0, None)
    torch.testing.assert_close(values.mean(), outputs.loss)


@pytest.mark.parametrize("task", [SOFTMAX, SIGMOID], ids=KINDS)
def test_a_pair_alone_teaches_nothing(task: Any) -> None:
    """The last batch of an epoch may hold one pair: each loss is what its formula gives for one, and finite."""
    inputs = {"input_ids": torch.zeros(1, 5), "pixel_values": torch.zeros(1, 3, 4, 4)}
    one = torch.tensor([[math.log(3.0)]], requires_grad=True)
    rows, logits = task.rows(inputs), task.logits({"logits_per_image": one, "logits_per_text": one.mT}, inputs)
    teacher = task.logits({"logits_per_image": one.detach(), "logits_per_text": one.detach()}, inputs)
    values = task.label_values(logits, rows, 0.0, None)
    torch.testing.assert_close(values, torch.full((2,), 0.0 if task is SOFTMAX else math.log(4 / 3)))
    context = StepContext(logits, Targets(teacher), rows, task)
    total, parts = Objective.default(task, 0.5, 2.0)(context, RowCounts.of([rows], torch.device("cpu")))
    assert parts["kd"].item() == 0
    total.backward()
    assert torch.isfinite(one.grad).all()


def test_embeddings_by_hand() -> None:
    """An image at a right angle to the teacher's, a text at 60 degrees, the others in place."""
    right, there, half = [0.0, 1.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]
    student = {"image_embeds": torch.tensor([right, there]), "text_embeds": torch.tensor([half, there])}
    teacher = {name: torch.tensor([there, there]) for name in student}
    rows = SOFTMAX.rows({"input_ids": torch.zeros(2, 5), "pixel_values": torch.zeros(2, 3, 4, 4)})
    context = StepContext(torch.zeros(4, 2), Targets(torch.zeros(4, 2), teacher), rows, SOFTMAX, fields=student)
    torch.testing.assert_close(Embeddings().values(context), torch.tensor([1.0, 0.0, 0.5, 0.0]))
    squares = Embeddings("hint").values(context)  # mean over two coordinates of the squared difference
    torch.testing.assert_close(squares, torch.tensor([1.0, 0.0, (0.25 + 0.75) / 2, 0.0]))


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_is_learnt_without_labels(kind: str, tmp_path: Path) -> None:
    objective = Objective([TaskLoss(0.1), Logits(task_of(tiny_pairs.model(kind)).default_loss), Embeddings()])
    changes: dict[str, Any] = {"max_steps": 20, "optim": "adamw_torch", "learning_rate": 1e-2}
    # Loaders that were written for plain Trainer ask for the model's own loss.
    data = [{**row, "return_loss": True} for row in tiny_pairs.pairs(8)]
    student = tiny_pairs.model(kind, width=12, seed=1)
    teacher = tiny_pairs.model(kind, width=12, layers=2, seed=2)
    trainer = trainer_of(tmp_path, kind, objective, data=data, student=student, teacher=teacher, **changes)
    assert "return_loss" not in trainer.views.student(next(iter(trainer.get_train_dataloader())))
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert last["loss/kd"] < 0.3 * first["loss/kd"]
    assert last["loss/embeddings"] < 0.7 * first["loss/embeddings"]
    before = dict(tiny_pairs.model(kind, width=12, seed=1).named_parameters())
    assert [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])] == []

    trainer.save_model(str(tmp_path / "saved"))
    reloaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path / "saved").eval()
    batch = tiny_pairs.batch(8)
    with torch.no_grad():
        torch.testing.assert_close(
            reloaded(**batch).logits_per_image, trainer.model.eval()(**batch).logits_per_image, rtol=0, atol=0
        )


def test_evaluation_keeps_the_embeddings(tmp_path: Path) -> None:
    """23 and 1 pairs a batch: losses over all rows, predictions an embedding each, metrics without labels."""

    def recall(prediction: EvalPrediction) -> dict[str, float]:
        images, texts = (torch.as_tensor(each) for each in prediction.predictions)
        return {"recall": ((images @ texts.mT).argmax(1) == torch.arange(len(images))).float().mean().item()}

    data = tiny_pairs.pairs(24)
    trainer = trainer_of(
        tmp_path, per_device_eval_batch_size=23, eval_dataset=data, compute_metrics=recall, label_names=["labels"]
    )
    metrics = trainer.evaluate()
    batch = tiny_pairs.batch(24)
    big = {name: value[:23] for name, value in batch.items()}
    with torch.no_grad():
        loss = trainer.model(**big, return_loss=True).loss
    assert metrics["eval_loss/task"] == pytest.approx(loss.item() * 46 / 48, rel=1e-5)
    assert {"eval_loss", "eval_loss/kd", "eval_recall"} <= metrics.keys()
    images, texts = trainer.predict(data).predictions
    assert images.shape == texts.shape == (24, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_do_not_depend_on_the_cut(kind: str, tmp_path: Path) -> None:
    """All else does, by definition: the negatives are those of the micro-batch."""
    whole = trainer_of(tmp_path, kind, Objective([Embeddings()]))
    whole.train()
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    cut = trainer_of(tmp_path, kind, Objective([Embeddings()]), **changes)
    cut.train()
    assert_same(by_sgd.seen_in(whole), by_sgd.seen_in(cut))


def test_a_cut_batch_is_the_mean_of_its_pieces(tmp_path: Path) -> None:
    """Four micro-batches of two give the mean of their four losses, each with its own negatives."""
    trainer = trainer_of(tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    pieces = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()][:4]
    with torch.no_grad():
        losses = [trainer.model(**piece, return_loss=True).loss for piece in pieces]
    trainer.train()
    assert trainer.state.log_history[0]["loss/task"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_relations_take_models_of_different_widths(tmp_path: Path) -> None:
    student = tiny_pairs.model("clip", projection=8, seed=1)
    objective = Objective([Logits(), Embeddings("similarity_preserving", weight=10.0)])
    trainer = trainer_of(tmp_path, objective=objective, student=student)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss/embeddings"])


def test_what_does_not_fit_is_refused_at_once(tmp_path: Path) -> None:
    narrow = tiny_pairs.model("clip", projection=8, seed=1)
    with pytest.raises(
        HfDistillError, match=r"image_embeds and text_embeds are 8 wide and the teacher's 12.*similarity"
    ):
        trainer_of(tmp_path, objective=Objective([Embeddings()]), student=narrow)
    with pytest.raises(HfDistillError, match="both of that kind"):
        trainer_of(tmp_path, teacher=tiny_pairs.model("clip", seed=2), student=tiny_pairs.model("siglip"))
    with pytest.raises(HfDistillError, match="per_device_train_batch_size is 1"):
        trainer_of(tmp_path, per_device_train_batch_size=1)
    with pytest.raises(HfDistillError, match=r"Embeddings.*single_label_classification"):
        DistillationTrainer(
            tiny.model("vit"),
            DistillationConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True),
            teacher_model=tiny.model("vit"),
            objective=Objective([Embeddings()]),
        )
    with pytest.raises(HfDistillError, match="has no option 'temperature'"):
        Embeddings(temperature=2.0)
    other = tiny_pairs.model("clip", layers=2, seed=2)
    other.config.text_config.vocab_size = 99
    with pytest.raises(HfDistillError, match="vocabulary 64 against 99"):
        trainer_of(tmp_path, teacher=other)


def test_batches_that_are_no_pairs_are_refused() -> None:
    inputs = {"input_ids": torch.zeros(3, 5), "pixel_values": torch.zeros(2, 3, 4, 4)}
    with pytest.raises(HfDistillError, match="2 images and 3 texts"):
        SOFTMAX.rows(inputs)
    outputs = {"logits_per_image": torch.zeros(2, 3), "logits_per_text": torch.zeros(3, 2)}
    with pytest.raises(HfDistillError, match="one text an image"):
        SOFTMAX.logits(outputs, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_width_is_the_configs(kind: str) -> None:
    network = tiny_pairs.model(kind, width=16, projection=12)
    outputs = network(**tiny_pairs.batch(2))
    assert pair_width(network) == outputs.image_embeds.shape[-1] == outputs.text_embeds.shape[-1]
    assert pair_width(torch.nn.Linear(2, 2)) is None
