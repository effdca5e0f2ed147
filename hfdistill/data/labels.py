"""What the label column means: which kind of problem, which classes, and one tensor a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection, RecipeError

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
UNLABELLED = -100
WHOLE_TASKS = (SINGLE, MULTI, REGRESSION)
"""Tasks with one label for the whole example."""


@dataclass(frozen=True)
class LabelSpace:
    """The kind of problem and the name of each output of a head."""

    problem_type: str
    names: tuple[str, ...]

    def config_settings(self) -> dict[str, Any]:
        """What a Transformers config needs to know of it."""
        if not self.names:
            return {}
        id2label = dict(enumerate(self.names))
        if not self.whole:
            return {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
        return {
            "id2label": id2label,
            "label2id": {name: index for index, name in id2label.items()},
            "problem_type": self.problem_type,
        }

    @property
    def whole(self) -> bool:
        """Whether a label is one of the whole example.

        Where labels are of its parts (tokens, pixels, boxes), they come with its inputs, and a row holds a mark of at
        least 0 instead of a label, or -100.
        """
        return self.problem_type in WHOLE_TASKS

    @property
    def whole_numbers(self) -> bool:
        """Whether a row's label, or mark, is a whole number, and -100 where it has none."""
        return self.problem_type == SINGLE or not self.whole

    def missing(self) -> Any:
        """The label of a row that has none."""
        if self.whole_numbers:
            return UNLABELLED
        return math.nan if len(self.names) == 1 else [math.nan] * len(self.names)


