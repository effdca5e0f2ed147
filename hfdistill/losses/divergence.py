"""Divergences between the class distributions of student and teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from hfdistill.losses._checks import logit_pair, require_positive
from hfdistill.losses._softmax import kl, kl_terms, log_mixture, log_probability_pair


def forward_kl(student: Tensor, teacher: Tensor, *, temperature: float = 2.0, standardized: bool = False) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher (Hinton's distillation).

    T^2 KL(p_t || p_s) = T^2 sum_c p_t (log p_t - log p_s), p = softmax(z / T).
    Shapes (rows, classes), (rows, classes) -> (rows,); nats.
    Domain: 2 classes or more, T > 0; teacher logits of -inf count as probability 0. With `standardized`, z is
    `standardize(z)`, for 3 classes or more.
    Errors: ValueError for unequal shapes, too few classes or T <= 0; TypeError for integer logits.
    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    log_s, log_t = log_probability_pair("forward_kl", student, teacher, temperature, standardized)
    return temperature**2 * kl(log_t, log_s)


def reverse_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, standardized: bool = False) -> Tensor:
    """Kullback-Leibler divergence of the teacher from the student, which prefers one mode to all of them.

    T^2 KL(p_s || p_t) = T^2 sum_c p_s (log p_s - log p_t), p = softmax(z / T).
    Shapes (rows, classes), (rows, classes) -> (rows,); nats.
    Domain: 2 classes or more, T > 0. Infinite where the teacher's logit is -inf and the student's is not: use
    `skew_kl(reverse=True)` there. With `standardized`, z is `standardize(z)`, for 3 classes or more.
    Errors: ValueError for unequal shapes, too few classes or T <= 0; TypeError for integer logits.
    Source: Gu et al., "MiniLLM", arXiv 2306.08543, section 2.1.
    """
    log_s, log_t = log_probability_pair("reverse_kl", student, teacher, temperature, standardized)
    return temperature**2 * kl(log_s, log_t)


def jensen_shannon(
    student: Tensor, teacher: Tensor, *, beta: float = 0.5, temperature: float = 1.0, standardized: bool = False
) -> Tensor:
    """Generalised Jensen-Shannon divergence, between forward KL (beta 0) and reverse KL (beta 1).

    T^2 [beta KL(p_t || m) + (1 - beta) KL(p_s || m)], m = beta p_t + (1 - beta) p_s, p = softmax(z / T).
    At exactly 0 and 1, where the formula vanishes, it is defined as forward and reverse KL: the limits of
    value / beta and value / (1 - beta). Near the ends the value therefore shrinks in proportion.
    Shapes (rows, classes), (rows, classes) -> (rows,); nats, at most T^2 log 2 for 0 < beta < 1.
    Domain: 2 classes or more, 0 <= beta <= 1, T > 0. With `standardized`, z is `standardize(z)`, for 3 or more.
    Errors: ValueError for unequal shapes, too few classes, beta or T out of range; TypeError for integer logits.
    Source: Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv 2306.13649, section 2.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta got {beta}, expected 0 (forward KL) to 1 (reverse KL); 0.5 weighs both sides alike.")
    log_s, log_t = log_probability_pair("jensen_shannon", student, teacher, temperature, standardized)
    if beta == 0:
        return temperature**2 * kl(log_t, log_s)
    if beta == 1:
        return temperature**2 * kl(log_s, log_t)
    log_m = log_mixture(log_t, log_s, beta)
    return temperature**2 * (beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m))


def skew_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    skew: float = 0.1,
    reverse: bool = False,
    temperature: float = 1.0,
    standardized: bool = False,
) -> Tensor:
    """Kullback-Leibler divergence to a mixture that keeps a share of its first argument, so it stays bounded.

    Forward: T^2 KL(p_t || skew p_t + (1 - skew) p_s); reverse: T^2 KL(p_s || skew p_s + (1 - skew) p_t);
    p = softmax(z / T). A skew of 0 is plain forward or reverse KL.
    Shapes (rows, classes), (rows, classes) -> (rows,); nats, at most -T^2 log skew.
    Domain: 2 classes or more, 0 <= skew < 1, T > 0. With `standardized`, z is `standardize(z)`, for 3 or more.
    Errors: ValueError for unequal shapes, too few classes, skew or T out of range; TypeError for integer logits.
    Source: Ko et al., "DistiLLM", arXiv 2402.03898, section 3.1.
    """
    if not 0 <= skew < 1:
        raise ValueError(f"skew got {skew}, expected 0 to below 1 (at 1 the loss is identically zero); 0.1 is usual.")
    log_s, log_t = log_probability_pair("skew_kl", student, teacher, temperature, standardized)
    log_first, log_second = (log_s, log_t) if reverse else (log_t, log_s)
    if skew > 0:
        log_second = log_mixture(log_first, log_second, skew)
    return temperature**2 * kl(log_first, log_second)


def bernoulli_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence for heads with a sigmoid a class (multi-label, binary), summed over classes.

    T^2 sum_c [q_t log(q_t / q_s) + (1 - q_t) log((1 - q_t) / (1 - q_s))], q = sigmoid(z / T).
    Shapes (rows, classes), (rows, classes) -> (rows,); nats.
    Domain: 1 class or more, T > 0; teacher logits of -inf count as probability 0.
    Errors: ValueError for unequal shapes or T <= 0; TypeError for integer logits.
    Source: the KL divergence of independent Bernoulli variables; no single paper.
    """
    require_positive("temperature", temperature)
    student, teacher = logit_pair("bernoulli_kl", student, teacher)
    student, teacher = student / temperature, teacher / temperature
    on = kl_terms(logsigmoid(teacher), logsigmoid(student))
    off = kl_terms(logsigmoid(-teacher), logsigmoid(-student))
    return temperature**2 * (on + off).sum(-1)
