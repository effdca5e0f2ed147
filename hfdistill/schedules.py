"""Numbers that change with the epoch: weights of terms, temperatures and other options of losses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from hfdistill.errors import HfDistillError


class Schedule(ABC):
    """A number for every moment of a training, told by the epochs done so far (2.5: half of the third)."""

    @abstractmethod
    def at(self, epoch: float) -> float:
        """The number after so many epochs."""

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """The first number and the last; all others lie between them."""


@dataclass(frozen=True)
class _Ramp(Schedule):
    start: float
    end: float
    epochs: float

    def __post_init__(self) -> None:
        _check(self)

    def _done(self, epoch: float) -> float:
        return min(epoch / self.epochs, 1.0)

    @property
    def ends(self) -> tuple[float, float]:
        """The first number and the last."""
        return (self.start, self.end)


class Linear(_Ramp):
    """From `start` to `end` in a straight line over `epochs`, then `end`."""

    def at(self, epoch: float) -> float:
        """The number after so many epochs."""
        return self.start + (self.end - self.start) * self._done(epoch)


class Cosine(_Ramp):
    """From `start` to `end` along half a cosine over `epochs`, slow at both ends, then `end`."""

    def at(self, epoch: float) -> float:
        """The number after so many epochs."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._done(epoch))) / 2


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Up to `value` in `epochs` equal steps, one an epoch: `value * min(n / epochs, 1)` in the n-th epoch, n from 1.

    Source: Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679, section 4 (20 of 240 epochs).
    """

    epochs: float
    value: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def at(self, epoch: float) -> float:
        """The number after so many epochs."""
        # The epochs done are a sum of fractions: a hair below a whole number is that number.
        return self.value * min((math.floor(epoch + 1e-6) + 1) / self.epochs, 1.0)

    @property
    def ends(self) -> tuple[float, float]:
        """The first number and the last."""
        return (self.at(0), self.value)


@dataclass(frozen=True)
class Auto:
    """A weight found by measuring: the term's gradient becomes as long as that of the first term of a fixed weight.

    Measured in the first `steps` optimizer steps, with respect to all parameters that learn, and fixed then.
    """

    steps: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise HfDistillError(f"Auto(steps={self.steps}) came; expected at least one step to measure.")


AUTO = "auto"
Weight: TypeAlias = float | Schedule | Auto

SCHEDULES: Mapping[str, type[Schedule]] = {"linear": Linear, "cosine": Cosine, "warm_up": WarmUp}
"""Schedules by the names that a recipe gives them."""


def checked_weight(weight: Any, name: str) -> Weight:
    """A weight that is a finite number of at least 0, a schedule of such numbers, or 'auto'.

    Errors: HfDistillError for anything else.
    """
    expected = "a finite number of at least 0, a schedule of such numbers, or 'auto'"
    if isinstance(weight, Auto):
        return weight
    if isinstance(weight, str) and weight == AUTO:
        return Auto()
    if isinstance(weight, Schedule):
        if min(weight.ends) < 0:
            raise HfDistillError(f"The weight of {name!r} is {weight!r}; expected {expected}.")
        return weight
    return finite_weight(weight, name, expected)


def finite_weight(weight: Any, name: str, expected: str = "a finite number of at least 0") -> float:
    """The weight as a float; raises HfDistillError for what is not a finite number of at least 0."""
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise HfDistillError(f"The weight of {name!r} is {weight!r}; expected {expected}.")
    return number


def is_used(weight: Weight) -> bool:
    """Whether a weight is above 0 at some time."""
    if isinstance(weight, Schedule):
        return max(weight.ends) > 0
    return isinstance(weight, Auto) or weight > 0


def described(value: Any) -> str:
    """A number, or what it is told by, in a few words."""
    return repr(value) if isinstance(value, Schedule) else AUTO if isinstance(value, Auto) else f"{value:g}"


def options_at(options: Mapping[str, Any], epoch: float) -> dict[str, Any]:
    """Options of a loss with the numbers of that moment."""
    return {name: value.at(epoch) if isinstance(value, Schedule) else value for name, value in options.items()}


def _check(schedule: _Ramp | WarmUp) -> None:
    if not (schedule.epochs > 0 and all(map(math.isfinite, (schedule.epochs, *schedule.ends)))):
        raise HfDistillError(f"{schedule!r} came; expected finite numbers, and epochs above 0.")
