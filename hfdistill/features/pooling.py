"""Features of many positions as one vector an example."""

from __future__ import annotations

from typing import Literal

import torch

from hfdistill.features.layout import Features, without_prefix

Pool = Literal["mean", "first", "last", "none"]


def pooled_features(features: Features, pool: Pool) -> torch.Tensor:
    """`(examples, width)`: the mean over valid positions without the prefix, the first or the last valid position.

    With "none" all of it, flattened, and 0 for padding: `(examples, positions * width)`.
    """
    if pool == "none":
        values = features.values
        return (values if features.valid is None else values * features.valid[..., None]).flatten(1)
    if pool == "mean":
        features = without_prefix(features)
        if features.valid is None:
            return features.values.mean(1)
        weights = features.valid[..., None].to(features.values.dtype)
        return (features.values * weights).sum(1) / weights.sum(1).clamp(min=1)
    place = _end(features, pool)
    return features.values[torch.arange(len(place), device=place.device), place]


def _end(features: Features, pool: Pool) -> torch.Tensor:
    count = features.positions
    if features.valid is None:
        place = 0 if pool == "first" else count - 1
        return torch.full((len(features.values),), place, device=features.values.device)
    numbers = torch.arange(count, device=features.values.device)
    if pool == "first":
        return torch.where(features.valid, numbers, count).amin(1).clamp(max=count - 1)
    return torch.where(features.valid, numbers, -1).amax(1).clamp(min=0)
