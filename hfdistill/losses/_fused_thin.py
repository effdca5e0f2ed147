"""The fused head's approximate gradient: the classes that matter one by one, all others together."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.losses._checks import widened
from hfdistill.losses._fused_products import Products

MOST_KEPT = 0.25
"""The share of classes above which a chunk is multiplied whole: to pick them would save too little."""
PIECE = 4096
"""How many picked classes are multiplied at a time."""


class Thinned:
    """Which columns of a chunk's logit gradient `G`, `(rows, classes)`, are kept, and what the others are taken for.

    A column is kept if in any row its |g| exceeds `threshold` times the least weight of a row. Of the others, D, the
    sums of rows m are known: D is taken for its projection on them, D' = u (u^T D), u = m / |m|. Thus m = D' 1, each
    row's dropped mass times one row averaged by a = D^T m / m^T m, and D' is never farther from D than 0 is.
    """

    def __init__(self, threshold: float, classes: int, like: Tensor) -> None:
        self.threshold = threshold
        self.most = int(MOST_KEPT * classes)
        self.highest = like.new_zeros(classes, dtype=widened(like[:0]).dtype)
        self.lowest = torch.zeros_like(self.highest)
        self.others: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def begin(self) -> None:
        """A new chunk."""
        self.highest.zero_()
        self.lowest.zero_()

    def see(self, block: Tensor) -> None:
        """Some rows of the chunk's gradient."""
        torch.maximum(self.highest, block.amax(0), out=self.highest)
        torch.minimum(self.lowest, block.amin(0), out=self.lowest)

    def kept(self, *weights: Tensor | None) -> Tensor | None:
        """The columns to keep, None: all; `weights` are what a row's gradient can be, a column a term.

        The host waits for a device.
        """
        given = sum(weight.abs() for weight in weights if weight is not None)
        assert isinstance(given, Tensor), "something counts"
        least = self.threshold * torch.where(given > 0, given, torch.inf).amin()
        # Asked so that NaN is kept.
        small = (self.highest <= least) & (self.lowest >= -least)
        columns = small.logical_not_().nonzero().squeeze(-1)
        return columns if len(columns) <= self.most else None

    def fold(
        self,
        columns: Tensor,
        gradient: Tensor,
        hidden: Tensor,
        products: Products,
        of_hidden: Tensor | None,
        of_weight: Tensor | None,
    ) -> None:
        """Write the kept classes' share to the hidden states' gradient, and add theirs to the weight's."""
        mass = gradient.sum(1, dtype=self.highest.dtype)
        if of_hidden is not None:
            of_hidden.zero_()
        for piece in torch.split(columns, PIECE):
            picked = gradient.index_select(1, piece)
            mass -= picked.sum(1, dtype=mass.dtype)
            if of_hidden is not None:
                of_hidden.addmm_(picked, products.picked(piece))
            if of_weight is not None:
                of_weight.index_add_(0, piece, (picked.t() @ hidden).to(of_weight.dtype))
        unit = (mass / mass.norm().clamp(min=torch.finfo(mass.dtype).tiny)).to(gradient.dtype).unsqueeze(0)
        rest = (unit @ gradient).index_fill_(1, columns, 0.0)
        self.others.append((rest, unit @ hidden, unit, of_hidden))

    def finish(self, products: Products, of_weight: Tensor | None) -> None:
        """Add the other classes' share: one pass over the weight and its gradient for all chunks."""
        if not self.others:
            return
        gradients = torch.cat([rest for rest, *_ in self.others])
        averaged = gradients.new_empty(len(gradients), products.weight.shape[1])
        products.hidden_into(averaged, gradients)
        for (_, _, unit, of_hidden), row in zip(self.others, averaged, strict=True):
            if of_hidden is not None:
                of_hidden.addmm_(unit.t(), row.unsqueeze(0))
        if of_weight is not None:
            rows = torch.cat([row for _, row, *_ in self.others])
            products.weight_gradient_into(of_weight, gradients, rows, first=False)
