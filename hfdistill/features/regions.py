"""Local knowledge: the same window, span or masked region of the features on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from hfdistill.errors import HfDistillError
from hfdistill.features.layout import UNLABELLED, Features, without_prefix


class Region(Protocol):
    """Some of the positions, the same in student and teacher."""

    def __call__(self, features: Features, inputs: Mapping[str, Any]) -> Features:
        """Only the positions of the region; `inputs` are the batch's, the same for both models."""
        ...

    def valid(self, valid: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """A mask over all tokens of the batch (examples, tokens) as one over those of the region."""
        ...


@dataclass(frozen=True)
class Window:
    """A window of the picture, its edges as shares of height and width from 0 to 1.

    Every cell of the grid that the window touches belongs to it.
    """

    top: float
    left: float
    bottom: float
    right: float

    def __post_init__(self) -> None:
        if not (0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1):
            raise HfDistillError(
                f"{self!r}; expected shares of the picture, 0 <= top < bottom <= 1, left and right alike."
            )

    def __call__(self, features: Features, inputs: Mapping[str, Any]) -> Features:
        """Cut out of the grid."""
        features = without_prefix(features)
        if features.grid is None:
            raise HfDistillError(
                f"{self!r} came for features without a grid; expected pictures. Take a Span for tokens."
            )
        height, width = features.grid
        rows = slice(int(self.top * height), -int(-self.bottom * height // 1))
        columns = slice(int(self.left * width), -int(-self.right * width // 1))
        window = features.values.reshape(len(features.values), height, width, -1)[:, rows, columns]
        return Features(window.flatten(1, 2), grid=(int(window.shape[1]), int(window.shape[2])))

    def valid(self, valid: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Refuse tokens."""
        raise HfDistillError(f"{self!r} came for tokens; expected pictures. Tokens take a Span.")


@dataclass(frozen=True)
class Span:
    """The tokens from `start` up to, but without, `end`, counted as the model reads them, padding included."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise HfDistillError(f"{self!r}; expected 0 <= start < end, in tokens.")

    def __call__(self, features: Features, inputs: Mapping[str, Any]) -> Features:
        """Cut out of the sequence."""
        values = features.values[:, self.start : self.end]
        valid = None if features.valid is None else features.valid[:, self.start : self.end]
        if not values.shape[1]:
            raise HfDistillError(
                f"{self!r} came for {features.positions} positions; expected a span that begins in them."
            )
        return Features(values, valid=valid)

    def valid(self, valid: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Cut likewise."""
        return valid[:, self.start : self.end]


@dataclass(frozen=True)
class Labelled:
    """The tokens with a label of their own: the masked ones of a masked language model, the answer of a prompt."""

    label: str = "labels"

    def __call__(self, features: Features, inputs: Mapping[str, Any]) -> Features:
        """All positions stay, those without a label become invalid."""
        every = torch.ones(features.values.shape[:2], dtype=torch.bool, device=features.values.device)
        return replace(features, valid=self.valid(every if features.valid is None else features.valid, inputs))

    def valid(self, valid: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """And labelled."""
        labels = inputs.get(self.label)
        if not isinstance(labels, torch.Tensor) or labels.shape != valid.shape:
            shape = tuple(labels.shape) if isinstance(labels, torch.Tensor) else labels
            raise HfDistillError(
                f"{self!r} came for {tuple(valid.shape)} tokens with labels {shape}; expected a label for each token, "
                f"{UNLABELLED} for those outside the region."
            )
        return valid & (labels != UNLABELLED)
