"""Sentences given as words with a tag each: named entities, parts of speech."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForTokenClassification

from hfdistill.data.examples import Progress
from hfdistill.data.kind import SourceRequest
from hfdistill.data.labels import UNLABELLED, LabelSpace, check_columns
from hfdistill.data.texts import CHUNK, TextKind, Texts, TextView, flat_tokens
from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection, RecipeError

TASK = "token_classification"


class TaggedWords(TextKind):
    """Sentences as lists of words with a tag each."""

    name = TASK
    auto_class = AutoModelForTokenClassification

    def made_reader(self, train: datasets.Dataset, known_names: Sequence[str] | None) -> TagReader:
        """Reads the tags, and knows which column holds the words."""
        self.tags = TagReader(train, self.section, known_names)
        self.columns = (self.tags.words,)
        return self.tags

    def source(self, request: SourceRequest) -> Texts:
        """Tokenised once; both models read the same tokens."""
        name, view = request.only_view(self.name)
        return self.tags.source(request.dataset, view, name, request.bar)


class TagReader:
    """Reads a column of tags, one for each word: class indices or names.

    Called on a split it gives one number a sentence, its checksum, by which a run notices that its files have changed,
    or -100 for a sentence without tags. `known_names` are the tags of a teacher that is used as it is.
    Errors: RecipeError for columns of another type; HfDistillError naming row and value of a bad sentence.
    """

    def __init__(self, train: datasets.Dataset, section: DataSection, known_names: Sequence[str] | None) -> None:
        if not isinstance(section.label_column, str):
            raise RecipeError(f"data.label_column: got {section.label_column}, expected the one column of the tags.")
        self.column = section.label_column
        self.words = _word_column(train, section)
        check_columns(train, [self.column, self.words], "data.label_column")
        feature = train.features[self.column]
        if not isinstance(feature, (datasets.List, datasets.LargeList)):
            raise RecipeError(
                f"data.label_column: {self.column!r} holds {feature}; expected a list of tags a sentence."
            )
        self.space = LabelSpace(TASK, self._names(train, feature.feature, known_names))
        self._places = {name: place for place, name in enumerate(self.space.names)}

    def _names(self, train: datasets.Dataset, feature: Any, known: Sequence[str] | None) -> tuple[str, ...]:
        if isinstance(feature, datasets.ClassLabel):
            return tuple(feature.names)
        tags = {tag for row in train.with_format(None)[self.column][:] for tag in row or () if tag is not None}
        if all(isinstance(tag, str) for tag in tags):
            # "O" first, as is usual: a head that knows nothing then says "no entity" for a tie.
            return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))
        count = max(tags) + 1
        return tuple(known) if known is not None and len(known) >= count else tuple(str(each) for each in range(count))

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """One number a sentence."""
        check_columns(dataset, [self.column, self.words], "data.label_column")
        marks = []
        for row, (words, tags) in enumerate(zip(*self._columns(dataset), strict=True)):
            if not tags and allow_missing:
                marks.append(UNLABELLED)
                continue
            if len(words) != len(tags or ()):
                raise HfDistillError(
                    f"Row {row} of the split {split!r} has {len(words)} words in {self.words!r} and {len(tags or ())} "
                    f"tags in {self.column!r}; expected a tag for each word."
                )
            self._indices(tags, row, split)
            marks.append(zlib.crc32(repr((words, tags)).encode()))
        return torch.tensor(marks)

    def _columns(self, dataset: datasets.Dataset) -> tuple[list[Any], list[Any]]:
        plain = dataset.with_format(None)
        return plain[self.words][:], plain[self.column][:]

    def _indices(self, tags: Sequence[Any], row: int, split: str) -> list[int]:
        indices = [self._places.get(tag, -1) if isinstance(tag, str) else int(tag) for tag in tags]
        for tag, index in zip(tags, indices, strict=True):
            if not 0 <= index < len(self.space.names):
                raise HfDistillError(
                    f"Row {row} of the split {split!r} holds the tag {tag!r}; expected one of the train split's: "
                    f"{', '.join(self.space.names[:9])}."
                )
        return indices

    def source(self, dataset: datasets.Dataset, view: TextView, name: str, bar: Progress) -> Texts:
        """Tokenise the sentences; a word's first token carries its tag, every other token -100."""
        words, tags = self._columns(dataset)
        pieces: dict[str, list[NDArray[np.int32]]] = {}
        lengths: list[int] = []
        for start in bar(range(0, len(words), CHUNK), "Tokenising"):
            part = words[start : start + CHUNK]
            encoded = view.tokenizer(part, is_split_into_words=True, truncation=True, max_length=view.max_length)
            encoded["labels"] = [
                self._first_tokens(encoded.word_ids(place), tags[start + place], start + place)
                for place in range(len(part))
            ]
            lengths += [len(ids) for ids in encoded["input_ids"]]
            for column in encoded:
                flat = np.fromiter((value for row in encoded[column] for value in row), np.int32)
                pieces.setdefault(column, []).append(flat)
        return Texts({name: flat_tokens(pieces, lengths, view.tokenizer, {"labels": UNLABELLED})})

    def _first_tokens(self, word_ids: Sequence[int | None], tags: Sequence[Any] | None, row: int) -> list[int]:
        if not tags:
            return [UNLABELLED] * len(word_ids)
        indices = self._indices(tags, row, "")
        before = [None, *word_ids[:-1]]
        return [
            UNLABELLED if word is None or word == last else indices[word]
            for word, last in zip(word_ids, before, strict=True)
        ]


def _word_column(train: datasets.Dataset, section: DataSection) -> str:
    if section.text_columns is not None and len(section.text_columns) == 1:
        return section.text_columns[0]
    found = [
        name
        for name, feature in train.features.items()
        if isinstance(feature, (datasets.List, datasets.LargeList))
        and isinstance(feature.feature, datasets.Value)
        and "string" in feature.feature.dtype
        and name != section.label_column
    ]
    if len(found) != 1:
        raise RecipeError(
            "data.text_columns: which column holds the words is not clear; the data has "
            f"{', '.join(train.column_names)}. Name the one with a list of words a sentence."
        )
    return str(found[0])
