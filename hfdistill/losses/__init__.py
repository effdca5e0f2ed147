"""Distances between student and teacher: pure functions (student, teacher, **options) -> one value a row."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hfdistill.losses._checks import require_classes, require_standardizable
from hfdistill.losses.correlation import dist
from hfdistill.losses.decoupled import decoupled_kl, normalized_kd
from hfdistill.losses.divergence import bernoulli_kl, forward_kl, jensen_shannon, reverse_kl, skew_kl
from hfdistill.losses.logits import hard_label, logit_mse
from hfdistill.losses.standardization import standardize
from hfdistill.losses.top_k import top_k_kl

LOSSES: dict[str, Callable[..., Tensor]] = {
    "bernoulli_kl": bernoulli_kl,
    "decoupled_kl": decoupled_kl,
    "dist": dist,
    "forward_kl": forward_kl,
    "hard_label": hard_label,
    "jensen_shannon": jensen_shannon,
    "logit_mse": logit_mse,
    "normalized_kd": normalized_kd,
    "reverse_kl": reverse_kl,
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
    "bernoulli_kl",
    "check_classes",
    "decoupled_kl",
    "dist",
    "forward_kl",
    "hard_label",
    "jensen_shannon",
    "logit_mse",
    "normalized_kd",
    "reverse_kl",
    "skew_kl",
    "standardize",
    "top_k_kl",
]
