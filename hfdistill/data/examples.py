"""Rows of a split as the trainer reads them: whole batches at once, each model with its own view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hfdistill.data.changes import Changes, Draws
from hfdistill.data.labels import UNLABELLED

STUDENT, TEACHER = "student", "teacher"
PART_LABELS = ("labels", "start_positions", "end_positions")
"""Labels of tokens, pixels and boxes, or places among tokens, which come with the inputs."""

Progress = Callable[[Sequence[Any], str], Iterator[Any]]
"""Goes through a sequence with a bar that says what is being done."""


class Source(Protocol):
    """Inputs of all rows of a split."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """One view of some rows."""
        ...


@dataclass(frozen=True)
class Examples(Dataset[dict[str, Tensor]]):
    """Rows with labels, or None to predict; `views` maps a prefix of the batch's keys ("" or "teacher_") to a view.

    The changes are those of all views but `unchanged`, the prefixes of those that see each row as it is.

    Batches are made whole (`__getitems__`), which spares one Python round a row: a small student would wait for it.
    """

    source: Source
    labels: Tensor | None
    views: Mapping[str, str]
    rows: Tensor
    changes: Changes | None = None
    unchanged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([range(len(self))[index]]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = self.rows[torch.as_tensor(indices)]
        draws = None if self.changes is None else self.changes.draws(rows)
        batch = {
            prefix + name: value
            for prefix, view in self.views.items()
            for name, value in self.source.batch(rows, view, None if prefix in self.unchanged else draws).items()
            if not prefix or name not in PART_LABELS  # labels of parts are those that the student's view shows
        }
        if self.labels is None:
            return batch
        parts = [name for name in PART_LABELS if name in batch]
        if parts:  # the rows' own labels then only say which of these may be used
            unlabelled = self.labels[rows] == UNLABELLED
            if bool(unlabelled.any()):
                for name in parts:
                    batch[name][unlabelled] = UNLABELLED
            return batch
        return batch | {"labels": self.labels[rows]}

    def changed_by(self, seed: int, views: int | None = None) -> Examples:
        """The same rows with changes drawn from another seed, those of so many epochs again and again if given."""
        return self if self.changes is None else replace(self, changes=Changes(self.changes.kinds, seed, views=views))

    def set_epoch(self, epoch: int) -> None:
        """Draw anew: the changes of another epoch."""
        if self.changes is not None:
            self.changes.epoch[0] = epoch if self.changes.views is None else epoch % self.changes.views

    def among(self, chosen: Tensor) -> Examples:
        """Only the rows where the mask over this split's rows is true."""
        return replace(self, rows=self.rows[chosen[self.rows]])


def whole_batch(batch: Any) -> Any:
    """The collator for `Examples`: their batches are whole already."""
    return batch
