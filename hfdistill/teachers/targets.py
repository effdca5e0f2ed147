"""What a teacher gives for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from hfdistill.sight import Seen


@dataclass(frozen=True)
class Targets:
    """A teacher's outputs for one batch, in the student's order of classes, without gradient.

    `fields` are the further outputs that the objective's terms have asked for, by name; `seen` is what it has shown of
    its insides.
    """

    logits: torch.Tensor
    fields: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seen: Seen | None = None


class Teacher(Protocol):
    """Anything that gives targets for a batch of teacher inputs: a live model, an ensemble, a cache."""

    def __call__(self, inputs: Mapping[str, Any]) -> Targets:
        """Targets for one batch."""
        ...
