"""Windows over long texts: question and part of the text together, with the places of the answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfdistill.data.changes import Draws
from hfdistill.data.examples import Progress
from hfdistill.data.labels import UNLABELLED
from hfdistill.data.texts import CHUNK, TextView, Tokens, flat_tokens
from hfdistill.errors import HfDistillError
from hfdistill.recipe import RecipeError

if TYPE_CHECKING:
    from hfdistill.data.questions import AnswerReader

Answer = tuple[str, int]
"""A text and the character of the context at which it begins."""
NOWHERE = -1
"""In the place of a character, for tokens that are not of the context."""
SPARE = 2
"""Tokens of the context that a window has beside those that it shares; a question that leaves no room is cut."""


@dataclass(frozen=True)
class Windows:
    """The windows of a split, those of a question one after the other.

    `places` (windows, 2) are the tokens at which the answer starts and ends; those of the classification token, which
    stand in `refusals` (windows,), where a window does not hold it; -100 where nobody knows. `characters` says which
    part of the context each token stands for (`first` up to `last`), and `owners` (windows,) whose window it is.
    """

    tokens: Tokens
    characters: Tokens
    places: Tensor
    refusals: Tensor
    owners: Tensor
    dataset: datasets.Dataset
    reader: AnswerReader

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """Some windows, with the places of their answers."""
        places = self.placed(self.places[rows], rows)
        return self.tokens.batch(rows) | {"start_positions": places[:, 0], "end_positions": places[:, 1]}

    def placed(self, places: Tensor, rows: Tensor) -> Tensor:
        """Places in windows of their own length, `(rows, ...)`, as places in a batch of these windows."""
        if not self.tokens.pads_left:
            return places
        lengths = torch.from_numpy(np.diff(self.tokens.offsets))[rows]
        moved = (lengths.max() - lengths).reshape(-1, *[1] * (places.dim() - 1))
        return torch.where(places == UNLABELLED, places, places + moved)

    def character_spans(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """First character and character after the last for each token of a batch, -1 outside of the context."""
        found = self.characters.batch(rows)
        return found["first"], found["last"]

    def asked(self) -> tuple[list[str], list[list[str]]]:
        """The contexts, and the texts of all answers that are right; none where a question has none."""
        answers = self.reader.answers(self.dataset)
        return self.reader.texts(self.dataset)[1], [[text for text, _ in each or ()] for each in answers]

    @property
    def guess(self) -> float:
        """The mean loss in nats of one who takes each token of a window for equally likely."""
        return float(np.log(np.diff(self.tokens.offsets)).mean())


def window_source(
    dataset: datasets.Dataset, reader: AnswerReader, view: TextView, stride: int, bar: Progress
) -> Windows:
    """Cut each context into windows of at most `view.max_length` tokens with its question, `stride` of them shared.

    The question comes first, and last where the tokenizer pads on the left (XLNet). Errors: HfDistillError for a
    tokenizer that does not tell where its tokens come from, RecipeError for windows too short for the stride.
    """
    cutter = _Cutter(view, stride)
    questions, contexts = reader.texts(dataset)
    answers = reader.answers(dataset)
    pieces: dict[str, list[NDArray[np.int32]]] = {}
    characters: dict[str, list[NDArray[np.int32]]] = {"first": [], "last": []}
    lengths: list[int] = []
    places: list[tuple[int, int]] = []
    refusals: list[int] = []
    owners: list[int] = []
    for start in bar(range(0, len(questions), CHUNK), "Tokenising"):
        encoded = cutter(questions[start : start + CHUNK], contexts[start : start + CHUNK])
        for window, owner in enumerate(encoded["overflow_to_sample_mapping"]):
            ids = encoded["input_ids"][window]
            spans = cutter.spans(encoded, window)
            refusal = cutter.refusal(ids)
            lengths.append(len(ids))
            owners.append(start + owner)
            refusals.append(refusal)
            places.append(_places(spans, answers[start + owner], refusal))
            characters["first"].append(spans[:, 0])
            characters["last"].append(spans[:, 1])
        for name in view.tokenizer.model_input_names:
            if name in encoded:
                flat = np.fromiter((value for entries in encoded[name] for value in entries), np.int32)
                pieces.setdefault(name, []).append(flat)
    outside = {"first": NOWHERE, "last": NOWHERE}
    return Windows(
        flat_tokens(pieces, lengths, view.tokenizer, {}),
        flat_tokens(characters, lengths, view.tokenizer, outside),
        torch.tensor(places),
        torch.tensor(refusals),
        torch.tensor(owners),
        dataset,
        reader,
    )


def _places(spans: NDArray[np.int32], answers: Sequence[Answer] | None, refusal: int) -> tuple[int, int]:
    """First and last token of the first answer, which trains; the others are right too when answers are scored."""
    if answers is None:
        return UNLABELLED, UNLABELLED
    inside = np.flatnonzero(spans[:, 0] != NOWHERE)
    if not answers or not len(inside):
        return refusal, refusal
    text, start = answers[0]
    first = start + len(text) - len(text.lstrip())
    last = start + len(text.rstrip())
    if spans[inside[0], 0] > first or spans[inside[-1], 1] < last:
        return refusal, refusal
    # Several tokens may stand for one character (bytes): the answer begins with the first of them, and ends with the
    # last.
    begins = int(np.searchsorted(spans[inside, 1], first, side="right"))
    ends = int(np.searchsorted(spans[inside, 0], last, side="left")) - 1
    return int(inside[begins]), int(inside[ends])


class _Cutter:
    """Tokenises questions with their contexts, and tells what stands where."""

    def __init__(self, view: TextView, stride: int) -> None:
        self.tokenizer: Any = view.tokenizer
        self.length, self.stride = view.max_length, stride
        if not self.tokenizer.is_fast:
            raise HfDistillError(
                f"The tokenizer {type(self.tokenizer).__name__} does not tell which characters its tokens stand for, "
                "so that no answer can be found again; expected a fast one, with a tokenizer.json (teacher.processor)."
            )
        self.question_first = self.tokenizer.padding_side == "right"
        self.room = self.length - self.tokenizer.num_special_tokens_to_add(pair=True) - stride - SPARE
        if self.room < 1:
            raise RecipeError(
                f"data.doc_stride: got {stride} for windows of {self.length} tokens, which leaves no room for a "
                "question; expected less, such as a third of data.max_length."
            )

    def __call__(self, questions: Sequence[str], contexts: Sequence[str]) -> Any:
        """The windows of some questions, with offsets."""
        pair = [self._short(questions), list(contexts)]
        return self.tokenizer(
            *(pair if self.question_first else reversed(pair)),
            truncation="only_second" if self.question_first else "only_first",
            max_length=self.length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def _short(self, questions: Sequence[str]) -> list[str]:
        found = self.tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            question if len(offsets) <= self.room else question[: offsets[self.room - 1][1]]
            for question, offsets in zip(questions, found["offset_mapping"], strict=True)
        ]

    def spans(self, encoded: Any, window: int) -> NDArray[np.int32]:
        """First character and character after the last of each token, `(tokens, 2)`; -1 outside of the context."""
        context = 1 if self.question_first else 0
        inside = np.array([part == context for part in encoded.sequence_ids(window)])
        spans = np.array(encoded["offset_mapping"][window], np.int32)
        return np.where(inside[:, None], spans, np.int32(NOWHERE))

    def refusal(self, ids: Sequence[int]) -> int:
        """The place of the classification token, which stands for no answer; the first place where there is none."""
        for token in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id):
            if token is not None and token in ids:
                return ids.index(token)
        return 0
