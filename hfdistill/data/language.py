"""Running text for language models: documents joined and cut into blocks, read whole or with some tokens masked."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hfdistill.data.changes import Changes, Draws
from hfdistill.data.examples import Progress
from hfdistill.data.kind import SourceRequest
from hfdistill.data.labels import UNLABELLED, LabelSpace
from hfdistill.data.texts import BLOCK, CHUNK, TextKind, TextView, texts_of
from hfdistill.errors import HfDistillError

MASKED = 0.8
RANDOM = 0.1
"""Of the tokens chosen for prediction, so many become the mask token, so many a random one; the rest stay (BERT)."""


class RunningText(TextKind):
    """Documents for a causal language model."""

    name = "causal_lm"
    auto_class: Any = AutoModelForCausalLM
    regrouped = True
    longest = BLOCK

    def made_reader(self, train: datasets.Dataset, known_names: Sequence[str] | None) -> DocumentReader:
        """Reads checksums; the text itself is the label."""
        return DocumentReader(str(self.section.task), self.columns)

    def source(self, request: SourceRequest) -> Blocks:
        """Blocks of tokens; both models read the same."""
        _, view = request.only_view(self.name)
        return block_source(request.dataset, self.columns, view, self._masked_share(), request.bar)

    def _masked_share(self) -> float | None:
        return None


class MaskedText(RunningText):
    """Documents for a masked language model."""

    name = "masked_lm"
    auto_class = AutoModelForMaskedLM
    drawn = True

    def _masked_share(self) -> float:
        return self.section.mask_probability


class DocumentReader:
    """Stands where a label reader stands: a document's checksum, by which a run notices that its files have changed."""

    def __init__(self, task: str, columns: Sequence[str]) -> None:
        self.space = LabelSpace(task, ())
        self.columns = columns

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """One number of at least 0 a document."""
        texts = [texts_of(dataset, column) for column in self.columns]
        return torch.tensor([zlib.crc32("\0".join(parts).encode()) for parts in zip(*texts, strict=True)])


@dataclass(frozen=True)
class Blocks:
    """Blocks of the same length, each with its tokens as labels; what is left over at the end is dropped."""

    tokens: NDArray[np.int32]
    length: int

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """Some blocks; the label of a token is the token itself, and a decoder's task shifts it."""
        ids = self._ids(rows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

    def _ids(self, rows: Tensor) -> Tensor:
        blocks = self.tokens[: len(self) * self.length].reshape(-1, self.length)
        return torch.from_numpy(blocks[rows.numpy()].astype(np.int64))


@dataclass(frozen=True)
class MaskedBlocks(Blocks):
    """Blocks of which a share of the tokens is to be guessed (Devlin et al. 2018, section 3.1).

    Which ones follows from seed, epoch and block alone; without draws (evaluation) they are the same every time.
    """

    probability: float
    mask: int
    special: frozenset[int]
    vocabulary: int

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """Some blocks; a token that is not to be guessed has the label -100."""
        ids = self._ids(rows)
        known = (Changes(()).draws(rows) if draws is None else draws).by_place(self.length, 3)
        ordinary = ~torch.isin(ids, torch.tensor(sorted(self.special)))
        chosen = (known[0] < self.probability) & ordinary
        masked = chosen & (known[1] < MASKED)
        other = chosen & ~masked & (known[1] < MASKED + RANDOM)
        inputs = torch.where(masked, self.mask, ids)
        inputs = torch.where(other, (known[2] * self.vocabulary).long(), inputs)
        labels = torch.where(chosen, ids, UNLABELLED)
        return {"input_ids": inputs, "attention_mask": torch.ones_like(ids), "labels": labels}


def block_source(
    dataset: datasets.Dataset, columns: Sequence[str], view: TextView, probability: float | None, bar: Progress
) -> Blocks:
    """Join the documents of a split, an end mark behind each, and cut blocks of the view's length.

    With a `probability` so many of the tokens are masked. Errors: HfDistillError for a split shorter than one block,
    and for a tokenizer without a mask token.
    """
    tokens = _joined(dataset, columns, view, probability is None, bar)
    if len(tokens) < view.max_length:
        raise HfDistillError(
            f"A split of {len(dataset)} documents holds {len(tokens)} tokens; expected one block of {view.max_length} "
            "at least. Lower data.max_length, or give more text."
        )
    if probability is None:
        return Blocks(tokens, view.max_length)
    if view.tokenizer.mask_token_id is None:
        raise HfDistillError(
            f"The tokenizer {type(view.tokenizer).__name__} has no mask token; expected one of a masked language "
            "model, such as BERT's (teacher.processor)."
        )
    special = frozenset(view.tokenizer.all_special_ids)
    return MaskedBlocks(
        tokens, view.max_length, probability, view.tokenizer.mask_token_id, special, len(view.tokenizer)
    )


def _joined(
    dataset: datasets.Dataset, columns: Sequence[str], view: TextView, end_marks: bool, bar: Progress
) -> NDArray[np.int32]:
    documents = ["\n".join(parts) for parts in zip(*(texts_of(dataset, column) for column in columns), strict=True)]
    end = view.tokenizer.eos_token_id
    pieces: list[NDArray[np.int32]] = []
    for start in bar(range(0, len(documents), CHUNK), "Tokenising"):
        # A tokenizer warns of texts longer than its model takes; blocks are cut afterwards.
        encoded: Mapping[str, Any] = view.tokenizer(documents[start : start + CHUNK], verbose=False)
        for ids in encoded["input_ids"]:
            ended = not end_marks or end is None or (ids and ids[-1] == end)
            pieces.append(np.asarray(ids if ended else [*ids, end], np.int32))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
