"""Text inputs: tokenised once, kept as flat arrays, padded by the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ByT5Tokenizer, PreTrainedConfig

from hfdistill.contract import processing_differences
from hfdistill.data.examples import Progress
from hfdistill.data.kind import Kind, SourceRequest
from hfdistill.data.processors import loaded_processor, processor_name
from hfdistill.errors import HfDistillError
from hfdistill.recipe import RecipeError, StudentSection, TeacherSection

CHUNK = 1000
BYTES = "bytes"
"""As a processor's name: the bytes of UTF-8 as tokens (ByT5), which needs no file; 384 tokens."""
BLOCK = 512
"""Tokens of a block of running text, and of an example of a model without a limit, where nobody says."""
LONGEST = 100_000
"""A tokenizer's model_max_length above this means that nobody has set it."""


@dataclass(frozen=True)
class TextView:
    """How one model reads a text: its tokenizer and the most tokens that it takes.

    `own` is the model's own tokenizer, where another that gives the same tokens makes further inputs of them.
    """

    tokenizer: Any
    max_length: int
    own: Any = None

    @property
    def processor(self) -> Any:
        """The tokenizer that is saved beside the model."""
        return self.tokenizer if self.own is None else self.own

    def shared_with(self, teacher: TextView) -> TextView:
        """The same view with the teacher's tokenizer, where that tells more of the same tokens.

        DistilBERT's knows nothing of the two parts of a pair, and a BERT that teaches it has to be told of them.
        """
        names = set(self.tokenizer.model_input_names)
        more = names < set(teacher.tokenizer.model_input_names) and not self.differences(teacher)
        return TextView(teacher.tokenizer, self.max_length, self.tokenizer) if more else self

    def differences(self, other: TextView) -> list[str]:
        """In words what the other view does differently."""
        lengths = (self.max_length, other.max_length)
        longest = [f"at most {lengths[0]} tokens against {lengths[1]}"] if lengths[0] != lengths[1] else []
        return longest + processing_differences(self.tokenizer, other.tokenizer)


class TextKind(Kind):
    """What is read through a tokenizer; `longest` are the tokens of an example, where neither recipe nor model says."""

    longest: int | None = None

    def view(
        self,
        section: TeacherSection | StudentSection,
        config: PreTrainedConfig,
        train: datasets.Dataset,
        teacher: TextView | None = None,
    ) -> TextView:
        """With the model's own tokenizer if it has one, or else the teacher's."""
        found = text_view(section, config, self.section.max_length or self.longest, teacher)
        return found if teacher is None else found.shared_with(teacher)


class TextRows(TextKind):
    """Texts, or pairs of texts, with a label each."""

    name = "text"
    auto_class = AutoModelForSequenceClassification

    def source(self, request: SourceRequest) -> Texts:
        """Tokenised once for each view."""
        return text_source(request.dataset, self.columns, request.views, request.bar)


def text_view(
    section: TeacherSection | StudentSection,
    config: PreTrainedConfig,
    max_length: int | None,
    teacher: TextView | None = None,
) -> TextView:
    """How a model reads a text: at most `max_length` tokens, as far as tokenizer and model take so many.

    Errors: RecipeError for a model without a tokenizer, HfDistillError for one that cannot be loaded.
    """
    name = processor_name(section)
    if name is None and teacher is None:
        raise RecipeError(
            f"{section.SECTION}.processor: a model built from a config has no tokenizer; name the Hub id or folder of "
            "one, such as bert-base-uncased, or 'bytes'."
        )
    if name is None and teacher is not None:
        tokenizer = teacher.tokenizer
    else:
        tokenizer = ByT5Tokenizer() if name == BYTES else loaded_processor(AutoTokenizer, section)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    limits = [max_length, config.to_dict().get("max_position_embeddings")]
    if tokenizer.model_max_length < LONGEST:
        limits.append(tokenizer.model_max_length)
    known = [int(limit) for limit in limits if limit is not None]
    return TextView(tokenizer, min(known) if known else BLOCK)


@dataclass(frozen=True)
class Tokens:
    """Texts of different lengths in one array a column; row i lies at offsets[i]:offsets[i + 1]."""

    columns: Mapping[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    padding: Mapping[str, int]
    pads_left: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Some rows, padded to the longest of them, with their attention mask."""
        places = rows.numpy()
        starts, lengths = self.offsets[places], self.offsets[places + 1] - self.offsets[places]
        width = int(lengths.max())
        positions = np.arange(width)
        if self.pads_left:
            positions = positions - (width - lengths)[:, None]
        mask = (positions >= 0) & (positions < lengths[:, None])
        sources = np.where(mask, starts[:, None] + positions, 0)
        batch = {
            name: torch.from_numpy(np.where(mask, values[sources], self.padding[name]).astype(np.int64))
            for name, values in self.columns.items()
        }
        return batch | {"attention_mask": torch.from_numpy(mask.astype(np.int64))}


@dataclass(frozen=True)
class Texts:
    """All texts of a split, tokenised once for each view."""

    tokens: Mapping[str, Tokens]

    def __len__(self) -> int:
        return len(next(iter(self.tokens.values())))

    def batch(self, rows: Tensor, view: str, draws: object) -> dict[str, Tensor]:
        """One view of some rows; texts are not changed at random."""
        return self.tokens[view].batch(rows)


def text_source(
    dataset: datasets.Dataset, columns: Sequence[str], views: Mapping[str, TextView], bar: Progress
) -> Texts:
    """Tokenise one text column, or two as pairs."""
    texts = [texts_of(dataset, column) for column in columns]
    return Texts({name: tokenised(texts, view, bar) for name, view in views.items()})


def texts_of(dataset: datasets.Dataset, column: str) -> list[str]:
    """A column of texts. Errors: HfDistillError naming the row of anything else."""
    texts: list[Any] = dataset.with_format(None)[column][:]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise HfDistillError(
                f"Row {row} holds {text!r} in the text column {column!r}; expected a text. Remove the row, or write ''."
            )
    return texts


def tokenised(texts: Sequence[list[str]], view: TextView, bar: Progress) -> Tokens:
    """One column of texts as tokens, or two as pairs."""
    pieces: dict[str, list[NDArray[np.int32]]] = {}
    lengths: list[int] = []
    for start in bar(range(0, len(texts[0]), CHUNK), "Tokenising"):
        parts = [column[start : start + CHUNK] for column in texts]
        encoded = view.tokenizer(*parts, truncation=True, max_length=view.max_length)
        lengths += [len(entries) for entries in encoded["input_ids"]]
        for name in encoded:
            # The mask follows from the lengths.
            if name != "attention_mask":
                flat = np.fromiter((value for entries in encoded[name] for value in entries), np.int32)
                pieces.setdefault(name, []).append(flat)
    return flat_tokens(pieces, lengths, view.tokenizer, {})


def flat_tokens(
    pieces: Mapping[str, Sequence[NDArray[np.int32]]], lengths: Sequence[int], tokenizer: Any, more: Mapping[str, int]
) -> Tokens:
    """Texts of so many tokens from their columns; `more` pads columns that the tokenizer knows nothing of."""
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, **more}
    return Tokens(
        {name: np.concatenate(parts) for name, parts in pieces.items() if name in padding},
        np.concatenate([[0], np.cumsum(lengths)]),
        padding,
        tokenizer.padding_side == "left",
    )
