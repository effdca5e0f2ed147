"""Losses that treat the label's class and the other classes apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from hfdistill.losses._checks import require_labels, require_one_weight, require_positive, require_weights
from hfdistill.losses._softmax import kl, scaled_pair


def _without_label(scaled: Tensor, index: Tensor) -> Tensor:
    """The scaled logits with the label's one at -inf, so that a softmax runs over the other classes only."""
    return scaled.scatter(-1, index, -torch.inf)


def _log_label_or_not(scaled: Tensor, others: Tensor, index: Tensor) -> Tensor:
    """log [q_y, 1 - q_y]; the second by logsumexp of the others, because 1 - softmax rounds to 0."""
    return log_softmax(torch.cat([scaled.gather(-1, index), others.logsumexp(-1, keepdim=True)], -1), -1)


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardized: bool = False,
) -> Tensor:
    """Decoupled distillation (DKD): KL on "the label or not", and KL among the classes beside the label.

    T^2 (alpha TCKD + beta NCKD); TCKD = KL([q_y, 1 - q_y]_t || [q_y, 1 - q_y]_s), q = softmax(z / T);
    NCKD = KL(softmax over c != y of z_t / T || the same of z_s / T).
    It holds KL(p_t || p_s) = TCKD + (1 - q_y of the teacher) NCKD.
    Shapes (rows, classes), (rows, classes), labels (rows,) -> (rows,); nats.
    Domain: 3 classes or more, alpha and beta >= 0 and not both 0, T > 0. With `standardized`, z is `standardize(z)`.
    Errors: ValueError for unequal shapes, too few classes or options out of range; TypeError for integer logits or for
    labels that are absent or not integers. A label outside the classes makes the device's index operation fail.
    Source: Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679, section 3. Its warm-up is not part of it.
    """
    require_weights(alpha=alpha, beta=beta)
    require_one_weight(alpha=alpha, beta=beta)
    student, teacher = scaled_pair("decoupled_kl", student, teacher, temperature, standardized)
    require_labels(labels, student.shape[0])
    index = labels.long().unsqueeze(-1)
    others_s, others_t = _without_label(student, index), _without_label(teacher, index)
    target = kl(_log_label_or_not(teacher, others_t, index), _log_label_or_not(student, others_s, index))
    non_target = kl(log_softmax(others_t, -1), log_softmax(others_s, -1))
    return temperature**2 * (alpha * target + beta * non_target)


def normalized_kd(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
    standardized: bool = False,
) -> Tensor:
    """Normalised distillation (NKD): soft cross-entropy at the label, and among the classes beside it.

    -q_t log q_s at the label with q = softmax(z), and -gamma T^2 sum_{c != y} h_t log h_s with
    h = softmax over c != y of z / T. A cross-entropy, so not zero at student = teacher. The paper adds CE with the
    label to it: here that is the task loss.
    Shapes (rows, classes), (rows, classes), labels (rows,) -> (rows,); nats.
    Domain: 3 classes or more, gamma >= 0, T > 0. With `standardized`, z is `standardize(z)`.
    Errors: ValueError for unequal shapes, too few classes or options out of range; TypeError for integer logits or for
    labels that are absent or not integers. A label outside the classes makes the device's index operation fail.
    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", arXiv 2303.13005, section 3.2.
    """
    require_weights(gamma=gamma)
    require_positive("temperature", temperature)
    student, teacher = scaled_pair("normalized_kd", student, teacher, 1.0, standardized)
    require_labels(labels, student.shape[0])
    index = labels.long().unsqueeze(-1)
    q_t = log_softmax(teacher, -1).gather(-1, index).squeeze(-1).exp()
    log_q_s = log_softmax(student, -1).gather(-1, index).squeeze(-1)
    log_h_s = log_softmax(_without_label(student / temperature, index), -1)
    h_t = log_softmax(_without_label(teacher / temperature, index), -1).exp()
    # The label's own entry is 0 * -inf; a class the teacher lacks may be the same, and be the label.
    non_target = (h_t * torch.where(h_t > 0, log_h_s, 0.0)).sum(-1)
    return -q_t * torch.where(q_t > 0, log_q_s, 0.0) - gamma * temperature**2 * non_target
