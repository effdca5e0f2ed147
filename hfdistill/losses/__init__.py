"""Distances between student and teacher: pure functions (student, teacher, **options) -> one value a row."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hfdistill.losses._checks import require_classes, require_standardizable
from hfdistill.losses.angle import relational_angle
from hfdistill.losses.attention import attention_relation
from hfdistill.losses.correlation import dist
from hfdistill.losses.decoupled import decoupled_kl, normalized_kd
from hfdistill.losses.divergence import bernoulli_kl, forward_kl, jensen_shannon, reverse_kl, skew_kl
from hfdistill.losses.feature import attention_transfer, channel_wise_kl, cosine_distance, hint, pkd
from hfdistill.losses.logits import hard_label, logit_mse
from hfdistill.losses.maps import attention_map_kl, attention_score_mse
from hfdistill.losses.relation import (
    contrastive,
    probabilistic_transfer,
    relational_distance,
    similarity_preserving,
)
from hfdistill.losses.standardization import standardize
from hfdistill.losses.top_k import top_k_kl

LOSSES: dict[str, Callable[..., Tensor]] = {
    "attention_map_kl": attention_map_kl,
    "attention_relation": attention_relation,
    "attention_score_mse": attention_score_mse,
    "attention_transfer": attention_transfer,
    "bernoulli_kl": bernoulli_kl,
    "channel_wise_kl": channel_wise_kl,
    "contrastive": contrastive,
    "cosine_distance": cosine_distance,
    "decoupled_kl": decoupled_kl,
    "dist": dist,
    "forward_kl": forward_kl,
    "hard_label": hard_label,
    "hint": hint,
    "jensen_shannon": jensen_shannon,
    "logit_mse": logit_mse,
    "normalized_kd": normalized_kd,
    "pkd": pkd,
    "probabilistic_transfer": probabilistic_transfer,
    "relational_angle": relational_angle,
    "relational_distance": relational_distance,
    "reverse_kl": reverse_kl,
    "similarity_preserving": similarity_preserving,
    "skew_kl": skew_kl,
    "top_k_kl": top_k_kl,
}


def check_classes(loss: str | Callable[..., Tensor], num_classes: int, *, standardized: bool = False) -> None:
    """Refuse, before training, a loss that is identically zero or constant for a head with so few classes.

    `loss` is a name in LOSSES or the function itself; a function of your own is never refused.
    Errors: ValueError with what came, what was expected and what to use instead, also for a name that is not in LOSSES.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(f"loss got {loss!r}, expected one of {', '.join(LOSSES)}; or pass a function of your own.")
    for name, function in LOSSES.items():
        if loss == name or loss is function:
            require_classes(name, num_classes)
    if standardized:
        require_standardizable(num_classes)


__all__ = [
    "LOSSES",
    "attention_map_kl",
    "attention_relation",
    "attention_score_mse",
    "attention_transfer",
    "bernoulli_kl",
    "channel_wise_kl",
    "check_classes",
    "contrastive",
    "cosine_distance",
    "decoupled_kl",
    "dist",
    "forward_kl",
    "hard_label",
    "hint",
    "jensen_shannon",
    "logit_mse",
    "normalized_kd",
    "pkd",
    "probabilistic_transfer",
    "relational_angle",
    "relational_distance",
    "reverse_kl",
    "similarity_preserving",
    "skew_kl",
    "standardize",
    "top_k_kl",
]
