"""Gradients that turn round: what lets one optimizer train two sides against each other."""

from __future__ import annotations

from typing import Any

import torch


def with_reversed_gradient(value: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """The same value, whose gradient is multiplied by `-strength` on its way back.

    Any shape -> the same shape. Whatever lies behind the value goes down the loss, whatever lies before it goes up.
    Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", arXiv 1409.7495, section 3.1.
    """
    reversed_gradient: torch.Tensor = _Reversal.apply(value, strength)  # type: ignore[no-untyped-call]
    return reversed_gradient


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.strength * gradient, None