class LabelReader:
    """Reads the label column of any split as one tensor; the space is settled by the train split.

    int64 `(rows,)` for a single label, float32 `(rows, classes)` for several, float32 `(rows,)` or `(rows, targets)`
    for regression. `known_names` are the classes of a teacher that is used as it is: they name bare numbers.
    Errors: RecipeError for a missing column or a wrong problem_type, HfDistillError naming row and value of a bad
    label.
    """

    def __init__(self, train: datasets.Dataset, section: DataSection, known_names: Sequence[str] | None = None) -> None:
        self.columns = [section.label_column] if isinstance(section.label_column, str) else section.label_column
        self.known_names = known_names
        self.split = section.train_split
        check_columns(train, self.columns, "data.label_column")
        if len(self.columns) > 1:
            found = self._vectors(tuple(self.columns), section.problem_type or MULTI)
        else:
            feature = train.features[self.columns[0]]
            found = self._form(feature, self._values(train), section.problem_type)
        self.space, self._encoded = found
        wanted = section.problem_type
        if wanted is not None and wanted != self.space.problem_type:
            raise RecipeError(
                f"data.problem_type: got {wanted}, but the column {self.columns[0]!r} holds "
                f"{self.space.problem_type} labels."
            )

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """The labels of a split; rows without one (null, -100, NaN) are -100 or NaN where they are allowed."""
        self.split = split
        encoded = []
        for row, value in enumerate(self._values(dataset)):
            if self._is_missing(value):
                if not allow_missing:
                    raise self._bad(row, value, "a label: only rows of the train split may go without one")
                encoded.append(self.space.missing())
            else:
                encoded.append(self._encoded(row, value))
        return torch.tensor(encoded, dtype=torch.int64 if self.space.problem_type == SINGLE else torch.float32)

    def _values(self, dataset: datasets.Dataset) -> list[Any]:
        check_columns(dataset, self.columns, "data.label_column")
        columns = [dataset.with_format(None)[column][:] for column in self.columns]
        return columns[0] if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]

    @staticmethod
    def _is_missing(value: Any) -> bool:
        if isinstance(value, list):
            return any(entry is None or (isinstance(entry, float) and math.isnan(entry)) for entry in value)
        return value is None or value == UNLABELLED or (isinstance(value, float) and math.isnan(value))

    def _bad(self, row: int, value: Any, expected: str) -> HfDistillError:
        return HfDistillError(
            f"Row {row} of the split {self.split!r} holds {value!r} in {', '.join(map(repr, self.columns))}; "
            f"expected {expected}."
        )

    def _form(self, feature: Any, values: list[Any], wanted: str | None) -> tuple[LabelSpace, Encoder]:
        if isinstance(feature, datasets.ClassLabel):
            return self._indices(tuple(feature.names))
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            return self._list_form(feature.feature, values, wanted)
        kind = feature.dtype if isinstance(feature, datasets.Value) else ""
        if kind.startswith("float") or wanted == REGRESSION:
            return LabelSpace(REGRESSION, ("score",)), self._number
        if "string" in kind:
            return self._texts(tuple(sorted({value for value in values if value is not None})))
        if kind.startswith(("int", "uint", "bool")):
            return self._indices(self._number_names(values))
        raise RecipeError(
            f"data.label_column: {self.columns[0]!r} is of type {feature}; expected class indices or names, "
            "lists of them, or numbers."
        )

    def _list_form(self, feature: Any, values: list[Any], wanted: str | None) -> tuple[LabelSpace, Encoder]:
        known = [value for value in values if not self._is_missing(value)]
        if isinstance(feature, datasets.ClassLabel):
            return self._several(tuple(feature.names))
        if isinstance(feature, datasets.Value) and "string" in feature.dtype:
            return self._several_texts(tuple(sorted({name for entries in known for name in entries})))
        widths, entries = {len(value) for value in known}, {entry for value in known for entry in value}
        if len(widths) == 1 and (wanted == REGRESSION or not entries <= {0, 1}) and self._is_real(feature):
            names = tuple(f"score_{index}" for index in range(widths.pop()))
            return self._vectors(names, REGRESSION)
        if len(widths) == 1 and entries <= {0, 1}:
            width = widths.pop()
            return self._vectors(self._names_for(width), wanted or MULTI)
        return self._several(self._number_names([entry for value in known for entry in value]))

    @staticmethod
    def _is_real(feature: Any) -> bool:
        return isinstance(feature, datasets.Value) and feature.dtype.startswith("float")

    def _number_names(self, values: list[Any]) -> tuple[str, ...]:
        numbers = [int(value) for value in values if not self._is_missing(value)]
        return self._names_for(max(numbers) + 1 if numbers else 0)

    def _names_for(self, count: int) -> tuple[str, ...]:
        """The names of a teacher that is used as it is, where it has that many classes, or else the numbers."""
        if self.known_names is not None and len(self.known_names) >= count:
            return tuple(self.known_names)
        return tuple(str(index) for index in range(count))

    # ---- one encoder for each form of a label -------------------------------------------------------------------

    def _class_index(self, names: tuple[str, ...], row: int, value: Any) -> int:
        if not isinstance(value, (int, np.integer)) or not 0 <= value < len(names):
            hidden = "; -1 marks hidden labels, so name another split" if value == -1 else ""
            raise self._bad(row, value, f"a class index from 0 to {len(names) - 1} ({_some(names)}){hidden}")
        return int(value)

    def _indices(self, names: tuple[str, ...]) -> tuple[LabelSpace, Encoder]:
        return self._space(SINGLE, names), lambda row, value: self._class_index(names, row, value)

    def _texts(self, names: tuple[str, ...]) -> tuple[LabelSpace, Encoder]:
        places = {name: index for index, name in enumerate(names)}

        def encoded(row: int, value: Any) -> int:
            if value not in places:
                raise self._bad(row, value, f"one of the train split's classes: {_some(names)}")
            return places[value]

        return self._space(SINGLE, names), encoded

    def _several(self, names: tuple[str, ...]) -> tuple[LabelSpace, Encoder]:
        def encoded(row: int, value: Any) -> list[float]:
            marks = [0.0] * len(names)
            for entry in value:
                marks[self._class_index(names, row, entry)] = 1.0
            return marks

        return self._space(MULTI, names), encoded

    def _several_texts(self, names: tuple[str, ...]) -> tuple[LabelSpace, Encoder]:
        def encoded(row: int, value: Any) -> list[float]:
            for entry in value:
                if entry not in names:
                    raise self._bad(row, entry, f"one of the train split's classes: {_some(names)}")
            return [float(name in value) for name in names]

        return self._space(MULTI, names), encoded

    def _vectors(self, names: tuple[str, ...], problem_type: str) -> tuple[LabelSpace, Encoder]:
        def encoded(row: int, value: Any) -> list[float]:
            if len(value) != len(names):
                raise self._bad(row, value, f"{len(names)} numbers, as in the rows before")
            if problem_type == MULTI and not {float(entry) for entry in value} <= {0.0, 1.0}:
                raise self._bad(row, value, "0 or 1 for each label")
            return [float(entry) for entry in value]

        return self._space(problem_type, names), encoded

    def _number(self, row: int, value: Any) -> float:
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
        raise self._bad(row, value, "a finite number")

    def _space(self, problem_type: str, names: tuple[str, ...]) -> LabelSpace:
        if len(names) < 2 and problem_type == SINGLE:
            raise HfDistillError(
                f"The column {self.columns[0]!r} of the train split has {len(names)} class; expected at least "
                "two. Check data.label_column and the files."
            )
        return LabelSpace(problem_type, names)


Encoder = Callable[[int, Any], Any]


def check_columns(dataset: datasets.Dataset, columns: Sequence[str], key: str) -> None:
    """Refuse a column that the data set lacks, naming those it has."""
    for column in columns:
        if column not in dataset.column_names:
            raise RecipeError(f"{key}: there is no column {column!r}; the data has {', '.join(dataset.column_names)}.")


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
