"""Any model's hidden states as `(examples, positions, width)`: tokens, grids, prefixes and padding told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hfdistill.errors import HfDistillError

UNLABELLED = -100
WIDTH_WORDS = ("hidden_size", "d_model", "embedding_size", "dim")
"""In the names of config settings that say how wide something is."""
MOST_PREFIX = 16
"""Tokens before the patches of a picture: class, distillation, registers."""


@dataclass(frozen=True)
class Features:
    """`values` (examples, positions, width).

    The first `prefix` positions stand for no place of the input (class, distillation and register tokens of pictures);
    the rest lie on the `grid` (height, width) row by row, where there is one. `valid` (examples, positions) is False
    for padding; None where there is none.
    """

    values: torch.Tensor
    prefix: int = 0
    grid: tuple[int, int] | None = None
    valid: torch.Tensor | None = None

    @property
    def positions(self) -> int:
        """How many there are, prefix included."""
        return int(self.values.shape[1])


def features_of(tensor: torch.Tensor, inputs: Mapping[str, Any], widths: frozenset[int], part: str | None) -> Features:
    """A hidden state as features.

    `tensor` is (examples, channels, height, width) or channels last, (examples, positions, width), (examples, width),
    or a clip's (examples, channels, time, height, width); `widths` are the widths that the model's config names, by
    which channels are found. Errors: HfDistillError for another form.
    """
    if tensor.dim() == 4 and part != "vision" and isinstance(inputs.get("input_ids"), torch.Tensor):
        raise HfDistillError(
            f"A hidden state of shape {tuple(tensor.shape)} came for a text; expected (examples, positions, width). "
            "Some models keep several streams of states (Gemma 3n): take Module() with the name of a part of a layer."
        )
    if tensor.dim() == 5:
        return Features(tensor.flatten(2).mT)
    if tensor.dim() == 4:
        first, last = tensor.shape[1] in widths, tensor.shape[3] in widths
        channels_last = last and not first
        maps = tensor if channels_last else tensor.movedim(1, -1)
        return Features(maps.flatten(1, 2), grid=(int(maps.shape[1]), int(maps.shape[2])))
    if tensor.dim() == 2:
        return Features(tensor[:, None])
    if tensor.dim() != 3:
        raise HfDistillError(
            f"A hidden state of shape {tuple(tensor.shape)} came; expected (examples, positions, width), "
            "(examples, channels, height, width) or (examples, width)."
        )
    valid = valid_positions(inputs, part)
    if valid is not None:
        if valid.shape == tensor.shape[:2]:
            return Features(tensor, valid=valid)
        return Features(tensor, valid=_stretched(valid, int(tensor.shape[1])))
    pixels = inputs.get("pixel_values")
    if isinstance(pixels, torch.Tensor) and pixels.dim() == 4 and part in (None, "", "vision", "encoder"):
        prefix, grid = picture_grid(int(tensor.shape[1]), pixels.shape[-2] / pixels.shape[-1])
        return Features(tensor, prefix, grid)
    return Features(tensor)


def valid_positions(inputs: Mapping[str, Any], part: str | None) -> torch.Tensor | None:
    """Which positions of a part's input are no padding, (examples, positions), as the batch says; None: all of them."""
    if part == "decoder":
        mask = inputs.get("decoder_attention_mask")
        labels = inputs.get("labels")
        if mask is None and isinstance(labels, torch.Tensor) and labels.dim() == 2 and not labels.is_floating_point():
            return labels != UNLABELLED
    elif part == "vision":
        mask = None
    else:
        mask = inputs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 3):
        return None
    # The choices of a question are read as examples of their own.
    return mask.reshape(-1, mask.shape[-1]) != 0


def _stretched(valid: torch.Tensor, positions: int) -> torch.Tensor:
    """A mask over samples of sound, or over frames, as one over the fewer positions that a model makes of them."""
    share = valid.sum(1, keepdim=True) / valid.shape[1]
    return torch.arange(positions, device=valid.device) < (share * positions).round().clamp(min=1)


