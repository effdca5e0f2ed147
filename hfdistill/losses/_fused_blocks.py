"""What a sweep works on: blocks of logits, what is known of their rows and heads, and buffers.

A block is `(rows, classes)` in float32 or float64; a column,
`(rows, 1)`, holds one number a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST = -1e30
"""A logit of probability 0 whose products with 0 are 0, which those of -inf are not."""

IMPOSSIBLE = -1e20
"""Logits below are LOWEST, scaled perhaps."""


@dataclass(frozen=True)
class Curve:
    """What follows a head's product: logits = cap tanh(scale (x W + bias) / cap), or without the cap."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Kind:
    """A divergence T^2 D of softmax(z / T): KL(t || s), KL(s || t), or one of both sides with their mixture.

    With `mixture` c: D = teacher_part KL(t || m) + student_part KL(s || m), m = c t + (1 - c) s. Without:
    the parts are 1 and 0, and m is the other side.
    """

    temperature: float = 1.0
    mixture: float | None = None
    teacher_part: float = 1.0
    student_part: float = 0.0


@dataclass(frozen=True)
class RowBlock:
    """What is known of a block's rows: labels, a column, if any, and the columns of weights, None without gradient."""

    labels: Tensor | None = None
    smoothing: float = 0.0
    label_weight: Tensor | None = None
    divergence_weight: Tensor | None = None


@dataclass(frozen=True)
class TopKBlock:
    """A teacher of which k classes a row are kept: their indices and probabilities, `(rows, k)`."""

    indices: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Student:
    """The student's side of every block; divergences compare its first `compared` classes."""

    curve: Curve
    bias: Tensor | None
    compared: int


@dataclass(frozen=True)
class Teacher:
    """The teacher's side of every block; `picked` are its columns in the student's order, `lacking` are not there."""

    curve: Curve
    bias: Tensor | None
    picked: Tensor | None = None
    lacking: Tensor | None = None


class Scratch:
    """Buffers as large as a block, made once and reused; without a size they are made anew (for a compiler)."""

    def __init__(self, count: int, rows: int, classes: int, like: Tensor, dtype: torch.dtype) -> None:
        self.buffers = [torch.empty(rows, classes, dtype=dtype, device=like.device) for _ in range(count)]

    def __call__(self, place: int, like: Tensor) -> Tensor:
        """Buffer number `place` in the shape of `like`."""
        return self.buffers[place].flatten()[: like.numel()].view(like.shape)


class NoScratch(Scratch):
    """Buffers that are made where they are used: a compiler makes registers of them."""

    def __init__(self) -> None:
        self.buffers = []

    def __call__(self, place: int, like: Tensor) -> Tensor:
        """A new buffer."""
        return torch.empty_like(like, memory_format=torch.contiguous_format)


# Which buffer holds what.
LABEL_SOFTMAX, STUDENT_SOFTMAX, TEACHER_SOFTMAX, WORK, SLOPE, RATIO = range(6)
BUFFERS = 6


def curved(logits: Tensor, bias: Tensor | None, curve: Curve, slope: Tensor | None = None) -> None:
    """Make logits of products; with `slope`, a block, also their derivative without the scale."""
    if bias is not None:
        logits.add_(bias)
    if curve.softcap is None:
        if curve.scale != 1:
            logits.mul_(curve.scale)
        return
    logits.mul_(curve.scale / curve.softcap).tanh_()
    if slope is not None:
        torch.mul(logits, logits, out=slope)
        slope.neg_().add_(1)
    logits.mul_(curve.softcap)


def softmax_into(out: Tensor, logits: Tensor) -> Tensor:
    """Write the softmax into `out` and give the log of its normaliser, a column."""
    torch.softmax(logits, -1, out=out)
    # The most likely class has the least rounding: its probability is 1 / sum exp(z - max).
    return logits.amax(-1, keepdim=True) - out.amax(-1, keepdim=True).log_()
