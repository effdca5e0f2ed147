"""Questions whose answers stand in a text: read in windows that overlap, each with the places of its answer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from hfdistill.data.examples import Source
from hfdistill.data.kind import SourceRequest
from hfdistill.data.labels import UNLABELLED, LabelSpace, check_columns
from hfdistill.data.texts import TextKind, texts_of
from hfdistill.data.windows import Answer, Windows, window_source
from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection, RecipeError

TASK = "question_answering"
COLUMNS = ("question", "context")
ANSWERS = "answers"
"""The columns of SQuAD, where a recipe names none."""
WINDOW = 384
"""Tokens of a window where nobody says, as is usual on SQuAD."""


class Questions(TextKind):
    """Questions, each with a text that holds its answer or, where the data has such questions, does not."""

    name = TASK
    auto_class = AutoModelForQuestionAnswering
    longest = WINDOW

    def made_reader(self, train: datasets.Dataset, known_names: Sequence[str] | None) -> AnswerReader:
        """Reads the answers, and knows which columns hold questions and texts."""
        self.columns = _columns(train, self.section)
        self.answers = AnswerReader(train, self.section, self.columns)
        return self.answers

    def source(self, request: SourceRequest) -> Windows:
        """Windows of tokens; both models read the same."""
        _, view = request.only_view(self.name)
        return window_source(request.dataset, self.answers, view, self.section.doc_stride, request.bar)

    def of_rows(self, source: Source, values: Tensor) -> Tensor:
        """A window has the value of its question."""
        assert isinstance(source, Windows)
        return values[source.owners]


class AnswerReader:
    """Reads a column of answers: texts and where they begin in the context, in characters.

    Called on a split it gives one number a question, its checksum, by which a run notices that its files have changed,
    or -100 for a question of which nothing is known (null). A question whose list of answers is empty has none.
    `refuses` says whether the train split has such questions, so that a model may answer nothing.
    Errors: RecipeError for columns of another type; HfDistillError naming row and value of a bad answer.
    """

    def __init__(self, train: datasets.Dataset, section: DataSection, columns: tuple[str, str]) -> None:
        self.question, self.context = columns
        self.column = _answer_column(train, section)
        self._check_form(train)
        self.space = LabelSpace(TASK, ())
        self.refuses = any(value is not None and not _pairs(value) for value in self._column(train))

    def _check_form(self, train: datasets.Dataset) -> None:
        feature = train.features[self.column]
        inner = feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else feature
        if not isinstance(inner, Mapping) or not {"text", "answer_start"} <= inner.keys():
            raise RecipeError(
                f"data.label_column: {self.column!r} holds {feature}; expected answers as SQuAD gives them: "
                "{text: [...], answer_start: [...]}."
            )

    def _column(self, dataset: datasets.Dataset) -> list[Any]:
        found: list[Any] = dataset.with_format(None)[self.column][:]
        return found

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """One number a question."""
        check_columns(dataset, [self.question, self.context, self.column], "data.label_column")
        marks = []
        rows = zip(*self.texts(dataset), self._column(dataset), strict=True)
        for row, (question, context, value) in enumerate(rows):
            if value is None and allow_missing:
                marks.append(UNLABELLED)
                continue
            answers = self._checked(value, context, row, split)
            marks.append(zlib.crc32(repr((question, context, answers)).encode()))
        return torch.tensor(marks)

    def texts(self, dataset: datasets.Dataset) -> tuple[list[str], list[str]]:
        """Questions and contexts."""
        return texts_of(dataset, self.question), texts_of(dataset, self.context)

    def answers(self, dataset: datasets.Dataset) -> list[list[Answer] | None]:
        """The answers to each question; none for one that has no answer, None where nobody knows."""
        return [None if value is None else _pairs(value) for value in self._column(dataset)]

    def _checked(self, value: Any, context: str, row: int, split: str) -> list[Answer]:
        if value is None:
            raise HfDistillError(
                f"Row {row} of the split {split!r} holds None in {self.column!r}; expected its answers, or empty lists "
                "for a question without one: only rows of the train split may go without."
            )
        answers = _pairs(value)
        for text, start in answers:
            if start < 0 or context[start : start + len(text)] != text:
                raise HfDistillError(
                    f"Row {row} of the split {split!r} has the answer {text!r} at character {start} of "
                    f"{self.context!r}, where the text goes {context[max(start, 0) :][: len(text)]!r}; expected "
                    "answer_start in characters, and the answer as it stands there."
                )
        return answers


def _pairs(value: Any) -> list[Answer]:
    """Texts with their first characters, from lists of both, one of both, or a list of pairs; without empty texts."""
    each = value if isinstance(value, list) else [value]
    found: list[Answer] = []
    for entry in each:
        texts, starts = entry["text"], entry["answer_start"]
        lists = ([texts], [starts]) if isinstance(texts, str) else (texts or [], starts or [])
        if len(lists[0]) != len(lists[1]):
            raise HfDistillError(f"got answers with {len(lists[0])} texts and {len(lists[1])} starts; expected as many")
        found += [(text, int(start)) for text, start in zip(*lists, strict=True) if text.strip()]
    return found


def _columns(train: datasets.Dataset, section: DataSection) -> tuple[str, str]:
    named = COLUMNS if section.text_columns is None else tuple(section.text_columns)
    if len(named) != 2:
        raise RecipeError(
            f"data.text_columns: got {list(named)}; expected two, the question and the text of its answer."
        )
    check_columns(train, named, "data.text_columns (question and context)")
    return named


def _answer_column(train: datasets.Dataset, section: DataSection) -> str:
    column = section.label_column
    if not isinstance(column, str):
        raise RecipeError(f"data.label_column: got {column}, expected the one column of the answers.")
    if column == "label" and column not in train.column_names:
        column = ANSWERS
    check_columns(train, [column], "data.label_column")
    return column
