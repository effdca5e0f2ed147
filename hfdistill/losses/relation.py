"""Losses on how a model relates the examples of a batch to each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss

from hfdistill.losses._checks import require_positive, require_rows
from hfdistill.losses._distances import centred_products, distances
from hfdistill.losses._features import example_pair
from hfdistill.losses._softmax import kl
from hfdistill.losses._vectors import products, unit


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD's distance part: difference of all pairwise distances, each relative to their mean.

    mean over j of smooth_l1(d_s(i, j) / mu_s - d_t(i, j) / mu_t), d Euclidean, mu the mean of the distances above 0;
    the mean over rows is the published mean over all pairs.
    Shapes (rows, width) or (rows, positions, width), flattened; widths may differ -> (rows,); no unit.
    Domain: 3 rows or more (the only distance of two rows is its own mean). Rows that coincide within rounding have
    distance 0.
    Errors: ValueError for shapes that do not fit or too few rows; TypeError for integer features.
    Source: Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, section 3.2.1.
    """
    student, teacher = example_pair("relational_distance", student, teacher, least=3)
    return smooth_l1_loss(_relative_distances(student), _relative_distances(teacher), reduction="none").mean(1)


def _relative_distances(features: Tensor) -> Tensor:
    distance, inverse = distances(centred_products(features))
    total = distance.sum()
    return distance * (inverse > 0).sum() / torch.where(total > 0, total, 1.0)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the similarities between the rows.

    1/rows sum over j of (G_s - G_t)^2_ij, G = F F^T with its rows divided by their Euclidean length; the mean over rows
    is the published Frobenius norm squared / rows^2.
    Shapes (rows, width) or (rows, positions, width), flattened; widths may differ -> (rows,); no unit.
    Domain: 2 rows or more; finite features.
    Errors: ValueError for shapes that do not fit or too few rows; TypeError for integer features.
    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682, section 3.
    """
    student, teacher = example_pair("similarity_preserving", student, teacher, least=2)
    return (unit(products(student, student)) - unit(products(teacher, teacher))).square().mean(1)


def probabilistic_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the probabilities with which a row would choose each row as its neighbour (PKT).

    1/rows sum over j of p_t(j | i) log(p_t(j | i) / p_s(j | i)), p = k / sum_j k, k = (cosine(i, j) + 1) / 2; k is at
    least 1e-7, so that opposite rows stay finite. The mean over rows is the published mean over all pairs.
    Shapes (rows, width) or (rows, positions, width), flattened; widths may differ -> (rows,); nats / rows.
    Domain: 2 rows or more; finite features.
    Errors: ValueError for shapes that do not fit or too few rows; TypeError for integer features.
    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv 1803.10837,
    section 3.
    """
    student, teacher = example_pair("probabilistic_transfer", student, teacher, least=2)
    return kl(_log_neighbours(teacher), _log_neighbours(student)) / len(student)


def _log_neighbours(features: Tensor) -> Tensor:
    direction = unit(features)
    kernel = ((products(direction, direction) + 1) / 2).clamp(min=1e-7)
    return (kernel / kernel.sum(1, keepdim=True)).log()


def contrastive(student: Tensor, teacher: Tensor, *, temperature: float = 0.07) -> Tensor:
    """InfoNCE: each student row must recognise the teacher's view of its own example among all the others.

    -log softmax_j(cosine(f_s_i, f_t_j) / T) at j = i. Not zero at student = teacher, and without T^2.
    `teacher` may have more rows than `student`: those behind (other processes, a queue) are negatives only.
    Shapes: student (rows, width), teacher (rows or more, width) -> (rows,); nats.
    Domain: 2 teacher rows or more, T > 0; finite features; a student of another width is projected first.
    Errors: ValueError for shapes that do not fit, too few rows or T <= 0; TypeError for integer features.
    Source: Tian et al., "Contrastive Representation Distillation", arXiv 1910.10699, section 3.1, with in-batch
    negatives in the place of its memory bank.
    """
    require_positive("temperature", temperature)
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[1] != teacher.shape[1] or len(teacher) < len(student):
        raise ValueError(
            f"contrastive got student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)}, "
            "expected (rows, width) and (rows or more, width); project the student to the teacher's width."
        )
    require_rows("contrastive", len(teacher), least=2)
    own = len(student)
    student, _ = example_pair("contrastive", student, teacher[:own], least=0)
    _, teacher = example_pair("contrastive", teacher, teacher, least=2)
    return cross_entropy(
        products(unit(student), unit(teacher)) / temperature,
        torch.arange(own, device=student.device),
        reduction="none",
    )
