"""RKD's angle part, over all triples of a batch in memory of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import smooth_l1_loss

from hfdistill.losses._distances import centred_products, distances
from hfdistill.losses._features import example_pair

# Triples computed at a time: few enough to stay in a processor's cache, or enough to keep an accelerator busy.
_TRIPLES_ON_CPU, _TRIPLES = 2**18, 2**22


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD's angle part: difference of the cosines of the angles in all triples, seen from their middle row.

    Row j: mean over i, k of smooth_l1(cos_s(i, j, k) - cos_t(i, j, k)), cos(i, j, k) = e_ij . e_kj,
    e_ij = (f_i - f_j) / |f_i - f_j|, 0 for rows that coincide; the mean over rows is the published mean over triples.
    Shapes (rows, width) or (rows, positions, width), flattened; widths may differ -> (rows,); no unit.
    Domain: 3 rows or more; finite features. First derivatives only. Memory grows with rows^2, not rows^3.
    Errors: ValueError for shapes that do not fit or too few rows; TypeError for integer features.
    Source: Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, section 3.2.2.
    """
    student, teacher = example_pair("relational_angle", student, teacher, least=3)
    inner_s, inner_t = centred_products(student), centred_products(teacher)
    values: Tensor = _AngleDifference.apply(  # type: ignore[no-untyped-call]
        inner_s, distances(inner_s)[1], inner_t, distances(inner_t)[1]
    )
    return values


def _blocks(inner: Tensor) -> Iterator[slice]:
    """Slices of middle rows such that the triples of a slice fit the budget."""
    rows = len(inner)
    size = max(1, (_TRIPLES_ON_CPU if inner.device.type == "cpu" else _TRIPLES) // rows**2)
    return (slice(start, start + size) for start in range(0, rows, size))


class _Seen(NamedTuple):
    """What the cosines at some middle rows j are made of, (f_i - f_j) . (f_k - f_j) being G_ik - G_ij - G_jk + G_jj.

    With the inverse distances r and v = (G_jj / 2 - G_j) r the cosine is r_i (r_k G_ik + v_k) + v_i r_k. `offset` is
    G_jj / 2 - G_j, `shifted` is v; both and `inverse` are (middle, rows).
    """

    inner: Tensor
    inverse: Tensor
    offset: Tensor
    shifted: Tensor

    @classmethod
    def of(cls, inner: Tensor, inverse: Tensor, middle: slice) -> _Seen:
        to_middle = inverse[middle]
        offset = inner.diagonal()[middle, None] / 2 - inner[middle]
        return cls(inner, to_middle, offset, offset * to_middle)

    def half(self) -> Tensor:
        """r_k G_ik + v_k, shape (middle, rows, rows)."""
        return torch.addcmul(self.shifted.unsqueeze(1), self.inner, self.inverse.unsqueeze(1))

    def cosines(self, half: Tensor) -> Tensor:
        """cos(i, j, k), shape (middle, rows, rows)."""
        return (self.shifted.unsqueeze(2) * self.inverse.unsqueeze(1)).addcmul_(half, self.inverse.unsqueeze(2))


class _AngleDifference(torch.autograd.Function):
    """Differences of cosines as a function of inner products and inverse distances.

    Both are inputs, so autograd has only pairs to keep; triples are computed again in backward, block by block.
    """

    @staticmethod
    def forward(ctx: Any, inner_s: Tensor, inverse_s: Tensor, inner_t: Tensor, inverse_t: Tensor) -> Tensor:
        ctx.save_for_backward(inner_s, inverse_s, inner_t, inverse_t)
        values = torch.empty_like(inner_s[0])
        for middle in _blocks(inner_s):
            student, teacher = _Seen.of(inner_s, inverse_s, middle), _Seen.of(inner_t, inverse_t, middle)
            ours, theirs = student.cosines(student.half()), teacher.cosines(teacher.half())
            values[middle] = smooth_l1_loss(ours, theirs, reduction="none").mean((1, 2))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inner_s, inverse_s, inner_t, inverse_t = ctx.saved_tensors
        grad_inner, grad_inverse = torch.zeros_like(inner_s), torch.zeros_like(inverse_s)
        grads = grad_values / len(inner_s) ** 2
        for middle in _blocks(inner_s):
            student, teacher = _Seen.of(inner_s, inverse_s, middle), _Seen.of(inner_t, inverse_t, middle)
            half = student.half()
            slope = student.cosines(half).sub_(teacher.cosines(teacher.half())).clamp_(-1.0, 1.0)
            upwards = half.mul_(slope).sum(2)
            to_end = slope.mul_(student.inverse.unsqueeze(1)).sum(2)
            # i and k change places freely, so both inverse distances get the same gradient: twice the one of i.
            grad_inverse[middle] = upwards.add_(student.offset * to_end).mul_(2 * grads[middle, None])
            to_middle = student.inverse * grads[middle, None]
            one_end = to_end.mul_(to_middle)
            grad_inner += slope.mul_(to_middle.unsqueeze(2)).sum(0)
            grad_inner[middle] -= 2 * one_end
            grad_inner.diagonal()[middle] += one_end.sum(1)
        return grad_inner, grad_inverse, None, None
