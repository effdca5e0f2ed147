"""What a fused head is told: heads, divergences, and what is known of a teacher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfdistill.losses._checks import require_positive
from hfdistill.losses._fused_blocks import Curve, Kind
from hfdistill.losses.divergence import forward_kl, jensen_shannon, reverse_kl, skew_kl
from hfdistill.losses.top_k import top_k_kl

LACKING = -1


@dataclass(frozen=True, eq=False)
class Head:
    """A model's last layer: logits = softcap tanh(scale (x W^T + bias) / softcap), without a softcap its argument.

    `weight` is `(classes, width)`, `bias` `(classes,)`; a tied weight is given as it is. `added` holds products beside
    W's, each the inputs made of the hidden states and a weight `(classes, rank)`: for LoRA
    `(lambda x: scaling * lora_A(dropout(x)), lora_B.weight)`, so that no second weight is ever made.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    added: tuple[tuple[Callable[[Tensor], Tensor], Tensor], ...] = ()

    @property
    def curve(self) -> Curve:
        """What follows the product."""
        return Curve(self.scale, self.softcap)


@dataclass(frozen=True)
class Divergence:
    """A divergence that the fused head computes; the options are those of the function in `LOSSES`.

    `of` reads one from a function and its options.
    """

    name: str = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    skew: float = 0.1
    reverse: bool = False

    @classmethod
    def of(cls, loss: Callable[..., Tensor], options: Mapping[str, Any]) -> Divergence | None:
        """The divergence of a loss with these options, its own defaults for the rest; None: it cannot be fused."""
        if loss not in FUSED.values():
            return None
        given = {key: each.default for key, each in inspect.signature(loss).parameters.items()} | dict(options)
        if given.get("standardized") or not isinstance(given["temperature"], (int, float)):
            return None
        return cls(loss.__name__, **{key: given[key] for key in given.keys() & _OPTIONS})

    @property
    def kind(self) -> Kind:
        """What the sweep has to know. Errors: ValueError for a name or an option out of range."""
        require_positive("temperature", self.temperature)
        if self.name not in FUSED:
            raise ValueError(f"Divergence got {self.name!r}, expected one of {', '.join(FUSED)}; use the function.")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta got {self.beta}, expected 0 (forward KL) to 1 (reverse KL).")
        if not 0 <= self.skew < 1:
            raise ValueError(f"skew got {self.skew}, expected 0 to below 1; 0.1 is usual.")
        forward, backward = Kind(self.temperature), Kind(self.temperature, None, 0.0, 1.0)
        if self.name == "jensen_shannon" and 0 < self.beta < 1:
            return Kind(self.temperature, self.beta, self.beta, 1 - self.beta)
        if self.name == "skew_kl" and self.skew > 0:
            mixture = 1 - self.skew if self.reverse else self.skew
            return Kind(self.temperature, mixture, float(not self.reverse), float(self.reverse))
        turned = {"reverse_kl": True, "jensen_shannon": self.beta == 1, "skew_kl": self.reverse}
        return backward if turned.get(self.name) else forward


FUSED: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "jensen_shannon": jensen_shannon,
    "reverse_kl": reverse_kl,
    "skew_kl": skew_kl,
    "top_k_kl": top_k_kl,
}
_OPTIONS = {"temperature", "beta", "skew", "reverse"}


class Columns:
    """Which of a teacher's classes each of the student's first ones is, -1 for none; built once, then reused."""

    def __init__(self, places: Sequence[int]) -> None:
        columns = torch.tensor(places, dtype=torch.long)
        lacking = columns == LACKING
        in_order = bool(((columns == torch.arange(len(columns))) | lacking).all())
        self.last = int(columns.max()) if len(columns) else LACKING
        self.width = len(columns)
        self.picked = None if in_order else columns.clamp(min=0)
        self.lacking = lacking.nonzero().squeeze(-1) if bool(lacking.any()) else None

    def to(self, device: torch.device) -> Columns:
        """The same, moved to a device for good."""
        if self.picked is not None:
            self.picked = self.picked.to(device)
        if self.lacking is not None:
            self.lacking = self.lacking.to(device)
        return self


@dataclass(frozen=True, eq=False)
class Taught:
    """A teacher's side: hidden states `(rows, width)` and head; its classes in the student's order by `columns`."""

    hidden: Tensor
    head: Head
    columns: Columns | None = None


@dataclass(frozen=True, eq=False)
class TopK:
    """A teacher of which the likeliest classes are kept: indices and log-probabilities at T, both `(rows, k)`.

    `compared` is how many of the student's classes the rest is taken from, from the first one on; None: all.
    """

    indices: Tensor
    log_probabilities: Tensor
    compared: int | None = None
