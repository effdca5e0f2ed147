"""Losses on the raw logits, or on the single class the teacher would choose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hfdistill.losses._checks import logit_pair
from hfdistill.losses.standardization import standardize


def logit_mse(student: Tensor, teacher: Tensor, *, standardized: bool = False) -> Tensor:
    """Mean squared difference of the logits, which also fits regression heads (one output).

    mean_c (z_s - z_t)^2; a mean over classes, so its size does not grow with their number.
    Shapes (rows, classes), (rows, classes) -> (rows,); squared logits.
    Domain: 1 class or more; a class that is -inf on both sides is left out, one that is -inf on one side is infinitely
    far. With `standardized`, z is `standardize(z)`, for 3 classes or more.
    Errors: ValueError for unequal shapes or too few classes; TypeError for integer logits.
    Source: Ba and Caruana, arXiv 1312.6184, section 2.3; Kim et al., arXiv 2105.08919, section 3.
    """
    student, teacher = logit_pair("logit_mse", student, teacher)
    if standardized:
        student, teacher = standardize(student), standardize(teacher)
    absent = (student == -torch.inf) & (teacher == -torch.inf)
    squared = torch.where(absent, 0.0, student - teacher).square()
    return squared.sum(-1) / (~absent).sum(-1).clamp(min=1)


def hard_label(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of the student with the class the teacher finds most likely.

    -log softmax(z_s)_k, k = argmax_c z_t. Not zero at student = teacher.
    Shapes (rows, classes), (rows, classes) -> (rows,); nats.
    Domain: 2 classes or more.
    Errors: ValueError for unequal shapes or one class; TypeError for integer logits.
    Source: Touvron et al., "DeiT", arXiv 2012.12877, section 4.
    """
    student, teacher = logit_pair("hard_label", student, teacher)
    return cross_entropy(student, teacher.argmax(-1), reduction="none")
