"""Named parts of the loss, summed on the device and read only when they are logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

from hfdistill.rows import RowCounts


class PartSums:
    """Running sums of each term's part and of what they are divided by, `(2, terms)`, gathered by name at log time.

    In training a part is already a share of its step's mean, so the divisor counts optimizer steps that had rows for
    the term; in evaluation both are sums over rows.
    """

    def __init__(self, names: Sequence[str], needs_labels: Sequence[bool], device: torch.device) -> None:
        self.names = list(names)
        self.needs_labels = list(needs_labels)
        self.sums = torch.zeros(2, len(self.names), device=device)

    def begin_step(self, counts: RowCounts, processes: int) -> None:
        """Count one optimizer step for the terms that have rows in it, on one rank's account of `processes`."""
        self.sums[1] += (self._rows(counts) > 0) / processes

    def add(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Add one micro-batch's shares of its step's means."""
        self.sums[0] += self._vector(parts)

    def add_means(self, parts: Mapping[str, torch.Tensor], counts: RowCounts) -> None:
        """Add means over one evaluation batch as sums over its rows."""
        rows = self._rows(counts)
        self.sums += torch.stack([self._vector(parts) * rows, rows.to(self.sums.dtype)])

    def _rows(self, counts: RowCounts) -> torch.Tensor:
        terms = zip(self.names, self.needs_labels, strict=True)
        return torch.stack([counts.for_term(name, needs_labels) for name, needs_labels in terms])

    def _vector(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        nothing = self.sums.new_zeros(())
        return torch.stack([parts.get(name, nothing).to(self.sums.dtype) for name in self.names])

    def means(self, accelerator: Accelerator, prefix: str) -> dict[str, float]:
        """Means over all ranks as `<prefix>loss/<name>`, then start again; a term that had no rows is left out."""
        sums = accelerator.reduce(self.sums, reduction="sum").cpu()
        self.sums = torch.zeros_like(self.sums)
        return {
            f"{prefix}loss/{name}": (sums[0, place] / sums[1, place]).item()
            for place, name in enumerate(self.names)
            if sums[1, place] > 0
        }
