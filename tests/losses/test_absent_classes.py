"""Classes whose logits are -inf: padding that neither head means anything by, and tokens that a teacher lacks."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from hfdistill.losses import LOSSES

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bernoulli_kl", {}),
    ("decoupled_kl", {}),
    ("dist", {}),
    ("dist", {"gamma": 0.0}),
    ("forward_kl", {}),
    ("forward_kl", {"standardized": True}),
    ("hard_label", {}),
    ("jensen_shannon", {}),
    ("jensen_shannon", {"beta": 0.0}),
    ("jensen_shannon", {"beta": 1.0}),
    ("logit_mse", {}),
    ("logit_mse", {"standardized": True}),
    ("normalized_kd", {}),
    ("reverse_kl", {}),
    ("reverse_kl", {"standardized": True}),
    ("skew_kl", {}),
    ("skew_kl", {"reverse": True}),
    ("skew_kl", {"skew": 0.0}),
]
# The student gives these a probability and the teacher none, which they call infinitely far.
INFINITE = [
    ("jensen_shannon", {"beta": 1.0}),
    ("logit_mse", {}),
    ("logit_mse", {"standardized": True}),
    ("reverse_kl", {}),
    ("reverse_kl", {"standardized": True}),
]
ROWS, CLASSES = 5, 6


def value(name: str, student: torch.Tensor, teacher: torch.Tensor, **options: Any) -> torch.Tensor:
    """The loss of one value a row, its labels among the first four classes."""
    if "labels" in inspect.signature(LOSSES[name]).parameters:
        options["labels"] = torch.arange(ROWS) % 4
    return LOSSES[name](student, teacher, **options)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, ROWS, CLASSES, dtype=torch.float64, generator=generator)
    return student.requires_grad_(), teacher


def without(logits: torch.Tensor, *classes: int) -> torch.Tensor:
    return logits.index_fill(1, torch.tensor(classes), -torch.inf)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_class_that_neither_has_is_not_there(name: str, options: dict[str, Any]) -> None:
    student, teacher = pair()
    absent = value(name, without(student, 4, 5), without(teacher, 4, 5), **options)
    left_out = value(name, student[:, :4], teacher[:, :4], **options)
    torch.testing.assert_close(absent, left_out)
    (gradient,) = torch.autograd.grad(absent.sum(), student)
    (expected,) = torch.autograd.grad(left_out.sum(), student)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[:, 4:].any()


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case not in INFINITE])
def test_a_class_that_the_teacher_lacks_is_finite(name: str, options: dict[str, Any]) -> None:
    student, teacher = pair()
    values = value(name, student, without(teacher, 1, 5), **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("name", "options"), INFINITE)
def test_what_is_infinite_for_a_class_that_the_teacher_lacks(name: str, options: dict[str, Any]) -> None:
    student, teacher = pair()
    assert value(name, student, without(teacher, 5), **options).isinf().all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_an_absent_label_leaves_finite_gradients(name: str, options: dict[str, Any]) -> None:
    student, teacher = pair()
    values = value(name, without(student, 0, 5), without(teacher, 0, 5), **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
