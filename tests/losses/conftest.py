"""How the contract battery feeds each loss: what a row is, and which inputs it needs beside student and teacher."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hfdistill.losses import LOSSES

ROWS = 5
WIDTH = 6


@dataclass(frozen=True)
class Case:
    """A loss of the battery; logits of shape (rows, width) unless the table below says otherwise."""

    name: str
    shape: tuple[int, ...] = (WIDTH,)
    options: tuple[tuple[str, object], ...] = ()
    distributions: bool = False

    @property
    def function(self) -> Callable[..., Tensor]:
        return LOSSES[self.name]

    @property
    def parameters(self) -> set[str]:
        return set(inspect.signature(self.function).parameters)

    def pair(self, dtype: torch.dtype = torch.float64, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(7)
        student, teacher = torch.randn(2, rows, *self.shape, dtype=torch.float64, generator=generator)
        if self.distributions:
            student, teacher = student.softmax(-1), teacher.softmax(-1)
        return student.to(dtype).requires_grad_(), teacher.to(dtype)

    def __call__(self, student: Tensor, teacher: Tensor, **options: object) -> Tensor:
        if "labels" in self.parameters:
            options["labels"] = torch.arange(len(student), device=student.device) % self.shape[-1]
        if "indices" in self.parameters:
            probabilities = (
                teacher.to(torch.promote_types(teacher.dtype, torch.float32)) / options.get("temperature", 1.0)
            ).softmax(-1)
            teacher, options["indices"] = probabilities.topk(4)
        return self.function(student, teacher, **dict(self.options), **options)


SPECIAL = {
    case.name: case
    for case in (
        Case("attention_map_kl", (2, 4, 4), distributions=True),
        Case("attention_relation", (4, WIDTH), (("relation_heads", 2),)),
        Case("attention_score_mse", (2, 4, 4)),
        Case("attention_transfer", (4, WIDTH)),
        Case("channel_wise_kl", (4, WIDTH)),
        Case("cosine_distance", (3, WIDTH)),
        Case("hint", (3, WIDTH)),
        Case("pkd", (3, WIDTH)),
    )
}


@pytest.fixture(params=sorted(LOSSES))
def case(request: pytest.FixtureRequest) -> Case:
    return SPECIAL.get(request.param, Case(request.param))
