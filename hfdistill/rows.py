"""Rows: what carries one class distribution, which of them count, and how many there are in an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Rows:
    """The rows of one micro-batch that count for a term.

    Calling it brings a tensor of any leading shape to `(rows, width)`. `index` picks rows out of `size`, where the rest
    is worth skipping (tokens: a head's vocabulary is wide); `valid` masks rows that keep their place (examples: picking
    would make the host wait for the device in every step). With `spread` a row holds many distributions, such as the
    pixels of a picture: a tensor `(rows, ..., width)` becomes `(rows * parts, width)`, and `folded` gives each row the
    mean of its parts, or their sum weighed by `shares`, `(rows, parts)`.
    """

    size: int
    valid: torch.Tensor | None = None
    index: torch.Tensor | None = None
    spread: bool = False
    shares: torch.Tensor | None = None

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give `tensor` as `(rows, width)`; raises ValueError if its entries do not divide among the rows."""
        if self.spread:
            return tensor.reshape(-1, tensor.shape[-1])
        if tensor.numel() % max(self.size, 1):
            raise ValueError(
                f"A tensor of shape {tuple(tensor.shape)} came for {self.size} rows; expected (rows, ...)."
            )
        flat = tensor.reshape(self.size, -1)
        return flat if self.index is None else flat[self.index]

    def __len__(self) -> int:
        """How many values a term gives: one for each row that was picked."""
        return self.size if self.index is None else len(self.index)

    def folded(self, values: torch.Tensor) -> torch.Tensor:
        """One value a row, from one a part."""
        if not self.spread or not self.size:
            return values
        parts = values.reshape(self.size, -1)
        return parts.mean(-1) if self.shares is None else (parts * self.shares).sum(-1)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of one value a row, `(rows,)`, over the rows that count."""
        if self.valid is None:
            return values.sum()
        return torch.where(self.valid, values, 0).sum()

    def count(self, device: torch.device) -> torch.Tensor:
        """How many rows count, as an integer scalar on `device`."""
        if self.valid is None:
            return torch.full((), len(self), device=device)
        return self.valid.sum().to(device)


@dataclass(frozen=True)
class BatchRows:
    """All rows of a micro-batch, those with a label, and labels made safe to index with.

    `every` are the rows of a divergence, `labelled` those of the task loss: mostly the same ones, some of them masked,
    but rows of their own where labels are made of something else (CTC: a transcript, not frames). `labels` is None for
    a batch without labels; a row without a label holds a harmless 0 there.
    """

    every: Rows
    labelled: Rows
    labels: torch.Tensor | None

    def for_term(self, needs_labels: bool) -> Rows:
        """The rows that a term averages over."""
        return self.labelled if needs_labels else self.every


@dataclass(frozen=True)
class RowCounts:
    """Rows of one whole optimizer step, over all its micro-batches and ranks: the denominators of the objective.

    `own` holds those of terms with rows of their own, by name.
    """

    every: torch.Tensor
    labelled: torch.Tensor
    own: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def for_term(self, name: str, needs_labels: bool) -> torch.Tensor:
        """The rows of a term."""
        return self.own.get(name, self.labelled if needs_labels else self.every)

    def stacked(self) -> torch.Tensor:
        """All counts in one tensor."""
        return torch.stack([self.every, self.labelled, *self.own.values()])

    def unstacked(self, counts: torch.Tensor) -> RowCounts:
        """The same counts with the values of such a tensor."""
        return RowCounts(counts[0], counts[1], dict(zip(self.own, counts[2:], strict=True)))

    @classmethod
    def of(
        cls, batches: list[BatchRows], device: torch.device, own: Mapping[str, torch.Tensor] | None = None
    ) -> RowCounts:
        """Count the rows of several micro-batches."""
        every = [rows.every.count(device) for rows in batches]
        labelled = [rows.labelled.count(device) for rows in batches]
        return cls(torch.stack(every).sum(), torch.stack(labelled).sum(), own or {})
