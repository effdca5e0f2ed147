"""Temperatures that are no constant: one a row, found from what the teacher says of it, or one that is learnt."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.losses import forward_kl
from hfdistill.losses._checks import widened
from hfdistill.losses._softmax import kl
from hfdistill.reversal import with_reversed_gradient
from hfdistill.schedules import Cosine, Schedule, options_at

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


@dataclass(frozen=True)
class LearnedTemperature:
    """A temperature between `low` and `high` that is learnt against the student: it makes the loss harder by and by.

    T = low + (high - low) sigmoid(b), one number b for all rows, with its gradient reversed and multiplied by a factor
    that grows from 0 to 1 over `epochs` along half a cosine. It begins at `start`, learns with the student's optimizer
    and lies in checkpoints beside it. For `forward_kl` alone, whose both sides depend on T.
    Domain: 0 < low < start < high, epochs > 0. Errors: HfDistillError outside of it.
    Source: Li et al., "Curriculum Temperature for Knowledge Distillation" (CTKD, its global version), arXiv 2211.16231.
    """

    low: float = 1.0
    high: float = 21.0
    start: float = 4.0
    epochs: float = 10.0

    def __post_init__(self) -> None:
        if not (0 < self.low < self.start < self.high < math.inf and self.epochs > 0):
            raise HfDistillError(f"{self!r} came; expected 0 < low < start < high, and epochs above 0.")

    def module(self) -> TemperatureModule:
        """What learns."""
        return TemperatureModule(self)

    def reversed(self, temperature: torch.Tensor, epoch: float) -> torch.Tensor:
        """The same temperature, whose gradient turns round, as strongly as the epochs done say."""
        return with_reversed_gradient(temperature, Cosine(0.0, 1.0, self.epochs).at(epoch))


class TemperatureModule(nn.Module):
    """The number that a LearnedTemperature learns."""

    def __init__(self, settings: LearnedTemperature) -> None:
        super().__init__()
        share = (settings.start - settings.low) / (settings.high - settings.low)
        # Called a bias, since Trainer spares those weight decay.
        self.bias = nn.Parameter(torch.tensor([math.log(share / (1 - share))]))
        self.low, self.high = settings.low, settings.high

    def forward(self) -> torch.Tensor:
        """The temperature, `(1,)`."""
        return self.low + (self.high - self.low) * self.bias.sigmoid()


TEMPERATURES: Mapping[str, type[TeacherEntropy] | type[LearnedTemperature]] = {
    "teacher_entropy": TeacherEntropy,
    "learned": LearnedTemperature,
}
"""Temperatures that are found or learnt, by the names that a recipe gives them."""


def has_changing(options: Mapping[str, Any]) -> bool:
    """Whether any option is more than a constant."""
    return any(isinstance(value, (Schedule, RowTemperature, LearnedTemperature)) for value in options.values())


def constants(options: Mapping[str, Any], epoch: float = 0.0) -> dict[str, Any]:
    """The options as plain values of one moment, a temperature of rows as 1: what a loss can be tried with."""
    now = options_at(options, epoch)
    found = (RowTemperature, LearnedTemperature)
    return {name: 1.0 if isinstance(value, found) else value for name, value in now.items()}


def mixing_temperature(options: Mapping[str, Any], default: float) -> float | torch.Tensor:
    """The temperature at which several teachers are mixed for a loss with such options, by default `default`.

    1 for standardised logits, which have no scale of their own, and where each row's temperature is found from the
    mixture itself.
    """
    temperature = options.get(TEMPERATURE, default)
    if isinstance(temperature, RowTemperature) or options.get("standardized"):
        return 1.0
    return temperature.detach() if isinstance(temperature, torch.Tensor) else float(temperature)


def distance(loss: Any, student: torch.Tensor, teacher: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    """`loss` with such options, `(rows,)`; with temperatures of rows each row is `T_i^2 loss(z / T_i)` at T = 1.

    A temperature that is a tensor is one that learns: `forward_kl` with a gradient in it.
    """
    temperature = options.get(TEMPERATURE)
    if isinstance(temperature, torch.Tensor):
        logs = [(widened(side) / temperature).log_softmax(-1) for side in (teacher.detach(), student)]
        return temperature.square() * kl(logs[0], logs[1])
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
    temperature = options.get(TEMPERATURE)
    if isinstance(temperature, LearnedTemperature) and (loss is not forward_kl or options.get("standardized")):
        raise HfDistillError(
            f"{what} with such options has no gradient in its temperature; expected forward_kl, not standardised, or a "
            "number, a schedule or TeacherEntropy."
        )
    if not isinstance(temperature, RowTemperature):
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
