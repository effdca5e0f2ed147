"""Intervals against hand-worked values, textbook values and simulation."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from hfdistill.intervals import (
    model_difference,
    model_estimate,
    over_seeds,
    paired_shares,
    wilson,
)
from hfdistill.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL


def test_t_interval_over_three_seeds() -> None:
    estimate = over_seeds([0.1, 0.2, 0.3])
    assert estimate.mean == pytest.approx(0.2)
    assert estimate.sd == pytest.approx(0.1)
    # The 97.5 % quantile of t with 2 degrees of freedom is 4.30265.
    assert estimate.high - estimate.mean == pytest.approx(4.30265 * 0.1 / sqrt(3), rel=1e-5)
    assert estimate.low + estimate.high == pytest.approx(2 * estimate.mean)
    assert not estimate.above_zero
    assert over_seeds([0.1, 0.11, 0.12]).above_zero
    assert over_seeds([-0.1, -0.11, -0.12]).below_zero


def test_wilson_interval() -> None:
    # 8 of 10, the usual textbook example.
    estimate = wilson(8, 10)
    assert (estimate.low, estimate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(10, 10).high == pytest.approx(1.0)
    assert wilson(10, 10).low == pytest.approx(10 / (10 + 1.96**2), abs=1e-3)


def test_paired_interval_of_two_accuracies() -> None:
    # 8 examples only the first gets right, none only the second, of 98: shares 9/100 and 1/100.
    estimate = paired_shares(8, 0, 98)
    reach = 1.959964 * sqrt((0.09 + 0.01 - 0.08**2) / 100)
    assert estimate.mean == 8 / 98
    assert (estimate.low, estimate.high) == (pytest.approx(0.08 - reach), pytest.approx(0.08 + reach))
    # As the exact test of McNemar says: 6 to 0 is beyond chance (p .031), 5 to 0 is not (p .0625).
    assert paired_shares(6, 0, 100).above_zero
    assert not paired_shares(5, 0, 100).above_zero
    assert paired_shares(0, 6, 100).below_zero


def test_accuracy_difference_counts_discordant_examples() -> None:
    labels = np.array([0, 0, 0, -100])
    first = np.array([[1.0, 0], [1.0, 0], [0, 1.0], [1.0, 0]])
    second = np.array([[1.0, 0], [0, 1.0], [0, 1.0], [0, 1.0]])
    assert model_difference(SINGLE_LABEL, first, second, labels) == paired_shares(1, 0, 3)
    assert model_estimate(SINGLE_LABEL, first, labels) == wilson(2, 3)


def test_bootstrap_agrees_with_the_delta_method() -> None:
    generator = np.random.default_rng(1)
    labels = generator.normal(size=2000)
    predicted = labels[:, None] + generator.normal(size=(2000, 1)) * 0.5
    estimate = model_estimate(REGRESSION, predicted, labels)
    # R² = 1 − a/b with per-example a (squared error) and b (squared deviation); its linearised standard error.
    error, spread = (predicted[:, 0] - labels) ** 2, (labels - labels.mean()) ** 2
    ratio = error.mean() / spread.mean()
    standard_error = np.std(error - ratio * spread) / spread.mean() / sqrt(2000)
    assert estimate.mean == pytest.approx(1 - ratio)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_bootstrap_of_micro_f1_is_paired() -> None:
    generator = np.random.default_rng(2)
    labels = (generator.random((300, 4)) > 0.5).astype(np.float32)
    first = labels * 2 - 1 + generator.normal(size=labels.shape)
    second = np.where(generator.random(labels.shape) < 0.02, -first, first)
    single = model_estimate(MULTI_LABEL, first, labels)
    paired = model_difference(MULTI_LABEL, first, second, labels)
    assert paired.low < paired.mean < paired.high
    # The shared examples cancel: far narrower than the interval of either model alone.
    assert paired.high - paired.low < 0.6 * (single.high - single.low)
    same = model_difference(MULTI_LABEL, first, first, labels)
    assert (same.low, same.mean, same.high) == (0, 0, 0)
