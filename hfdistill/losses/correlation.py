"""Losses on the correlation of predictions rather than on their exact values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softmax

from hfdistill.losses._checks import require_one_weight, require_rows, require_weights
from hfdistill.losses._softmax import scaled_pair
from hfdistill.losses._vectors import correlation


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    standardized: bool = False,
) -> Tensor:
    """DIST: one minus the correlation of the classes in a row, and of the rows in a class.

    T^2 (beta inter_i + gamma intra), Y = softmax(z / T); inter_i = 1 - Pearson over classes of row i;
    intra = 1 - mean over classes of Pearson over rows. Every row carries the same share of intra, so the mean over rows
    is the published loss. A row or class without variation counts as correlation 0, without gradient. A correlation
    ignores scale, so the published T^2 makes the gradient grow with T: lower the weight when you raise T. A class whose
    logits are -inf on both sides is left out.
    Shapes (rows, classes), (rows, classes) -> (rows,); no unit, at most 2 T^2 (beta + gamma).
    Domain: 3 classes or more; 3 rows or more unless gamma is 0; beta and gamma >= 0 and not both 0; T > 0. With
    `standardized`, z is `standardize(z)`.
    Errors: ValueError for unequal shapes, too few classes or rows, options out of range; TypeError for integer logits.
    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536, section 4.
    """
    require_weights(beta=beta, gamma=gamma)
    require_one_weight(beta=beta, gamma=gamma)
    student, teacher = scaled_pair("dist", student, teacher, temperature, standardized)
    prob_s, prob_t = softmax(student, -1), softmax(teacher, -1)
    present = (student > -torch.inf) | (teacher > -torch.inf)
    rows = beta * (1 - correlation(prob_s, prob_t, -1, present))
    if gamma > 0:
        require_rows("dist with its intra-class part (gamma above 0)", student.shape[0], least=3)
        # A class that nobody has does not vary, so it adds nothing to the sum.
        rows = rows + gamma * (1 - correlation(prob_s, prob_t, 0).sum() / present.any(0).sum())
    return temperature**2 * rows
