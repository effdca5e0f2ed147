"""Sentence embeddings: pooling by hand, encoders without heads by module and by name, what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, Logits, Objective, TaskLoss
from hfdistill.tasks import TASKS, PooledTokens, Pooling
from hfdistill.tasks.embeddings import encoder_width
from tests import by_sgd, tiny
from tests.trainer.test_views import tokenizer
from tests.trainer.trajectory import assert_same

TASK = TASKS["sentence_embedding"]


def encoder(architecture: str = "bert", layers: int = 1, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny encoder without a head."""
    config = tiny.config(architecture, layers=layers)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = {"bert": BertModel, "distilbert": DistilBertModel}[architecture](config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return network.train()


def texts(count: int = 24) -> list[dict[str, torch.Tensor]]:
    """Texts of different lengths, without labels."""
    batch = tiny.batch("bert", count, seed=7)
    return [{name: batch[name][place] for name in ("input_ids", "attention_mask")} for place in range(count)]


def trainer_of(folder: Path, student: Any, teacher: Any, task: Any = "sentence_embedding", **changes: Any) -> Any:
    """A training by SGD on texts alone."""
    objective, data = changes.pop("objective", None), changes.pop("data", None) or texts()
    config = by_sgd.arguments(folder, **changes)
    return DistillationTrainer(
        student, config, teacher_model=teacher, objective=objective, task=task, train_dataset=data, eval_dataset=data
    )


def test_pooling_by_hand() -> None:
    """A text padded on the right, one on the left, one that fills its places."""
    hidden = torch.tensor([[[1.0, 0], [3, 4], [9, 9]], [[9, 9], [5, 0], [7, 2]], [[1, 2], [3, 4], [5, 9]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
    inputs, outputs = {"input_ids": mask, "attention_mask": mask}, {"last_hidden_state": hidden}
    expected = {
        Pooling.MEAN: [[2.0, 2.0], [6.0, 1.0], [3.0, 5.0]],
        Pooling.FIRST: [[1.0, 0.0], [5.0, 0.0], [1.0, 2.0]],
        Pooling.LAST: [[3.0, 4.0], [7.0, 2.0], [5.0, 9.0]],
    }
    for pooling, vectors in expected.items():
        torch.testing.assert_close(PooledTokens(pooling).logits(outputs, inputs), torch.tensor(vectors))
    whole = PooledTokens().logits(outputs, {"input_ids": mask})  # without a mask every token counts
    torch.testing.assert_close(whole[1], torch.tensor([7.0, 11 / 3]))
    assert TASK.rows(inputs).labels is None


def test_cosine_to_the_teacher_by_default(tmp_path: Path) -> None:
    student, teacher = encoder(seed=1), encoder(layers=2, seed=2)
    trainer = trainer_of(tmp_path, student, teacher, alpha=0.3)
    metrics = trainer.evaluate()
    batch = {name: value for name, value in tiny.batch("bert", 24, seed=7).items() if name != "labels"}
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        ours, theirs = ((m(**batch).last_hidden_state * mask).sum(1) / mask.sum(1) for m in (student, teacher))
    distance = 1 - torch.cosine_similarity(ours, theirs).mean().item()
    # All of it is the teacher's: where there are no labels there is nothing to share the loss with.
    assert metrics["eval_loss"] == pytest.approx(distance, rel=1e-5)
    assert metrics["eval_loss/kd"] == pytest.approx(distance, rel=1e-5)
    torch.testing.assert_close(torch.as_tensor(trainer.predict(texts()).predictions), ours)


@pytest.mark.parametrize("loss", ["cosine_distance", "hint"])
def test_accumulation_changes_nothing(loss: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"objective": Objective([Logits(loss)])}
    if loss == "hint":
        changes["task"] = replace(TASK, layout=PooledTokens(Pooling.FIRST))
    whole = trainer_of(tmp_path, encoder(seed=1), encoder(layers=2, seed=2), **changes)
    whole.train()
    pieces = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    cut = trainer_of(tmp_path, encoder(seed=1), encoder(layers=2, seed=2), **changes, **pieces)
    cut.train()
    assert_same(by_sgd.seen_in(whole), by_sgd.seen_in(cut))


def test_a_batch_is_learnt_and_saved(tmp_path: Path) -> None:
    changes = {"max_steps": 30, "optim": "adamw_torch", "learning_rate": 1e-2, "data": texts(8)}
    trainer = trainer_of(tmp_path, encoder("distilbert", seed=1), encoder(layers=2, seed=2), **changes)
    trainer.train()
    assert trainer.state.log_history[-2]["loss/kd"] < 0.3 * trainer.state.log_history[0]["loss/kd"]
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = DistilBertModel.from_pretrained(tmp_path / "saved").eval()
    batch = {name: torch.stack([row[name] for row in texts(4)]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        one, other = reloaded(**batch).last_hidden_state, trainer.model.eval()(**batch).last_hidden_state
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_relations_take_encoders_of_different_widths(tmp_path: Path) -> None:
    narrow = encoder(seed=1, hidden_size=8)
    objective = Objective([Logits("similarity_preserving")])
    trainer = trainer_of(tmp_path, narrow, encoder(seed=2), objective=objective, data=texts(8), max_steps=6)
    trainer.train()
    losses = [row["loss/kd"] for row in trainer.state.log_history if "loss/kd" in row]
    assert 0 < losses[-1] < losses[0]
    with pytest.raises(HfDistillError, match=r"hidden states are 8 wide and the teacher's 16.*similarity_preserving"):
        trainer_of(tmp_path, narrow, encoder(seed=2))


def test_encoders_by_name_leave_their_heads(tmp_path: Path) -> None:
    """A checkpoint with a head has no pooler for the encoder; it is not read, so that its being new is no matter."""
    BertForMaskedLM(tiny.config("bert", layers=2)).save_pretrained(tmp_path / "teacher")
    BertForSequenceClassification(tiny.config("bert", layers=1)).save_pretrained(tmp_path / "student")
    trainer = trainer_of(tmp_path, str(tmp_path / "student"), str(tmp_path / "teacher"), max_steps=1)
    assert type(trainer.model) is BertModel
    assert type(trainer.teacher.model) is BertModel
    trainer.train()
    loaded = BertModel.from_pretrained(tmp_path / "teacher")
    assert [name for name in dict(loaded.named_parameters()) if name.startswith(TASK.unread)] != []
    trainer_of(tmp_path, encoder(), loaded)
    del loaded.encoder.layer[0].attention.self.query.weight._is_hf_initialized
    with pytest.raises(HfDistillError, match="freshly initialised"):
        trainer_of(tmp_path, encoder(), loaded)


def test_an_encoder_decoder_gives_its_encoder(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"vocab_size": tiny.VOCABULARY, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1}
    T5ForConditionalGeneration(T5Config(**settings, d_model=16, dropout_rate=0.0)).save_pretrained(tmp_path / "t5")
    trainer = trainer_of(tmp_path, encoder(), str(tmp_path / "t5"), max_steps=1)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss/kd"])


def test_each_encoder_reads_with_its_own_tokenizer(tmp_path: Path) -> None:
    """The same texts in other tokens and of other lengths: one vector a text all the same."""
    words = ["good", "bad", "film"]
    data = Dataset.from_dict({"text": ["good film", "bad bad film", "film"]})
    config = DistillationConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=1)
    trainer = DistillationTrainer(
        encoder(seed=1),
        config,
        teacher_model=encoder(layers=2, seed=2),
        task="sentence_embedding",
        train_dataset=data,
        processing_class=tokenizer(words, tmp_path),
        teacher_processing_class=tokenizer(["odd", *words[::-1]], tmp_path),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert not torch.equal(batch["input_ids"], batch["teacher_input_ids"])
    mask = batch["teacher_attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        hidden = trainer.teacher.model(**trainer.views.teacher(batch)).last_hidden_state
    targets = trainer.teacher(trainer.views.teacher(batch)).logits
    torch.testing.assert_close(targets, (hidden * mask).sum(1) / mask.sum(1))
    trainer.train()


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_width_is_the_configs(architecture: str) -> None:
    network = encoder(architecture)
    batch = {name: torch.stack([row[name] for row in texts(2)]) for name in ("input_ids", "attention_mask")}
    assert encoder_width(network) == network(**batch).last_hidden_state.shape[-1]
    assert encoder_width(torch.nn.Linear(2, 2)) is None


def test_what_does_not_fit_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="TaskLoss came for sentence_embedding, which has no labels"):
        trainer_of(tmp_path, encoder(), encoder(), objective=Objective([TaskLoss(), Logits("hint")]))
    with pytest.raises(HfDistillError, match="BertForSequenceClassification came for sentence_embedding"):
        trainer_of(tmp_path, encoder(), tiny.model("bert"))
    with pytest.raises(HfDistillError, match="task='sentence_embedding'"):
        trainer_of(tmp_path, encoder(), encoder(seed=1), task=None)
    with pytest.raises(HfDistillError, match="needs the label of each row"):
        trainer_of(tmp_path, encoder(), encoder(seed=1), objective=Objective([Logits("decoupled_kl")]))
    inputs = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3)}
    with pytest.raises(HfDistillError, match="gave no 'last_hidden_state'"):
        TASK.logits({"logits": torch.zeros(2, 3)}, inputs)
    with pytest.raises(HfDistillError, match=r"\(2, 4, 8\)"):
        TASK.logits({"last_hidden_state": torch.zeros(2, 4, 8)}, inputs)
