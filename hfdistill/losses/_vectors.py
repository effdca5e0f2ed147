"""Products, lengths and correlations that stay finite, with a zero gradient, where a vector has no direction."""

from __future__ import annotations

import torch
from torch import Tensor


def products(left: Tensor, right: Tensor) -> Tensor:
    """left times right transposed, in the dtype of the inputs."""
    # Inside the trainer's autocast a product would fall to bfloat16, whose 8 bits are too few for relations.
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.mT


def _divided(values: Tensor, length: Tensor, least: Tensor | float) -> Tensor:
    """values / length where the length is above `least`, else 0 without gradient."""
    directed = length > least
    return torch.where(directed, values, 0.0) / torch.where(directed, length, 1.0)


def unit(values: Tensor, dim: int = -1) -> Tensor:
    """The values divided by their Euclidean length; 0 for a zero vector."""
    length = torch.linalg.vector_norm(values, dim=dim, keepdim=True)
    return _divided(values, length, torch.finfo(values.dtype).tiny)


def centred_unit(values: Tensor, dim: int = -1, present: Tensor | None = None) -> Tensor:
    """The values minus their mean, divided by the length; 0 where they do not vary beyond rounding.

    With `present`, a mask, the others count as none: they have to be 0, and stay 0.
    """
    if present is None:
        centred = values - values.mean(dim, keepdim=True)
    else:
        mean = values.sum(dim, keepdim=True) / present.sum(dim, keepdim=True).clamp(min=1)
        centred = torch.where(present, values - mean, 0.0)
    length = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    # Normalising pure rounding error would give gradients of 1 / rounding, for example under a zero-initialised head.
    rounding = 16 * torch.finfo(values.dtype).eps * torch.linalg.vector_norm(values.detach(), dim=dim, keepdim=True)
    return _divided(centred, length, rounding)


def correlation(left: Tensor, right: Tensor, dim: int = -1, present: Tensor | None = None) -> Tensor:
    """Pearson correlation along a dimension, of the `present` values; 0 where one side does not vary."""
    return (centred_unit(left, dim, present) * centred_unit(right, dim, present)).sum(dim)
