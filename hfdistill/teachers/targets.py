"""What a teacher gives for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from hfdistill.sight import Seen
from hfdistill.teachers.kept import KeptLogits
from hfdistill.teachers.mixture import Brought, Mixture, unchanged


@dataclass(frozen=True)
class Said:
    """What one of several teachers has said; `examples` are its places in the batch where it was not asked of all."""

    who: str
    logits: torch.Tensor
    examples: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Targets:
    """A teacher's outputs for one batch, in the student's order of classes, without gradient.

    `fields` are the further outputs that the objective's terms have asked for, by name; `seen` is what it has shown of
    its insides. Of several teachers `logits` are those together, at temperature 1; `said` is what each has given, and
    `mixture` what their probabilities are at other temperatures. `learning` are the logits with their gradient, where
    the teacher learns too. `kept` are the most likely classes where not all were kept; `logits` are then their
    log-probabilities.
    """

    logits: torch.Tensor
    fields: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seen: Seen | None = None
    mixture: Mixture | None = None
    learning: torch.Tensor | None = None
    said: tuple[Said, ...] = ()
    kept: KeptLogits | None = None

    def at(self, temperature: float | torch.Tensor, brought: Brought = unchanged) -> torch.Tensor:
        """Logits whose softmax (or sigmoids) at this temperature are the teacher's probabilities there.

        For one model its own logits, whatever the temperature. `brought` takes logits to the student's places.
        """
        return brought(self.logits) if self.mixture is None else self.mixture.at(temperature, brought)


class Teacher(Protocol):
    """Anything that gives targets for a batch of teacher inputs: a live model, an ensemble, a cache."""

    def __call__(self, inputs: Mapping[str, Any]) -> Targets:
        """Targets for one batch."""
        ...
