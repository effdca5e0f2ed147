"""Log-probabilities and divergences that stay finite where a probability is exactly zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from hfdistill.losses._checks import logit_pair, require_positive
from hfdistill.losses.standardization import standardize

# Low enough to be probability 0. Where both sides are -inf, logaddexp has a NaN gradient: one finite side is enough.
_LOWEST_LOG_PROBABILITY = -1e30


def scaled_pair(
    loss: str, student: Tensor, teacher: Tensor, temperature: float, standardized: bool
) -> tuple[Tensor, Tensor]:
    """Student and teacher logits divided by the temperature, checked, teacher detached, float32 or wider."""
    require_positive("temperature", temperature)
    student, teacher = logit_pair(loss, student, teacher)
    if standardized:
        student, teacher = standardize(student), standardize(teacher)
    return student / temperature, teacher / temperature


def log_probability_pair(
    loss: str, student: Tensor, teacher: Tensor, temperature: float, standardized: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities log softmax(z / T) of student and teacher, checked, teacher detached."""
    student, teacher = scaled_pair(loss, student, teacher, temperature, standardized)
    return log_softmax(student, -1), log_softmax(teacher, -1)


def kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The terms p (log p - log q) of KL(p || q), 0 where p is 0."""
    p = log_p.exp()
    # The difference is masked, not the product: 0 * (-inf) would be NaN in the value or in the gradient.
    return p * torch.where(p > 0, log_p - log_q, 0.0)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension, in nats."""
    return kl_terms(log_p, log_q).sum(-1)


def log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log(weight a + (1 - weight) b) for a weight strictly between 0 and 1."""
    finite_a = log_a.clamp(min=_LOWEST_LOG_PROBABILITY)
    return torch.logaddexp(finite_a + math.log(weight), log_b + math.log1p(-weight))