def picture_grid(positions: int, ratio: float) -> tuple[int, tuple[int, int] | None]:
    """How many prefix tokens a picture of that height to width has, and its grid of patches; no grid if none fits."""
    for prefix in range(min(MOST_PREFIX, positions)):
        height = math.sqrt((positions - prefix) * ratio)
        rows = round(height)
        if rows and (positions - prefix) % rows == 0 and abs(rows * rows / (positions - prefix) - ratio) < 0.02 * ratio:
            return prefix, (rows, (positions - prefix) // rows)
    return 0, None


def without_prefix(features: Features) -> Features:
    """Only the positions that stand for a place of the input."""
    if not features.prefix:
        return features
    valid = None if features.valid is None else features.valid[:, features.prefix :]
    return replace(features, values=features.values[:, features.prefix :], prefix=0, valid=valid)


def prefix_only(features: Features, count: int) -> Features:
    """The first prefix tokens."""
    return Features(features.values[:, :count], count)


def resized(features: Features, grid: tuple[int, int]) -> Features:
    """Features on another grid: averaged over areas where it is coarser, interpolated where it is finer."""
    if features.grid is None or features.grid == grid:
        return features
    maps = features.values.mT.reshape(len(features.values), -1, *features.grid)
    coarser = all(new <= old for new, old in zip(grid, features.grid, strict=True))
    if coarser:
        maps = functional.adaptive_avg_pool2d(maps, grid)
    else:
        maps = functional.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    return Features(maps.flatten(2).mT, 0, grid)


def on_one_grid(student: Features, teacher: Features, prefix: str) -> tuple[Features, Features]:
    """Both features with the same positions: prefixes kept, dropped or alone, the larger grid brought to the smaller.

    Errors: HfDistillError where the positions have nothing to do with each other.
    """
    if prefix == "only":
        shared = min(student.prefix, teacher.prefix)
        if not shared:
            raise HfDistillError(
                f"prefix='only', and there are {student.prefix} prefix tokens in the student and {teacher.prefix} in "
                "the teacher; expected a class token in both. Take prefix='drop'."
            )
        return prefix_only(student, shared), prefix_only(teacher, shared)
    alike = student.positions == teacher.positions and student.prefix == teacher.prefix
    if alike and prefix in ("keep", "auto"):
        return student, teacher
    if prefix == "keep" and student.prefix and student.prefix == teacher.prefix:
        raise HfDistillError(
            f"prefix='keep', and the student has {student.positions} positions, the teacher {teacher.positions}; grids "
            "of different size can be compared without their prefix tokens only. Take prefix='drop'."
        )
    student, teacher = without_prefix(student), without_prefix(teacher)
    if student.grid is not None and teacher.grid is not None:
        smaller = min(student.grid, teacher.grid, key=math.prod)
        return resized(student, smaller), resized(teacher, smaller)
    if student.positions != teacher.positions:
        raise HfDistillError(
            f"The student has {student.positions} positions and the teacher {teacher.positions}, and they lie on no "
            "grid that could be resized; expected the same tokens in both: one tokenizer or processor, one length."
        )
    return student, teacher


def config_settings(model: nn.Module) -> dict[str, Any]:
    """What a model's config says; nothing for a module that has none."""
    return model.config.to_dict() if "config" in vars(model) else {}  # type: ignore[union-attr, operator]


def config_widths(model: nn.Module) -> frozenset[int]:
    """The widths that a model's config names anywhere."""
    found: set[int] = set()

    def search(entries: Mapping[str, Any]) -> None:
        for name, value in entries.items():
            if isinstance(value, Mapping):
                search(value)
            elif any(word in str(name) for word in WIDTH_WORDS):
                values = value if isinstance(value, (list, tuple)) else [value]
                found.update(each for each in values if type(each) is int)

    search(config_settings(model))
    return frozenset(found)
