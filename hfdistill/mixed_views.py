"""Mixup and cutmix of one example with another of its data set, whatever batch it comes to be in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfdistill.errors import HfDistillError
from hfdistill.mixing import blended, pictures_of, with_rectangle

LABELS = ("labels", "label", "label_ids")


@dataclass(frozen=True)
class ViewMixing:
    """How one example is mixed with another: `mixup`, `cutmix` and `probability` as `Mixing` has them for a batch.

    Errors: HfDistillError for values outside their domain.
    """

    mixup: float
    cutmix: float
    probability: float

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            strength = vars(self)[name]
            if not 0 <= strength < math.inf:
                raise HfDistillError(f"{name}={strength}; expected a finite number of at least 0, such as 0.8.")
        if not 0 < self.probability <= 1:
            raise HfDistillError(f"mix_probability={self.probability}; expected a share above 0, up to 1.")

    def __call__(self, example: Any, draws: np.random.Generator, further_on: Callable[[int], Any], count: int) -> Any:
        """The example, mixed or not; `further_on` gives the one so many places behind it, of `count` in a ring.

        Errors: HfDistillError for examples without pictures, and for pictures of two sizes.
        """
        own = _pictures(example)
        if count < 2:
            raise HfDistillError(f"mixup and cutmix came for {count} example; expected at least 2.")
        if draws.random() >= self.probability:
            return example
        kinds = [kind for kind, each in ((blended, self.mixup), (with_rectangle, self.cutmix)) if each > 0]
        kind = kinds[draws.integers(len(kinds))]
        strength = self.mixup if kind is blended else self.cutmix
        share = float(draws.beta(strength, strength))
        others = _pictures(further_on(int(draws.integers(1, count))))
        place = (float(draws.random()), float(draws.random()))
        mixed = {name: kind(each, _alike(name, each, others), share, place) for name, each in own.items()}
        return {
            **example,
            **{name: each.numpy() if isinstance(example[name], np.ndarray) else each for name, each in mixed.items()},
            **{name: _without_label(example[name]) for name in LABELS if name in example},
        }


def _alike(name: str, own: torch.Tensor, others: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in others or others[name].shape != own.shape:
        there = tuple(others[name].shape) if name in others else "nothing"
        raise HfDistillError(
            f"mixup and cutmix met {tuple(own.shape)} and {there} in {name}; expected pictures of one size in all "
            "examples. Crop or resize them first."
        )
    return others[name]


def _pictures(example: Any) -> dict[str, torch.Tensor]:
    if not isinstance(example, Mapping):
        raise HfDistillError(
            f"mixup and cutmix came for examples that are a {type(example).__name__}; expected dictionaries with "
            "pictures in pixel_values. Leave both at 0."
        )
    tensors = {name: torch.from_numpy(each) if isinstance(each, np.ndarray) else each for name, each in example.items()}
    batch = {name: each[None] for name, each in tensors.items() if isinstance(each, torch.Tensor)}
    found = pictures_of({**tensors, **batch})
    return {name: each[0] for name, each in found.items()}


def _without_label(label: Any) -> Any:
    """-100 or NaN in the place of each number of a label."""
    if isinstance(label, torch.Tensor):
        missing = torch.nan if label.is_floating_point() else -100
        return torch.full(label.shape, missing, dtype=label.dtype if label.is_floating_point() else torch.int64)
    if isinstance(label, np.ndarray):
        floating = label.dtype.kind == "f"
        return np.full(label.shape, np.nan if floating else -100, label.dtype if floating else np.int64)
    if isinstance(label, list | tuple):
        return [_without_label(each) for each in label]
    return label if label is None else math.nan if isinstance(label, float | np.floating) else -100
