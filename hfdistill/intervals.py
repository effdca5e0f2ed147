"""How sure a number is: 95 % intervals over the test examples of one run, and over the seeds of several.

One trained model is uncertain because the test set is a sample: Wilson's interval for an accuracy, the bootstrap over
examples for other metrics. Several seeds show how much training itself varies: Student's t with n - 1 degrees of
freedom. Differences are paired: the same examples, or the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hfdistill.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, class_decisions, labelled_rows

Z = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

RESAMPLES = 2000
_BLOCK_ENTRIES = 8_000_000

FromSums = Callable[[NDArray[np.float64]], Any]
"""Sums `(..., addends)` give one number each."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and in words what the interval covers."""

    mean: float
    low: float
    high: float
    sd: float | None
    count: int
    basis: str

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.high < 0


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation (n - 1) and t interval of one value for each seed; needs two seeds."""
    count = len(values)
    mean = float(np.mean(values))
    sd = float(np.std(values, ddof=1))
    reach = float(stats.t.ppf(0.975, count - 1)) * sd / sqrt(count)
    return Estimate(mean, mean - reach, mean + reach, sd, count, f"95 % t interval over {count} seeds")


def wilson(right: int, total: int) -> Estimate:
    """Wilson's interval of a share: it stays inside 0 to 1 and has a width even at 0 and at 1."""
    share = right / total
    middle = (share + Z**2 / (2 * total)) / (1 + Z**2 / total)
    reach = Z / (1 + Z**2 / total) * sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    basis = f"95 % Wilson interval over {total:,} test examples"
    return Estimate(share, max(middle - reach, 0.0), min(middle + reach, 1.0), None, total, basis)


def paired_shares(only_first: int, only_second: int, total: int) -> Estimate:
    """Difference of two accuracies on the same examples, from the examples that only one of the two gets right.

    Bonett and Price's adjusted interval (2012): like McNemar's test it looks at the discordant examples alone, and one
    added to each of the two counts keeps it honest when they are few. The mean is the plain difference.
    """
    first, second = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    middle = first - second
    reach = Z * sqrt((first + second - middle**2) / (total + 2))
    basis = f"95 % paired interval over {total:,} test examples (one training run: training noise is not in it)"
    return Estimate((only_first - only_second) / total, middle - reach, middle + reach, None, total, basis)


def model_estimate(problem_type: str, logits: NDArray[Any], labels: NDArray[Any]) -> Estimate:
    """Main metric of one model with its interval over the test examples."""
    if problem_type == SINGLE_LABEL:
        right = _right(logits, labels)
        return wilson(int(right.sum()), len(right))
    return sums_estimate(_sums(problem_type, logits, labels), partial(_from_sums, problem_type))


def model_difference(problem_type: str, first: NDArray[Any], second: NDArray[Any], labels: NDArray[Any]) -> Estimate:
    """Main metric of the first model less that of the second, over the same test examples."""
    if problem_type == SINGLE_LABEL:
        right, other = _right(first, labels), _right(second, labels)
        return paired_shares(int((right & ~other).sum()), int((other & ~right).sum()), len(right))
    sums, others = _sums(problem_type, first, labels), _sums(problem_type, second, labels)
    return sums_difference(sums, others, partial(_from_sums, problem_type))


def sums_estimate(addends: NDArray[np.float64], number: FromSums) -> Estimate:
    """A number that follows from sums over the examples, with its bootstrap interval.

    `addends` has one line an example; `number` gives the number from their sums `(..., addends)`.
    """
    resampled = _resampled(number, [addends])[0]
    return bootstrap_estimate(float(number(addends.sum(axis=0))), resampled, len(addends))


def sums_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], number: FromSums, sign: int = 1
) -> Estimate:
    """The first model's number less that of the second, paired by example; with sign -1 the other way round."""
    resampled = _resampled(number, [first, second])
    mean = sign * float(number(first.sum(axis=0)) - number(second.sum(axis=0)))
    return bootstrap_difference(mean, sign * (resampled[0] - resampled[1]), len(first))


def bootstrap_estimate(mean: float, resampled: NDArray[np.float64], examples: int) -> Estimate:
    """A number with the interval that its values on samples of the examples give."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    basis = f"95 % bootstrap interval over {examples:,} test examples"
    return Estimate(mean, float(low), float(high), None, examples, basis)


def bootstrap_difference(mean: float, resampled: NDArray[np.float64], examples: int) -> Estimate:
    """A difference of two models with the interval that its values on the same samples for both give."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    basis = f"95 % paired bootstrap over {examples:,} test examples (one training run: training noise is not in it)"
    return Estimate(mean, float(low), float(high), None, examples, basis)


def bootstrap_weights(examples: int, samples: int) -> Iterator[NDArray[np.int64]]:
    """How often each example is in each of so many samples with replacement, block by block; always the same ones."""
    generator = np.random.default_rng(0)
    while samples:
        count = min(samples, max(1, _BLOCK_ENTRIES // examples))
        yield generator.multinomial(examples, np.full(examples, 1 / examples), size=count)
        samples -= count


def _right(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    known = labelled_rows(labels)
    right: NDArray[np.bool_] = class_decisions(SINGLE_LABEL, logits[known]) == labels[known]
    return right


def _sums(problem_type: str, logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """One line of addends an example, from whose sums the main metric follows; so resampling is a matrix product."""
    known = labelled_rows(labels)
    logits, labels = logits[known], labels[known].reshape(logits[known].shape)
    if problem_type == MULTI_LABEL:
        decisions = class_decisions(MULTI_LABEL, logits)
        return np.stack([2 * (decisions * labels).sum(axis=1), (decisions + labels).sum(axis=1)], axis=1).astype(float)
    assert problem_type == REGRESSION
    labels = labels.astype(float)
    centred = labels - labels.mean(axis=0)  # keeps the sum of squares free of cancellation
    error = ((logits - labels) ** 2).sum(axis=1, keepdims=True)
    return np.concatenate([error, (centred**2).sum(axis=1, keepdims=True), np.ones_like(error), centred], axis=1)


def _from_sums(problem_type: str, sums: NDArray[np.float64]) -> Any:
    """The main metric from summed addends (..., addends): micro F1 or R²."""
    if problem_type == MULTI_LABEL:
        return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)[()]
    spread = sums[..., 1] - (sums[..., 3:] ** 2).sum(axis=-1) / sums[..., 2]
    return 1 - np.divide(sums[..., 0], spread, out=np.ones(sums.shape[:-1]), where=spread > 0)[()]


def _resampled(number: FromSums, models: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The number of each model on `RESAMPLES` samples with replacement, the same samples for all models."""
    values: list[list[NDArray[np.float64]]] = [[] for _ in models]
    for weights in bootstrap_weights(len(models[0]), RESAMPLES):
        for position, addends in enumerate(models):
            values[position].append(number(weights @ addends))
    return [np.concatenate(blocks) for blocks in values]
