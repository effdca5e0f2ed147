"""Mixup and cutmix for distillation: pictures without labels of their own, the same for student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfdistill.config import DistillationConfig
from hfdistill.errors import HfDistillError
from hfdistill.objective import Objective
from hfdistill.schedules import is_used
from hfdistill.tasks import Task

MIXABLE = ("single_label_classification", "multi_label_classification", "regression", "two_head_classification")
"""Tasks of whole pictures."""


@dataclass(frozen=True)
class Mixing:
    """How the pictures of training batches are mixed: a collator's result goes in, the mixed batch comes out.

    `mixup`: x <- l x + (1 - l) x', l ~ Beta(mixup, mixup), x' another picture of the micro-batch; `cutmix`: a rectangle
    of 1 - l of the picture comes from x' instead, l ~ Beta(cutmix, cutmix). 0 switches one off; with both each batch
    draws one of them. A share `probability` of the batches is mixed. Every view of a picture (`teacher_pixel_values`
    too) is mixed alike. A mixed picture has no label (-100, NaN): it is learnt from the teacher alone.
    What is drawn follows from `seed` and the batch itself, so that a resumed training draws the same again.
    Sources: Zhang et al. (mixup), arXiv 1710.09412; Yun et al. (CutMix), arXiv 1905.04899; mixed pictures under one
    view for both models: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2106.05237.
    """

    mixup: float
    cutmix: float
    probability: float
    seed: int
    label_names: tuple[str, ...]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its pictures mixed and its labels taken away."""
        pictures = pictures_of(batch)
        first = next(iter(pictures.values()))
        # A few numbers of every picture tell batches apart; all of them would cost time.
        content = first.reshape(len(first), -1)[:, ::97].double().sum(1).cpu().numpy()
        draws = np.random.default_rng([self.seed, *content.view(np.uint64).tolist()])
        if len(first) < 2 or draws.random() >= self.probability:
            return dict(batch)
        kinds = [kind for kind, strength in ((blended, self.mixup), (with_rectangle, self.cutmix)) if strength > 0]
        kind = kinds[draws.integers(len(kinds))]
        strength = self.mixup if kind is blended else self.cutmix
        share = draws.beta(strength, strength)
        # Shifted by at least one, so that no picture is mixed with itself.
        others = (torch.arange(len(first)) + int(draws.integers(1, len(first)))) % len(first)
        place = (float(draws.random()), float(draws.random()))
        mixed = {name: kind(each, each[others.to(each.device)], share, place) for name, each in pictures.items()}
        return {**batch, **mixed, **self._without_labels(batch)}

    def _without_labels(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        labels = {name: batch[name] for name in self.label_names if batch.get(name) is not None}
        return {
            name: torch.full_like(each, torch.nan if each.is_floating_point() else -100)
            for name, each in labels.items()
        }


def pictures_of(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The pictures `(examples, ..., height, width)` of a batch, by name.

    Errors: HfDistillError for a batch without any.
    """
    found = {
        name: each
        for name, each in batch.items()
        if name.endswith("pixel_values") and isinstance(each, torch.Tensor) and each.dim() >= 4
    }
    if not found:
        raise HfDistillError(
            f"mixup and cutmix came for batches that hold {', '.join(batch)}; expected pictures of one size in "
            "pixel_values. Leave both at 0."
        )
    return found


def blended(own: torch.Tensor, other: torch.Tensor, share: float, place: tuple[float, float]) -> torch.Tensor:
    """A weighted mean: `share` of a picture's own, the rest of the other."""
    return share * own + (1 - share) * other


def with_rectangle(own: torch.Tensor, other: torch.Tensor, share: float, place: tuple[float, float]) -> torch.Tensor:
    """A rectangle of the other picture, in shares of the sides, so that views of other sizes get the same one."""
    side = (1 - share) ** 0.5
    cut = own.clone()
    rows, columns = (
        slice(round(start * (1 - side) * size), round((start * (1 - side) + side) * size))
        for start, size in zip(place, own.shape[-2:], strict=True)
    )
    cut[..., rows, columns] = other[..., rows, columns]
    return cut


def mixing_of(args: DistillationConfig, task: Task, label_names: Sequence[str], objective: Objective) -> Mixing | None:
    """What the arguments ask for, if anything.

    Errors: HfDistillError for tasks whose labels are of parts of a picture, and where every term needs labels.
    """
    if not (args.mixup or args.cutmix):
        return None
    if task.name not in MIXABLE:
        raise HfDistillError(f"mixup and cutmix came for {task.name}; expected one of {', '.join(MIXABLE)}.")
    if all(term.needs_labels for term in objective.active if is_used(term.weight)) and args.mix_probability == 1:
        raise HfDistillError(
            f"mixup and cutmix leave no labels, and every term of {objective!r} needs them; expected a term that "
            "learns from the teacher alone, such as Logits()."
        )
    return Mixing(args.mixup, args.cutmix, args.mix_probability, args.seed, tuple(label_names))


class MixingCollator:
    """A collator whose batches are mixed."""

    def __init__(self, collator: Callable[[Any], Mapping[str, Any]], mixing: Mixing) -> None:
        self.collator = collator
        self.mixing = mixing

    def __call__(self, examples: Any) -> dict[str, Any]:
        """A mixed batch."""
        return self.mixing(self.collator(examples))
