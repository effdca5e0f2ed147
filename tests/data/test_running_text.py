"""Blocks of running text, masks, and tags of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pytest
import torch
from transformers import ByT5Tokenizer

from hfdistill import HfDistillError
from hfdistill.data.changes import Changes
from hfdistill.data.examples import Examples
from hfdistill.data.language import MaskedBlocks, block_source
from hfdistill.data.pydoc_topics import pydoc_topics
from hfdistill.data.tags import TagReader
from hfdistill.data.texts import TextView
from hfdistill.recipe import DataSection, RecipeError
from tests.recipes import inputs

TAGS = ["O", "B-X", "I-X"]


def bar(items: Sequence[Any], title: str) -> Iterator[Any]:
    return iter(items)


def texts(*documents: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(documents)})


def masked(probability: float = 0.3) -> MaskedBlocks:
    tokenizer = inputs.tokenizer()
    tokenizer.mask_token = "[UNK]"
    letters = [" ".join("abcdefghijkl") for _ in range(120)]
    found = block_source(texts(*letters), ["text"], TextView(tokenizer, 14), probability, bar)
    assert isinstance(found, MaskedBlocks)
    return found


def test_documents_are_joined_with_an_end_mark_and_cut() -> None:
    """ByT5: a byte b is token b + 3, the end mark is 1; nine tokens give two blocks of four."""
    blocks = block_source(texts("ab", "c", "def"), ["text"], TextView(ByT5Tokenizer(), 4), None, bar)
    batch = blocks.batch(torch.tensor([1, 0]), "student", None)
    a = ord("a") + 3
    assert batch["input_ids"].tolist() == [[1, a + 3, a + 4, a + 5], [a, a + 1, 1, a + 2]]
    assert torch.equal(batch["labels"], batch["input_ids"]) and batch["attention_mask"].all()
    assert len(blocks) == 2


def test_a_text_shorter_than_a_block_is_refused() -> None:
    with pytest.raises(HfDistillError, match="holds 3 tokens; expected one block of 4"):
        block_source(texts("ab"), ["text"], TextView(ByT5Tokenizer(), 4), None, bar)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(HfDistillError, match="has no mask token"):
        block_source(texts("abcdef"), ["text"], TextView(ByT5Tokenizer(), 4), 0.15, bar)


def test_masks_follow_from_seed_epoch_and_block() -> None:
    source, rows = masked(), torch.arange(20)
    changes = Changes((), seed=3)
    first = source.batch(rows, "student", changes.draws(rows))
    again = source.batch(rows.flip(0), "student", changes.draws(rows.flip(0)))
    assert torch.equal(first["input_ids"], again["input_ids"].flip(0))
    changes.epoch[0] = 1
    assert not torch.equal(first["labels"], source.batch(rows, "student", changes.draws(rows))["labels"])
    still = source.batch(rows, "student", None)
    assert torch.equal(still["labels"], source.batch(rows, "student", None)["labels"])


def test_masked_tokens_are_labelled_and_no_other() -> None:
    source, rows = masked(), torch.arange(120)
    plain = torch.from_numpy(source.tokens[: 120 * 14].reshape(120, 14)).long()
    batch = source.batch(rows, "student", Changes((), seed=1).draws(rows))
    chosen = batch["labels"] != -100
    assert torch.equal(batch["labels"][chosen], plain[chosen])
    assert torch.equal(batch["input_ids"][~chosen], plain[~chosen])
    # [CLS], [SEP], [PAD] and the mask itself are never chosen.
    assert not chosen[plain < 4].any()
    assert abs(chosen[plain >= 4].float().mean() - 0.3) < 0.04
    inputs_chosen = batch["input_ids"][chosen]
    assert abs((inputs_chosen == source.mask).float().mean() - 0.8) < 0.06
    assert 0.04 < ((inputs_chosen != source.mask) & (inputs_chosen != plain[chosen])).float().mean() < 0.16


def sentences(**changes: list[Any]) -> datasets.Dataset:
    columns = {"tokens": [["a", "b"], ["c", "d", "e"]], "ner_tags": [[1, 2], [0, 0, 1]]} | changes
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=TAGS)),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def section(**changes: Any) -> DataSection:
    return DataSection("somewhere", task="token_classification", label_column="ner_tags", **changes)


def test_the_first_token_of_a_word_carries_its_tag() -> None:
    """The bytes of "cd" are two tokens, of which the first is tagged."""
    data = sentences(tokens=[["a", "b"], ["cd", "e", "f"]])
    reader = TagReader(data, section(), None)
    tokenizer = inputs.tokenizer()
    source = reader.source(data, TextView(tokenizer, 8), "student", bar)
    batch = source.batch(torch.tensor([0, 1]), "student", None)
    assert batch["labels"].tolist() == [[-100, 1, 2, -100, -100], [-100, 0, 0, 1, -100]]
    assert reader.space.names == tuple(TAGS) and reader.space.config_settings()["id2label"][1] == "B-X"


def test_a_word_of_two_tokens_is_tagged_once() -> None:
    reader = TagReader(sentences(), section(), None)
    assert reader._first_tokens([None, 0, 0, 1, None], [1, 2], 0) == [-100, 1, -100, 2, -100]
    assert reader._first_tokens([None, 0, 1, None], None, 0) == [-100] * 4


def test_unlabelled_sentences_keep_no_tag() -> None:
    data = sentences()
    reader = TagReader(data, section(), None)
    source = reader.source(data, TextView(inputs.tokenizer(), 8), "student", bar)
    marks = reader(data, "train", allow_missing=True)
    assert (marks >= 0).all()
    marks[0] = -100
    batch = Examples(source, marks, {"": "student"}, torch.arange(2)).__getitems__([0, 1])
    assert (batch["labels"][0] == -100).all() and (batch["labels"][1] != -100).sum() == 3


def test_names_of_tags_put_outside_first() -> None:
    named = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [["B-X", "O"]]})
    assert TagReader(named, section(), None).space.names == ("O", "B-X")


def test_tags_that_do_not_fit_are_refused() -> None:
    short = sentences(ner_tags=[[1], [0, 0, 1]])
    with pytest.raises(HfDistillError, match="2 words in 'tokens' and 1 tags in 'ner_tags'"):
        TagReader(short, section(), None)(short, "train", allow_missing=True)
    reader = TagReader(sentences(), section(), None)
    other = datasets.Dataset.from_dict({"tokens": [["a"]], "ner_tags": [["B-Y"]]})
    with pytest.raises(HfDistillError, match="the tag 'B-Y'; expected one of"):
        reader(other, "test", allow_missing=False)
    flat = datasets.Dataset.from_dict({"tokens": [["a"]], "ner_tags": [1]})
    with pytest.raises(RecipeError, match="expected a list of tags"):
        TagReader(flat, section(), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "causal_lm", "labelled": 10}, "the text itself is the label"),
        ({"task": "masked_lm", "image_column": "image"}, "reads text"),
        ({"task": "causal_lm", "problem_type": "regression"}, "it is for classifiers"),
        ({"task": "masked_lm", "mask_probability": 1.5}, "data.mask_probability: got 1.5"),
    ],
)
def test_keys_that_contradict_the_task_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        DataSection("somewhere", **changes)


def test_the_embedded_topics_do_not_overlap() -> None:
    splits = pydoc_topics()
    found = [set(splits[name]["text"]) for name in ("train", "validation", "test")]
    assert all(found) and not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
