"""Several distributions over the same classes as one: their weighted mean at whatever temperature a term asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax, logsigmoid

from hfdistill.tasks.label_losses import wide

Brought = Callable[[torch.Tensor], torch.Tensor]


def unchanged(logits: torch.Tensor) -> torch.Tensor:
    """The same logits."""
    return logits


@dataclass(frozen=True)
class Mixture:
    """The logits of several teachers, `(..., classes)` each, and what each weighs.

    `weights` are `(teachers,)`, or `(..., teachers)` where each row has weights of its own; they sum to 1. With
    `sigmoid` each class is true or false for itself.
    """

    logits: Sequence[torch.Tensor]
    weights: torch.Tensor
    sigmoid: bool = False

    def at(self, temperature: float | torch.Tensor, brought: Brought = unchanged) -> torch.Tensor:
        """Logits `z` with `softmax(z / T) = sum_i w_i softmax(z_i / T)`, in float32 or wider; sigmoids alike.

        `T log sum_i w_i softmax(z_i / T)`, or `T logit(sum_i w_i sigmoid(z_i / T))`. Each teacher's logits go through
        `brought` first. A temperature that is a tensor is one of each row, `(..., 1)`.
        """
        scaled = [wide(brought(logits)) / temperature for logits in self.logits]
        if not self.sigmoid:
            return temperature * self._mean([log_softmax(each, -1) for each in scaled])
        on, off = (self._mean([logsigmoid(sign * each) for each in scaled]) for sign in (1, -1))
        return temperature * (on - off)

    def _mean(self, logs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The logarithm of the weighted mean of what these are the logarithms of."""
        # A weight of 0 is -inf here, and so is a probability of 0; logaddexp takes both.
        total: torch.Tensor | None = None
        for log, weight in zip(logs, self.weights.log().unbind(-1), strict=True):
            weighted = log + weight.unsqueeze(-1)
            total = weighted if total is None else torch.logaddexp(total, weighted)
        assert total is not None, "a mixture is of one teacher or more"
        return total


def weighted_mean(outputs: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The mean of `(..., outputs)` with `weights` as those of a `Mixture`, in float32 or wider."""
    total: torch.Tensor | None = None
    for output, weight in zip(outputs, weights.unbind(-1), strict=True):
        share = weight.unsqueeze(-1)
        # Not 0 * -inf, which is no number, where a teacher without a say holds a class for impossible.
        weighted = torch.where(share > 0, share * wide(output), 0.0)
        total = weighted if total is None else total + weighted
    assert total is not None, "a mean is of one teacher or more"
    return total
