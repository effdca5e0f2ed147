"""RKD's angle part, over all triples of a batch in memory of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hfdistill.losses._distances import centred_products, distances
from hfdistill.losses._features import example_pair

# Triples computed at a time: enough to keep a device busy, few enough to stay in a processor's cache.
_TRIPLES = 2**20


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


def _blocks(rows: int) -> Iterator[slice]:
    """Slices of middle rows such that the triples of a slice fit the budget."""
    size = max(1, _TRIPLES // rows**2)
    return (slice(start, start + size) for start in range(0, rows, size))


def _numerators(inner: Tensor, middle: Tensor | slice) -> Tensor:
    """(f_i - f_j) . (f_k - f_j) for the middle rows j, shape (middle, rows, rows), from inner products alone."""
    to_middle = inner[middle]
    own = inner.diagonal()[middle]
    return (inner - to_middle.unsqueeze(2)).sub_(to_middle.unsqueeze(1)).add_(own[:, None, None])


def _cosines(inner: Tensor, inverse: Tensor, middle: slice) -> Tensor:
    """cos(i, j, k) for the middle rows j, shape (middle, rows, rows)."""
    to_middle = inverse[middle]
    return _numerators(inner, middle).mul_(to_middle.unsqueeze(2)).mul_(to_middle.unsqueeze(1))


class _AngleDifference(torch.autograd.Function):
    """Differences of cosines as a function of inner products and inverse distances.

    Both are inputs, so autograd has only pairs to keep; triples are computed again in backward, block by block.
    """

    @staticmethod
    def forward(ctx: Any, inner_s: Tensor, inverse_s: Tensor, inner_t: Tensor, inverse_t: Tensor) -> Tensor:
        ctx.save_for_backward(inner_s, inverse_s, inner_t, inverse_t)
        values = torch.empty_like(inner_s[0])
        for middle in _blocks(len(inner_s)):
            difference = _cosines(inner_s, inverse_s, middle).sub_(_cosines(inner_t, inverse_t, middle)).abs_()
            inside = difference.clamp(max=1.0)
            # smooth_l1 is d^2/2 up to 1 and d - 1/2 above: with c = min(d, 1) both are c (d - c/2).
            values[middle] = difference.sub_(inside / 2).mul_(inside).mean((1, 2))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inner_s, inverse_s, inner_t, inverse_t = ctx.saved_tensors
        grad_inner, grad_inverse = torch.zeros_like(inner_s), torch.zeros_like(inverse_s)
        for middle in _blocks(len(inner_s)):
            to_middle = inverse_s[middle]
            numerator = _numerators(inner_s, middle)
            cosine = (numerator * to_middle.unsqueeze(2)).mul_(to_middle.unsqueeze(1))
            slope = cosine.sub_(_cosines(inner_t, inverse_t, middle)).clamp_(-1.0, 1.0)
            slope.mul_((grad_values[middle] / len(inner_s) ** 2)[:, None, None])
            # i and k change places freely, so both inverse distances get the same gradient: twice the one of i.
            grad_inverse[middle] = 2 * torch.einsum("jik,jik,jk->ji", slope, numerator, to_middle)
            weight = slope.mul_(to_middle.unsqueeze(2)).mul_(to_middle.unsqueeze(1))
            grad_inner += weight.sum(0)
            one_end = weight.sum(2)
            grad_inner[middle] -= 2 * one_end
            grad_inner.diagonal()[middle] += one_end.sum(1)
        return grad_inner, grad_inverse, None, None
