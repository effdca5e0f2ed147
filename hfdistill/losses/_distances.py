"""Distances between the rows of a batch, from their inner products."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.losses._vectors import products


def centred_products(features: Tensor) -> Tensor:
    """Inner products (rows, rows) of the features minus their mean, which keeps the distances exact."""
    # A common offset would be subtracted again in every distance, and cost its digits.
    centred = features - features.mean(0)
    return products(centred, centred)


def distances(inner: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and inverse distances from inner products; both 0, without gradient, for rows that coincide."""
    squared_length = inner.diagonal()
    scale = squared_length.unsqueeze(0) + squared_length.unsqueeze(1)
    squared = scale - 2 * inner
    apart = squared > 32 * torch.finfo(inner.dtype).eps * scale.detach()
    distance = torch.where(apart, squared, 1.0).sqrt()
    return distance * apart, distance.reciprocal() * apart
