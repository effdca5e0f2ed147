"""Rows of heads over tokens and spans by hand, against the heads' own losses, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForCausalLM, DataCollatorWithFlattening

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, Logits, Objective, TaskLoss, contract
from hfdistill.rows import BatchRows
from hfdistill.tasks import TASKS, Task, task_of
from hfdistill.tasks.label_losses import cross_entropy
from tests.tasks import token_models
from tests.tasks.token_models import MODELS, Batch, padded

TAGS, SPANS, MASKED = TASKS["token_classification"], TASKS["question_answering"], TASKS["masked_lm"]
CAUSAL, SEQ2SEQ = TASKS["causal_lm"], TASKS["seq2seq_lm"]
NONE = -100


def tensors(**values: list[Any]) -> Batch:
    return {key: torch.tensor(value) for key, value in values.items()}


def places(rows: BatchRows) -> list[int]:
    """Which of all tokens of the batch count, in the order of reading."""
    assert rows.every.index is not None
    return rows.every.index.tolist()


def labels(rows: BatchRows) -> list[int]:
    assert rows.labels is not None
    return rows.labels.tolist()


def test_tags() -> None:
    """Tokens labelled -100 are left out; an example without any label learns from the teacher, where it has tokens."""
    batch = tensors(
        input_ids=[[5, 6, 7, 8], [5, 6, 7, 0]],
        attention_mask=[[1, 1, 1, 1], [1, 1, 1, 0]],
        labels=[[NONE, 3, NONE, 1], [NONE, NONE, NONE, NONE]],
    )
    rows = TAGS.rows(batch)
    assert places(rows) == [1, 3, 4, 5, 6]
    assert rows.labelled.valid is not None
    assert rows.labelled.valid.tolist() == [True, True, False, False, False]
    assert labels(rows) == [3, 1, 0, 0, 0]
    assert (rows.every.count(torch.device("cpu")), rows.labelled.count(torch.device("cpu"))) == (5, 2)


def test_labels_of_a_decoder_are_its_tokens_even_where_its_own_loss_does_not_shift() -> None:
    """The decoder of BART alone takes labels for shifted ones; ours are so only under the name shift_labels."""
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "dropout": 0.0}
    model = BartForCausalLM(BartConfig(vocab_size=32, max_position_embeddings=16, is_encoder_decoder=False, **sizes))
    model.eval()
    assert task_of(model) is CAUSAL
    ids = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 9, 5, 3, 1, 1]])
    tokens = ids.masked_fill(ids == 1, NONE)
    shifted = torch.cat([tokens[:, 1:], torch.full((2, 1), NONE)], dim=1)
    own = model(input_ids=ids, labels=shifted)
    for named in ({"labels": tokens}, {"shift_labels": shifted}):
        rows = CAUSAL.rows({"input_ids": ids, **named})
        torch.testing.assert_close(CAUSAL.label_values(own.logits, rows, 0.0, None).mean(), own.loss)


def test_a_label_on_padding_does_not_count() -> None:
    batch = tensors(attention_mask=[[1, 1, 0]], input_ids=[[5, 6, 0]], labels=[[NONE, 3, 2]])
    assert places(TAGS.rows(batch)) == places(MASKED.rows(batch)) == [1]


def test_a_causal_model_is_asked_for_the_next_token() -> None:
    """Of 4 tokens after a prompt of 2, the logits of the tokens 1 and 2 count, for the labels of 2 and 3."""
    batch = tensors(input_ids=[[5, 6, 7, 8]], labels=[[NONE, NONE, 7, 8]])
    rows = CAUSAL.rows(batch)
    assert (places(rows), labels(rows)) == ([1, 2], [7, 8])
    shifted = tensors(input_ids=[[5, 6, 7, 8]], shift_labels=[[NONE, 7, 8, NONE]])
    assert (places(CAUSAL.rows(shifted)), labels(CAUSAL.rows(shifted))) == ([1, 2], [7, 8])


def test_no_token_is_asked_for_from_padding() -> None:
    """Padded on the left, the first token has nobody to be predicted by, as it has without padding."""
    left = tensors(
        input_ids=[[0, 0, 7, 8], [5, 6, 7, 8]],
        attention_mask=[[0, 0, 1, 1], [1, 1, 1, 1]],
        labels=[[NONE, NONE, 7, 8], [5, 6, 7, 8]],
    )
    assert (places(CAUSAL.rows(left)), labels(CAUSAL.rows(left))) == ([2, 4, 5, 6], [8, 6, 7, 8])
    right = tensors(
        input_ids=[[7, 8, 2, 2]], attention_mask=[[1, 1, 1, 0]], labels=[[7, 8, 2, 2]]
    )  # the end is the padding token, and its label was left in place
    assert (places(CAUSAL.rows(right)), labels(CAUSAL.rows(right))) == ([0, 1], [8, 2])


@pytest.mark.parametrize("labelled", [True, False])
def test_packed_sequences_do_not_predict_each_other(labelled: bool) -> None:
    """Three sequences in a line: the last token of one says nothing of the first of the next."""
    batch = tensors(input_ids=[[5, 6, 7, 5, 5, 6]], position_ids=[[0, 1, 2, 0, 0, 1]])
    if labelled:
        batch["labels"] = batch["input_ids"]
    assert places(CAUSAL.rows(batch)) == [0, 1, 4]


def test_unlabelled_batches() -> None:
    batch = tensors(input_ids=[[5, 6, 7], [5, 6, 0]], attention_mask=[[1, 1, 1], [1, 1, 0]])
    assert places(TAGS.rows(batch)) == places(MASKED.rows(batch)) == [0, 1, 2, 3, 4]
    assert places(CAUSAL.rows(batch)) == [0, 1, 3]
    assert places(CAUSAL.rows({"attention_mask": batch["attention_mask"]})) == [0, 1, 3]
    decoder = {f"decoder_{key}": value for key, value in batch.items()}
    assert places(SEQ2SEQ.rows(decoder)) == [0, 1, 2, 3, 4]
    for task in (TAGS, CAUSAL):
        assert task.rows(batch).labels is None
        assert task.rows(batch).labelled.count(torch.device("cpu")) == 0
    spans = SPANS.rows(batch)
    assert (len(spans.every), spans.labels) == (4, None)


def test_spans() -> None:
    """Start and end are a row each; one that was cut off, or lies on padding, or is -100, has no label."""
    batch = tensors(
        input_ids=[[5, 6, 7, 8], [5, 6, 0, 0], [5, 6, 7, 8]],
        attention_mask=[[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]],
        start_positions=[1, 1, NONE],
        end_positions=[4, 2, 0],
    )
    rows = SPANS.rows(batch)
    assert rows.labelled.valid is not None
    assert rows.labelled.valid.tolist() == [True, False, True, False, False, True]
    assert labels(rows) == [1, 0, 1, 2, 0, 0]
    even = torch.zeros(3, 4)
    logits = SPANS.logits({"start_logits": even, "end_logits": even}, batch)
    assert torch.isneginf(logits[1, :, 2:]).all()
    # Four tokens are log 4 apart, the two of the second example log 2.
    values = SPANS.label_values(logits, rows, 0.0, None)
    assert rows.labelled.total(values).item() == pytest.approx(math.log(4) + math.log(2) + math.log(4))


def test_smoothing_leaves_padding_alone() -> None:
    """Of two possible classes with probabilities 1/4 and 3/4, a tenth goes to both in equal parts."""
    logits = torch.tensor([[0.0, math.log(3), -torch.inf]])
    value = cross_entropy(logits, torch.tensor([1]), 0.1)
    assert value.item() == pytest.approx(0.95 * math.log(4 / 3) + 0.05 * math.log(4))
    logits, some = torch.randn(5, 7), torch.arange(5)
    theirs = nn.functional.cross_entropy(logits, some, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(logits, some, 0.1), theirs)


def config(folder: Path) -> DistillationConfig:
    return DistillationConfig(str(folder), report_to="none", use_cpu=True, disable_tqdm=True)


def trainer(name: str, folder: Path, teacher: nn.Module | None = None, **kwargs: Any) -> DistillationTrainer:
    """A trainer with the task loss alone, or with a teacher too."""
    terms = [TaskLoss()] if teacher is None else [TaskLoss(), Logits()]
    student = token_models.model(name, seed=1)
    return DistillationTrainer(student, config(folder), teacher_model=teacher, objective=Objective(terms), **kwargs)


@pytest.mark.parametrize("name", MODELS)
def test_the_task_loss_is_the_heads_own(name: str, tmp_path: Path) -> None:
    """Also where the labels become the decoder's inputs, by the model's method or in its forward."""
    made = trainer(name, tmp_path)
    rows = token_models.examples(name, 6)
    if name == "bert_spans":
        # Its own loss lets padding be an answer.
        rows = [row | {"input_ids": torch.arange(9)} for row in rows]
    batch = padded(rows)
    torch.testing.assert_close(made.compute_loss(made.model, dict(batch)), made.model(**batch).loss)


@pytest.mark.parametrize("name", ["t5", "m2m100"])
def test_decoder_inputs_of_a_collator_are_kept(name: str, tmp_path: Path) -> None:
    made = trainer(name, tmp_path, token_models.model(name, seed=2))
    batch = padded(token_models.examples(name, 3))
    batch["decoder_input_ids"] = torch.full_like(batch["labels"], 5)
    torch.testing.assert_close(made.views.student(batch)["decoder_input_ids"], batch["decoder_input_ids"])
    torch.testing.assert_close(made.views.teacher(batch)["decoder_input_ids"], batch["decoder_input_ids"])
    alone = trainer(name, tmp_path)
    torch.testing.assert_close(alone.compute_loss(alone.model, dict(batch)), alone.model(**batch).loss)


def test_a_view_of_its_own_for_the_encoder_shares_the_decoders_tokens(tmp_path: Path) -> None:
    """As two speech models with other features need it."""
    made = trainer("whisper", tmp_path, token_models.model("whisper", seed=2))
    batch = padded(token_models.examples("whisper", 3))
    total = made.compute_loss(made.model, dict(batch))
    own = batch | {"teacher_input_features": batch["input_features"]}
    torch.testing.assert_close(made.compute_loss(made.model, own), total)
    assert set(made.views.teacher(own)) == {"input_features", "decoder_input_ids", "use_cache"}


@pytest.mark.parametrize("inherited", [False, True])
@pytest.mark.parametrize("name", ["m2m100", "whisper"])
def test_labels_are_moved_without_a_loss_that_nobody_uses(name: str, inherited: bool, tmp_path: Path) -> None:
    """By the function beside a family's classes, also for a class of another module that inherits from one of them."""
    made = trainer(name, tmp_path)
    student = contract.bare(made.model).eval()
    if inherited:
        student.__class__ = type(f"My{type(student).__name__}", (type(student),), {"__module__": __name__})
    batch = padded(token_models.examples(name, 3))
    batch["labels"][0] = NONE
    read = student(**made.views.student(batch))
    assert read.loss is None
    torch.testing.assert_close(read.logits, student(**batch).logits)


