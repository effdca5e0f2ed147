"""A batch divided among teachers: each teaches the examples of its own task, language or source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hfdistill.errors import HfDistillError
from hfdistill.teachers.targets import Said

Part = tuple[int, tuple[int, ...], dict[str, Any]]
"""A teacher's number, the places of its examples in the batch, and the batch of these alone."""


class Division:
    """Divides batches by an integer column whose values are the numbers of `teachers` teachers."""

    def __init__(self, column: str, teachers: int) -> None:
        self.column = column
        self.teachers = teachers

    def parts(self, inputs: Mapping[str, Any]) -> list[Part]:
        """The part of each teacher that has any, in the order of their numbers.

        Errors: HfDistillError for a batch without the column, a number that no teacher has, and tensors that do not
        have a row for each example.
        """
        numbers = self._numbers(inputs)
        parts: list[Part] = []
        for number in sorted(set(numbers)):
            examples = tuple(place for place, other in enumerate(numbers) if other == number)
            if len(examples) == len(numbers):
                return [(number, examples, dict(inputs))]
            own = {key: self._picked(key, value, examples, len(numbers)) for key, value in inputs.items()}
            parts.append((number, examples, own))
        return parts

    def together(self, said: Sequence[Said], given: Sequence[torch.Tensor]) -> torch.Tensor:
        """The logits of all parts, in the order of the batch."""
        if len(given) == 1:
            return given[0]
        order = [place for each in said for place in each.examples or ()]
        places = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(list(given)).index_select(0, torch.tensor(places, device=given[0].device))

    def _numbers(self, inputs: Mapping[str, Any]) -> list[int]:
        column = inputs.get(self.column)
        if not isinstance(column, torch.Tensor) or column.dim() != 1 or not is_whole(column):
            came = "Nothing" if column is None else f"A {type(column).__name__}"
            if isinstance(column, torch.Tensor):
                came = f"A tensor of shape {tuple(column.shape)} and {column.dtype}"
            raise HfDistillError(
                f"{came} came in the column {self.column!r} that EnsembleTeacher(by=...) names (the batch holds "
                f"{', '.join(inputs)}); expected the number of a teacher for each example, in every data set that is "
                f"trained on or evaluated. Names become numbers by dataset.class_encode_column({self.column!r})."
            )
        # The one place where the host waits: how many rows each teacher reads has to be known here.
        numbers: list[int] = column.tolist()
        unknown = sorted({number for number in numbers if not 0 <= number < self.teachers})
        if unknown:
            raise HfDistillError(
                f"The column {self.column!r} holds {unknown[0]}, and the ensemble has {self.teachers} members; "
                f"expected 0 to {self.teachers - 1}, the place of the member that teaches the example."
            )
        return numbers

    def _picked(self, key: str, value: Any, examples: tuple[int, ...], size: int) -> Any:
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            if len(value) != size:
                raise HfDistillError(
                    f"{key!r} of shape {tuple(value.shape)} came for a batch of {size} examples, which is to be "
                    f"divided among teachers by {self.column!r}; expected a row for each example. Leave by out for "
                    "models that read all examples of a batch in one row."
                )
            return value.index_select(0, torch.tensor(examples, device=value.device))
        if isinstance(value, list) and len(value) == size:
            return [value[place] for place in examples]
        return value


def is_whole(column: torch.Tensor) -> bool:
    """Whether a tensor holds whole numbers, and not truth values."""
    return not column.is_floating_point() and not column.is_complex() and column.dtype != torch.bool
