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

from hfdistill.data.images import Progress
from hfdistill.errors import HfDistillError

CHUNK = 1000


@dataclass(frozen=True)
class TextView:
    """How one model reads a text: its tokenizer and the most tokens that it takes."""

    tokenizer: Any
    max_length: int


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
    return Texts({name: _tokens(texts, view, bar) for name, view in views.items()})


def texts_of(dataset: datasets.Dataset, column: str) -> list[str]:
    """A column of texts. Errors: HfDistillError naming the row of anything else."""
    texts: list[Any] = dataset.with_format(None)[column][:]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise HfDistillError(
                f"Row {row} holds {text!r} in the text column {column!r}; expected a text. Remove the row, or write ''."
            )
    return texts


def _tokens(texts: Sequence[list[str]], view: TextView, bar: Progress) -> Tokens:
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
