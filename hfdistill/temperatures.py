"""Temperatures that are no constant: one a row, found from what the teacher says of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hfdistill.errors import HfDistillError
from hfdistill.schedules import Schedule, options_at

TEMPERATURE = "temperature"


class RowTemperature(ABC):
    """A temperature for each row of a batch."""

    @abstractmethod
    def rows(self, teacher: torch.Tensor) -> torch.Tensor:
        """Temperatures `(rows,)` from the teacher's logits `(rows, classes)`, without gradient."""


@dataclass(frozen=True)
class TeacherEntropy(RowTemperature):
    """A temperature between `low`, where the teacher is unsure, and `high`, where it is sure of one class.

    T_i = low + (high - low) (1 - H(softmax(z_t,i)) / log C): a row that would tell little beside its label is softened
    more. Domain: 0 < low, 0 < high, 2 classes or more; `low` above `high` turns it round. Classes of logit -inf are no
    classes. Errors: HfDistillError for other numbers. No single paper; the idea is that of instance temperatures in
    Li et al. (CTKD), arXiv 2211.16231, section 3.3, without anything to learn.
    """

    low: float = 1.0
    high: float = 8.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) and number > 0 for number in (self.low, self.high)):
            raise HfDistillError(f"{self!r} came; expected finite temperatures above 0, such as 1 and 8.")

    @torch.no_grad()
    def rows(self, teacher: torch.Tensor) -> torch.Tensor:
        """Temperatures `(rows,)`."""
        logs = teacher.float().log_softmax(-1)
        entropy = torch.special.entr(logs.exp()).sum(-1)
        classes = (teacher > -torch.inf).sum(-1).clamp(min=2)
        temperatures: torch.Tensor = self.low + (self.high - self.low) * (1 - entropy / classes.log())
        return temperatures


ROW_TEMPERATURES: Mapping[str, type[TeacherEntropy]] = {"teacher_entropy": TeacherEntropy}
"""Temperatures of rows by the names that a recipe gives them."""


def has_changing(options: Mapping[str, Any]) -> bool:
    """Whether any option is more than a constant."""
    return any(isinstance(value, (Schedule, RowTemperature)) for value in options.values())


def constants(options: Mapping[str, Any], epoch: float = 0.0) -> dict[str, Any]:
    """The options as plain values of one moment, a temperature of rows as 1: what a loss can be tried with."""
    now = options_at(options, epoch)
    return {name: 1.0 if isinstance(value, RowTemperature) else value for name, value in now.items()}


def mixing_temperature(options: Mapping[str, Any], default: float) -> float:
    """The temperature at which several teachers are mixed for a loss with such options, by default `default`.

    1 for standardised logits, which have no scale of their own, and where each row's temperature is found from the
    mixture itself.
    """
    temperature = options.get(TEMPERATURE, default)
    return 1.0 if isinstance(temperature, RowTemperature) or options.get("standardized") else float(temperature)


def distance(loss: Any, student: torch.Tensor, teacher: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    """`loss` with such options, `(rows,)`; with temperatures of rows each row is `T_i^2 loss(z / T_i)` at T = 1."""
    temperature = options.get(TEMPERATURE)
    if not isinstance(temperature, RowTemperature):
        return loss(student, teacher, **options)  # type: ignore[no-any-return]
    softened = temperature.rows(teacher)
    plain = {**options, TEMPERATURE: 1.0}
    values = loss(student / softened[:, None], teacher / softened[:, None], **plain)
    return softened.square() * values  # type: ignore[no-any-return]


def check_rows_soften(loss: Any, options: Mapping[str, Any], labels: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse a temperature of rows for a loss that is not `T^2 loss(z / T)` row by row.

    Errors: HfDistillError. Such are those that compare rows with each other, and standardised logits, which have no
    scale that a temperature could change.
    """
    if not isinstance(options.get(TEMPERATURE), RowTemperature):
        return
    drawn = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, generator=drawn, dtype=torch.float64) for _ in range(2))
    fixed = {**constants(options), **labels}
    whole = loss(student, teacher, **{**fixed, TEMPERATURE: 2.0})
    halves = 4 * loss(student / 2, teacher / 2, **{**fixed, TEMPERATURE: 1.0})
    alone = loss(
        student * torch.tensor([1.0, 2, 3, 4])[:, None],
        teacher * torch.tensor([1.0, 2, 3, 4])[:, None],
        **{**fixed, TEMPERATURE: 2.0},
    )
    if not torch.allclose(whole, halves) or not torch.allclose(whole[0], alone[0]):
        raise HfDistillError(
            f"{what} cannot take a temperature of its own for each row: its temperature is no mere scale of each row's "
            "logits. Expected a number, a schedule, or another loss, such as forward_kl."
        )
