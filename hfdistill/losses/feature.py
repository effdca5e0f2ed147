"""Losses on what the models see: hidden states of tokens, or feature maps."""

from __future__ import annotations

from math import sqrt

from torch import Tensor
from torch.nn.functional import log_softmax

from hfdistill.losses._checks import require_positive
from hfdistill.losses._features import feature_pair, map_pair
from hfdistill.losses._softmax import kl
from hfdistill.losses._vectors import centred_unit, unit


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the features.

    mean over all entries of a row of (f_s - f_t)^2.
    Shapes (rows, width) or (rows, positions, width), equal on both sides -> (rows,); squared features.
    Domain: finite features; a student of another width is projected first.
    Errors: ValueError for shapes that do not fit; TypeError for integer features.
    Source: Romero et al., "FitNets", arXiv 1412.6550, section 2.2.
    """
    student, teacher = feature_pair("hint", student, teacher)
    return (student - teacher).square().flatten(1).mean(1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of the angle between the features.

    1 - f_s . f_t / (|f_s| |f_t|), mean over positions; 1, without gradient, for a zero vector.
    Shapes (rows, width) or (rows, positions, width), equal on both sides -> (rows,); no unit, 0 to 2.
    Domain: finite features; a student of another width is projected first.
    Errors: ValueError for shapes that do not fit; TypeError for integer features.
    Source: Sanh et al., "DistilBERT", arXiv 1910.01108, section 3.
    """
    student, teacher = feature_pair("cosine_distance", student, teacher)
    cosine = (unit(student) * unit(teacher)).sum(-1, keepdim=True)
    return 1 - cosine.flatten(1).mean(1)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of where the features are strong, whatever their number of channels.

    mean over positions of (Q_s - Q_t)^2, Q = a / |a| over positions, a = mean over channels of f^2. One stage; a sum
    over stages is a sum of terms.
    Shapes (rows, positions, width), widths may differ -> (rows,); no unit.
    Domain: 2 positions or more, equal on both sides; finite features.
    Errors: ValueError for shapes that do not fit; TypeError for integer features.
    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, section 3.1.
    """
    student, teacher = map_pair("attention_transfer", student, teacher)
    map_s, map_t = unit(student.square().mean(-1)), unit(teacher.square().mean(-1))
    return (map_s - map_t).square().mean(-1)


def channel_wise_kl(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Kullback-Leibler divergence of where each channel is active.

    T^2 mean over channels of KL(phi_t || phi_s), phi = softmax over positions of f / T.
    Shapes (rows, positions, width), equal on both sides -> (rows,); nats.
    Domain: 2 positions or more, T > 0.
    Errors: ValueError for shapes that do not fit or T <= 0; TypeError for integer features.
    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", arXiv 2011.13256, section 3.2.
    """
    require_positive("temperature", temperature)
    student, teacher = feature_pair("channel_wise_kl", *map_pair("channel_wise_kl", student, teacher))
    log_s, log_t = (log_softmax(side.mT / temperature, -1) for side in (student, teacher))
    return temperature**2 * kl(log_t, log_s).mean(-1)


def pkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of standardised channels, which is one minus their Pearson correlation.

    mean over positions and channels of (u_s - u_t)^2 / 2; u has mean 0 and variance 1 over all rows and positions of
    each channel, so the mean over rows is 1 - Pearson. A channel without variation is 0, without gradient.
    Shapes (rows, width) or (rows, positions, width), equal on both sides -> (rows,); no unit.
    Domain: 3 rows x positions or more (two standardised values are always +-1); finite features.
    Errors: ValueError for shapes that do not fit or too few values; TypeError for integer features.
    Source: Cao et al., "PKD", arXiv 2207.02039, section 3.2.
    """
    student, teacher = feature_pair("pkd", student, teacher)
    flat_s, flat_t = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    if len(flat_s) < 3:
        raise ValueError(
            f"pkd got {len(flat_s)} value(s) a channel, expected at least 3: two standardised values are always +-1; "
            "use a larger per-device batch (and dataloader_drop_last=True for the last one), or hint."
        )
    difference = (centred_unit(flat_s, 0) - centred_unit(flat_t, 0)) * sqrt(len(flat_s))
    return difference.square().reshape(student.shape).flatten(1).mean(1) / 2
