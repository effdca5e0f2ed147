"""Response losses against torch, scipy and their own identities."""

from __future__ import annotations

from math import exp, log

import pytest
import scipy.stats
import torch
from torch.nn.functional import binary_cross_entropy, cross_entropy, kl_div, log_softmax, softmax

from hfdistill.losses import (
    LOSSES,
    decoupled_kl,
    dist,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    standardize,
    top_k_kl,
)

F64 = torch.float64


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 6, 9, dtype=F64, generator=generator) * 3


def test_forward_and_reverse_kl_agree_with_torch(logits):
    log_s, log_t = log_softmax(logits / 2.5, -1)
    forward = kl_div(log_s, log_t, log_target=True, reduction="batchmean") * 2.5**2
    reverse = kl_div(log_t, log_s, log_target=True, reduction="batchmean") * 2.5**2
    torch.testing.assert_close(forward_kl(*logits, temperature=2.5).mean(), forward, rtol=1e-10, atol=0)
    torch.testing.assert_close(reverse_kl(*logits, temperature=2.5).mean(), reverse, rtol=1e-10, atol=0)


def test_forward_kl_gradient_is_difference_of_probabilities(logits):
    student = logits[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forward_kl(student, logits[1], temperature=4.0).sum(), student)
    torch.testing.assert_close(gradient, 4 * (softmax(student / 4, -1) - softmax(logits[1] / 4, -1)))


def test_forward_kl_is_soft_cross_entropy_less_entropy(logits):
    student, teacher = logits
    soft = cross_entropy(student, softmax(teacher, -1), reduction="none")
    entropy = torch.from_numpy(scipy.stats.entropy(softmax(teacher, -1).numpy(), axis=-1))
    torch.testing.assert_close(forward_kl(student, teacher, temperature=1.0), soft - entropy)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jensen_shannon_agrees_with_scipy(logits, beta):
    student, teacher = softmax(logits / 3, -1).numpy()
    mixture = beta * teacher + (1 - beta) * student
    entropy = scipy.stats.entropy
    expected = 9 * (beta * entropy(teacher, mixture, axis=-1) + (1 - beta) * entropy(student, mixture, axis=-1))
    value = jensen_shannon(*logits, beta=beta, temperature=3.0)
    torch.testing.assert_close(value, torch.from_numpy(expected), rtol=1e-9, atol=0)


def test_jensen_shannon_tends_to_forward_and_reverse_kl(logits):
    near = 1e-7
    torch.testing.assert_close(
        jensen_shannon(*logits, beta=near) / near, forward_kl(*logits, temperature=1.0), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(jensen_shannon(*logits, beta=1 - near) / near, reverse_kl(*logits), rtol=1e-4, atol=0)
    exact = {"temperature": 2.0}
    torch.testing.assert_close(jensen_shannon(*logits, beta=0.0, **exact), forward_kl(*logits, **exact))
    torch.testing.assert_close(jensen_shannon(*logits, beta=1.0, **exact), reverse_kl(*logits, **exact))


def test_jensen_shannon_and_skew_kl_keep_their_bounds(logits):
    assert jensen_shannon(100 * logits[0], 100 * logits[1]).max() <= log(2) + 1e-12
    for reverse in (False, True):
        assert skew_kl(100 * logits[0], 100 * logits[1], skew=0.1, reverse=reverse).max() <= -log(0.1) + 1e-12


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_kl_is_target_part_plus_weighted_non_target_part(logits, temperature, scale):
    student, teacher = logits * scale
    labels = torch.tensor([0, 8, 3, 3, 5, 1])
    options = {"labels": labels, "temperature": temperature}
    target = decoupled_kl(student, teacher, alpha=1.0, beta=0.0, **options)
    non_target = decoupled_kl(student, teacher, alpha=0.0, beta=1.0, **options)
    teacher_at_label = softmax(teacher / temperature, -1).gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(
        forward_kl(student, teacher, temperature=temperature),
        target + (1 - teacher_at_label) * non_target,
        rtol=1e-10,
        atol=1e-12,
    )


def test_decoupled_kl_keeps_the_dark_knowledge_of_a_sure_teacher():
    # 1 - softmax is 0 in float32 here; the classes beside the label still differ by log 2.
    teacher = torch.tensor([[60.0, log(2), 0.0]])
    value = decoupled_kl(torch.zeros(1, 3), teacher, labels=torch.tensor([0]), alpha=0.0, beta=1.0, temperature=1.0)
    assert value.item() == pytest.approx(2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3), rel=1e-5)


def test_bernoulli_kl_agrees_with_torch(logits):
    student, teacher = torch.sigmoid(logits)
    cross = binary_cross_entropy(student, teacher, reduction="none").sum(-1)
    entropy = binary_cross_entropy(teacher, teacher, reduction="none").sum(-1)
    torch.testing.assert_close(LOSSES["bernoulli_kl"](*logits), cross - entropy)


def test_mean_of_dist_agrees_with_scipy(logits):
    student, teacher = softmax(logits / 2, -1).numpy()
    inter = 1 - scipy.stats.pearsonr(student, teacher, axis=1).statistic
    intra = 1 - scipy.stats.pearsonr(student, teacher, axis=0).statistic.mean()
    value = dist(*logits, beta=2.0, gamma=3.0, temperature=2.0)
    torch.testing.assert_close(value, torch.from_numpy(4 * (2 * inter + 3 * intra)), rtol=1e-10, atol=0)