def test_rows_without_labels_train_from_the_teacher_alone(tmp_path: Path) -> None:
    made = trainer("llama", tmp_path, token_models.model("llama", seed=2))
    batch = padded(token_models.examples("llama", 4))
    del batch["labels"]
    total = made.compute_loss(made.model, batch)
    assert isinstance(total, torch.Tensor)
    assert total > 0


def wrong(name: str, **changes: Any) -> Batch:
    batch = padded(token_models.examples(name, 4))
    return {**batch, **{key: change(batch[key]) for key, change in changes.items()}}


def first(value: int) -> Any:
    def changed(labels: torch.Tensor) -> torch.Tensor:
        labels = labels.clone()
        labels[0, 1] = value
        return labels

    return changed


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"labels": lambda labels: labels[:, 1:]}, r"Labels of shape \(4, 7\) .* expected .* \(4, 8\)"),
        ("bert_tags", {"labels": lambda labels: labels.float()}, "type torch.float32 .* expected an integer"),
        ("bert_tags", {"labels": lambda labels: labels[:, 0]}, r"Labels of shape \(4,\).* expected an integer"),
        ("bert_spans", {"start_positions": lambda labels: labels[:2]}, r"Labels of shape \(2,\)"),
        ("bert_tags", {"labels": first(4)}, "label 4 .* from 0 to 3, or -100"),
        ("bert_masked", {"labels": first(-1)}, "label -1 .* from 0 to 31, or -100"),
        ("llama", {"labels": first(40)}, "label 40 .* from 0 to 31, or -100"),
        ("llama", {"input_ids": first(40)}, "no row for an id .* input_ids 40.*resize_token_embeddings"),
        ("bart", {"labels": first(40)}, "no row for an id .* labels 40"),
    ],
)
def test_labels_and_tokens_that_do_not_fit(name: str, changes: Any, words: str, tmp_path: Path) -> None:
    made = trainer(name, tmp_path, token_models.model(name, seed=2))
    with pytest.raises(HfDistillError, match=words):
        made.compute_loss(made.model, wrong(name, **changes))


