"""The most likely classes of a teacher, where all of its logits would be too many to keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hfdistill.errors import HfDistillError


@dataclass(frozen=True)
class KeptLogits:
    """A teacher's k most likely classes in each row, and what all others weigh together.

    `indices` and `log_probabilities` `(..., k)` are at temperature 1; `rest` `(..., temperatures)` is the log of the
    sum of `p^(1/T)` over the other classes at each of `temperatures`. `columns` `(teacher's classes,)` are the
    student's places of the teacher's classes, -1 where it has none; None: the same.
    """

    indices: torch.Tensor
    log_probabilities: torch.Tensor
    rest: torch.Tensor
    temperatures: tuple[float, ...] = (1.0,)
    columns: torch.Tensor | None = None

    def at(self, temperature: float) -> torch.Tensor:
        """The probabilities of the kept classes at a temperature, `(..., k)`, what is missing to 1 being the others'.

        Errors: HfDistillError for a temperature at which the others' share was not kept.
        """
        if temperature not in self.temperatures:
            known = ", ".join(f"{each:g}" for each in self.temperatures)
            raise HfDistillError(
                f"The cache keeps the most likely classes of its teacher, and what the others weigh at temperature "
                f"{known}; temperature {temperature:g} was asked for. Expected one of these: build the cache with "
                f"temperatures=({temperature:g},), or without top_k."
            )
        scaled = self.log_probabilities.float() / temperature
        rest = self.rest[..., self.temperatures.index(temperature), None].float()
        probabilities = (scaled - torch.cat([scaled, rest], -1).logsumexp(-1, keepdim=True)).exp()
        if self.columns is None:
            return probabilities
        # What the student has no class for is left out, as it is of whole logits.
        there = self.places >= 0
        left = 1 - torch.where(there, 0, probabilities).sum(-1, keepdim=True)
        shared: torch.Tensor = torch.where(there, probabilities, 0) / left.clamp(min=torch.finfo(torch.float32).tiny)
        return shared

    @property
    def places(self) -> torch.Tensor:
        """The student's class of each kept one, -1 where it has none."""
        indices = self.indices.long()
        return indices if self.columns is None else self.columns[indices]