def test_standardize_agrees_with_scipy_and_its_published_epsilon(logits):
    torch.testing.assert_close(standardize(logits[0]), torch.from_numpy(scipy.stats.zscore(logits[0], axis=1, ddof=1)))
    step = torch.tensor([[0.0, 1e-7, 2e-7]], dtype=F64)  # spread 1e-7, so the 1e-7 in the divisor halves the result
    torch.testing.assert_close(standardize(step), torch.tensor([[-0.5, 0.0, 0.5]], dtype=F64))


def test_top_k_of_all_classes_is_forward_kl(logits):
    student, teacher = logits
    probabilities, indices = softmax(teacher, -1).topk(9)
    value = top_k_kl(student, probabilities, indices=indices)
    torch.testing.assert_close(value, forward_kl(student, teacher, temperature=1.0))


def test_top_k_never_exceeds_forward_kl_and_grows_with_k(logits):
    student, teacher = logits
    previous = torch.zeros(6, dtype=F64)
    for k in range(1, 10):
        probabilities, indices = softmax(teacher, -1).topk(k)
        value = top_k_kl(student, probabilities, indices=indices)
        assert (value >= previous - 1e-12).all()
        previous = value
    assert (previous <= forward_kl(student, teacher, temperature=1.0) + 1e-12).all()


def test_top_k_short_rows_are_filled_up_with_probability_zero(logits):
    student = logits[0][:1].clone().requires_grad_()
    short = top_k_kl(student, torch.tensor([[0.5, 0.2]], dtype=F64), indices=torch.tensor([[3, 1]]))
    padded = torch.tensor([[0.5, 0.2, 0.0, 0.0]], dtype=F64)
    filled = top_k_kl(student, padded, indices=torch.tensor([[3, 1, 3, 3]], dtype=torch.int16))
    torch.testing.assert_close(filled, short)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in (short, filled)]
    torch.testing.assert_close(*gradients)


def test_top_k_masses_rounded_above_one_are_scaled_to_one():
    teacher = torch.tensor([[0.7, 0.31]], dtype=torch.float16)
    student = torch.tensor([[log(0.7 / 1.01), log(0.31 / 1.01), -50.0]])
    assert top_k_kl(student, teacher, indices=torch.tensor([[0, 1]])).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "bernoulli_kl"])
def test_a_class_that_is_impossible_for_both_adds_nothing(logits, name):
    impossible = torch.full((6, 1), -1e5, dtype=F64)
    longer = [torch.cat([side, impossible], -1) for side in logits]
    torch.testing.assert_close(LOSSES[name](*longer), LOSSES[name](*logits))


LACKING = [
    "bernoulli_kl",
    "decoupled_kl",
    "dist",
    "forward_kl",
    "hard_label",
    "jensen_shannon",
    "normalized_kd",
    "skew_kl",
]


@pytest.mark.parametrize("student_lacks_it_too", [False, True])
@pytest.mark.parametrize(
    ("name", "standardized"),
    [(name, False) for name in LACKING]
    + [(name, True) for name in LACKING if name not in ("bernoulli_kl", "hard_label")],
)
def test_class_that_the_teacher_lacks(logits, name, student_lacks_it_too, standardized):
    student, teacher = logits.float().clone()
    teacher[:, 4] = -torch.inf
    if student_lacks_it_too:
        student[:, 4] = -torch.inf
    options = {"labels": torch.arange(6) % 4} if name in ("decoupled_kl", "normalized_kd") else {}
    if standardized:
        options["standardized"] = True
    student.requires_grad_()
    value = LOSSES[name](student, teacher, **options)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    if name in ("forward_kl", "decoupled_kl", "jensen_shannon") and student_lacks_it_too:
        kept = [0, 1, 2, 3, 5, 6, 7, 8]
        fewer = LOSSES[name](student[:, kept], teacher[:, kept], **options)
        torch.testing.assert_close(value, fewer, rtol=1e-5, atol=1e-6)


def test_reverse_kl_says_infinity_where_the_teacher_allows_nothing(logits):
    student, teacher = logits.clone()
    teacher[0, 4] = -torch.inf
    value = reverse_kl(student, teacher)
    assert value.isinf().tolist() == [True, False, False, False, False, False]
    assert skew_kl(student, teacher, reverse=True).isfinite().all()


def test_dist_ignores_a_student_without_any_opinion():
    student = torch.zeros(4, 1000, requires_grad=True)
    value = dist(student, torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.tolist() == [2.0] * 4
    assert gradient.abs().max() == 0


def test_standardized_logits_of_a_zero_head_have_a_finite_gradient():
    student = torch.zeros(2, 5, requires_grad=True)
    value = forward_kl(student, torch.eye(2, 5), standardized=True)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_student_without_mass_at_the_label_pays_by_its_logit():
    value = decoupled_kl(
        torch.tensor([[-200.0, 0.0, 0.0]]), torch.zeros(1, 3), labels=torch.tensor([0]), temperature=1.0, beta=0.0
    )
    expected = 1 / 3 * (log(1 / 3) + log(2 + exp(-200)) + 200) + 2 / 3 * log(2 / 3)
    assert value.item() == pytest.approx(expected, rel=1e-5)