@pytest.mark.parametrize("name", ["bert_tags", "bert_spans", "bert_masked"])
def test_lengths_that_differ(name: str, tmp_path: Path) -> None:
    """Even twice as many tokens, which divide evenly among the rows."""
    made = trainer(name, tmp_path, token_models.model(name, seed=2))
    batch = padded(token_models.examples(name, 4))
    longer = {f"teacher_{key}": batch[key].repeat(1, 2) for key in ("input_ids", "attention_mask")}
    with pytest.raises(HfDistillError, match=r"\(4, .*expected the same places"):
        made.compute_loss(made.model, batch | longer)


def test_a_decoder_needs_something_to_read(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=r"without labels came for seq2seq_lm.*expected decoder_input_ids"):
        SEQ2SEQ.rows(tensors(input_ids=[[5, 6]]))


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (CAUSAL, {"logits": torch.zeros(1, 6, 5)}),
        (TAGS, {"logits": torch.zeros(1, 5)}),
        (SPANS, {"start_logits": torch.zeros(1, 6), "end_logits": torch.zeros(1, 6)}),
    ],
)
def test_logits_that_are_not_one_a_token(task: Task, outputs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(HfDistillError, match="for 3 tokens an example; expected one distribution a token"):
        task.logits(outputs, tensors(input_ids=[[5, 6, 7]]))


def test_shifted_labels_are_kept_among_the_columns(tmp_path: Path) -> None:
    assert "shift_labels" in trainer("llama", tmp_path).views.columns
    assert "shift_labels" not in trainer("bert_tags", tmp_path).views.columns


def test_what_a_padding_free_collator_says_reaches_both_models(tmp_path: Path) -> None:
    made = trainer("llama", tmp_path, token_models.model("llama", seed=2))
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(token_models.examples("llama", 3))
    packing = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    for view in (made.views.student(batch), made.views.teacher(batch)):
        assert view.keys() == {"input_ids", "position_ids", "use_cache", *packing}
