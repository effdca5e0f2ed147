"""The fused head's sweep for a teacher of which the likeliest classes are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.losses._fused_blocks import WORK, Kind, Scratch, softmax_into


def top_k_into(
    kind: Kind, student: Tensor, indices: Tensor, kept: Tensor, weight: Tensor | None, scratch: Scratch
) -> Tensor:
    """The divergence from k kept classes and the rest, a column; `student`, logits over T, becomes the gradient.

    `kept` are the teacher's probabilities at `indices`, `(rows, k)`; where an index comes more than once, all but one
    of its probabilities are 0.
    """
    kept = kept / kept.sum(-1, keepdim=True).clamp(min=1.0)
    total = kept.sum(-1, keepdim=True)
    inside, first = student.gather(1, indices), _first_of_equals(indices)
    normaliser = inside.masked_fill(~first, -torch.inf).logsumexp(-1, keepdim=True)
    values = torch.zeros_like(total)
    if indices.shape[1] < student.shape[1]:
        # A softmax among the rest alone keeps its digits where the rest has next to no mass.
        student.scatter_(1, indices, -torch.inf)
        among, rest = scratch(WORK, student), (1 - total).clamp_(min=0.0)
        of_rest = softmax_into(among, student)
        normaliser = torch.logaddexp(normaliser, of_rest)
        log_rest = of_rest - normaliser
        values = _information(rest, log_rest)
        total = total + rest
        if weight is not None:
            torch.mul(among, (log_rest.exp() * total - rest) * (weight * kind.temperature), out=student)
    elif weight is not None:
        student.zero_()
    log_inside = inside - normaliser
    values = values + _information(kept, log_inside).sum(-1, keepdim=True)
    if weight is not None:
        change = log_inside.exp().masked_fill(~first, 0.0) * total - kept
        student.scatter_add_(1, indices, change * (weight * kind.temperature))
    return kind.temperature**2 * values


def _information(p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q), and 0 where p is 0."""
    known = p > 0
    return torch.where(known, p * (torch.where(known, p, 1.0).log() - torch.where(known, log_q, 0.0)), 0.0)


def _first_of_equals(indices: Tensor) -> Tensor:
    """Which entries of each row are the first one of their number."""
    ordered, places = indices.sort(stable=True, dim=-1)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(first).scatter_(1, places, first)
