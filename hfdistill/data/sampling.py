"""Choosing rows: the same ones on every machine and in every process."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def stratified(classes: NDArray[Any] | None, count: int, seed: int, rows: int | None = None) -> Indices:
    """`count` rows in ascending order, each class in proportion (largest remainders) and at least one where it fits.

    `classes` holds one class a row; None draws from `rows` rows without regard to classes.
    """
    generator = np.random.default_rng(seed)
    if classes is None:
        return np.sort(generator.permutation(rows or 0)[:count])
    _, members = np.unique(classes, return_inverse=True)
    shares = _shares(np.bincount(members), count)
    chosen = [generator.permutation(np.flatnonzero(members == group))[:share] for group, share in enumerate(shares)]
    return np.sort(np.concatenate(chosen))


def _shares(sizes: NDArray[Any], count: int) -> NDArray[Any]:
    exact = sizes * (count / sizes.sum())
    shares: NDArray[Any] = np.floor(exact).astype(np.int64)
    if count >= len(sizes):
        shares = np.maximum(shares, 1)
    while shares.sum() < count:
        behind = np.where(shares < sizes, exact - shares, -np.inf)
        shares[behind.argmax()] += 1
    while shares.sum() > count:
        ahead = np.where(shares > 1, shares - exact, -np.inf)
        shares[ahead.argmax()] -= 1
    return shares
