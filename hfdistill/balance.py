"""Weights found by measuring: terms whose gradients are to be as long as that of another."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hfdistill._atomic import write_json
from hfdistill.errors import HfDistillError
from hfdistill.features.projectors import without_projectors
from hfdistill.first_look import same_random_numbers
from hfdistill.knowledge import Term
from hfdistill.schedules import Auto

logger = logging.getLogger(__name__)

FILE = Path("distillation") / "weights.json"


@dataclass
class GradientBalance:
    """The measurements of a training, and the weights that follow from them.

    In each of the first steps the length of every term's gradient over the whole optimizer step is measured before the
    step is taken. The weight of a term is then the mean length of the reference's gradient, times its weight, divided
    by the mean length of the term's own. A term without gradient, such as a student that equals its teacher, waits.
    """

    terms: tuple[Term, ...] = ()
    lengths: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, terms: Sequence[Term], sharded: bool) -> GradientBalance:
        """For the terms of an objective; nothing to do where no weight is to be found.

        Errors: HfDistillError for parameters that are `sharded`, and for a term without another to compare it with.
        """
        chosen = [term for term in terms if isinstance(term.weight, Auto)]
        if not chosen:
            return cls()
        if sharded:
            raise HfDistillError(
                "weight='auto' measures whole gradients, and FSDP and DeepSpeed shard them; expected numbers: take "
                "those that a run on one device logs as weight/<term>."
            )
        fixed = [term for term in terms if isinstance(term.weight, (int, float)) and term.weight > 0]
        if not fixed and len(chosen) < 2:
            raise HfDistillError(
                f"weight='auto' of {chosen[0].name!r} is measured against another term, and there is none of a fixed "
                "weight; expected one, such as TaskLoss(weight=1)."
            )
        reference = fixed[0] if fixed else chosen[0]
        return cls((reference, *(term for term in chosen if term is not reference)))

    @property
    def steps(self) -> int:
        """How many steps are measured."""
        return max((term.weight.steps for term in self.terms if isinstance(term.weight, Auto)), default=0)

    def is_due(self, global_step: int) -> bool:
        """Whether the coming optimizer step is to be measured."""
        return global_step < self.steps

    def add(self, lengths: dict[str, float]) -> None:
        """Take up the gradient lengths of one step."""
        bad = [name for name, length in lengths.items() if not math.isfinite(length)]
        if bad:
            raise HfDistillError(
                f"The gradient of {' and '.join(bad)} is not finite in the step that its weight is measured in; "
                "expected finite ones. Lower the learning rate, or give a weight as a number."
            )
        if lengths.get(self.terms[0].name, 0.0) <= 0:
            return
        for name, length in lengths.items():
            if length > 0:
                self.lengths.setdefault(name, []).append(length)
        logger.info("Measured weights: %s.", ", ".join(f"{name} {value:.4g}" for name, value in self.weights.items()))

    @property
    def weights(self) -> dict[str, float]:
        """The weights known by now, by term."""
        if not self.terms or not self.lengths.get(self.terms[0].name):
            return {}
        reference = self.terms[0]
        scale = reference.weight if isinstance(reference.weight, (int, float)) else 1.0
        target = scale * _mean(self.lengths[reference.name])
        others = [term.name for term in self.terms[1:] if self.lengths.get(term.name)]
        return {name: target / _mean(self.lengths[name]) for name in others}

    def save(self, checkpoint: Path) -> None:
        """Write the measurements beside a checkpoint."""
        (checkpoint / FILE).parent.mkdir(parents=True, exist_ok=True)
        write_json(checkpoint / FILE, {"gradient_lengths": self.lengths, "weights": self.weights})

    def load(self, checkpoint: Path) -> None:
        """Read them from a checkpoint. Errors: HfDistillError where they are missing."""
        if not self.terms:
            return
        try:
            saved = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
            lengths = saved["gradient_lengths"].items()
            self.lengths = {str(name): [float(each) for each in of_steps] for name, of_steps in lengths}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise HfDistillError(
                f"The checkpoint {checkpoint} holds no measured weights ({FILE}), and the objective has weight='auto'; "
                "expected one that was saved with this objective. Start anew, or give the weights as numbers."
            ) from error


def gradient_lengths(
    student: nn.Module,
    batches: Sequence[Any],
    parts: Callable[[Any], Mapping[str, torch.Tensor]],
    accelerator: Accelerator,
) -> dict[str, float]:
    """The length of each part's gradient over all micro-batches and processes of an optimizer step.

    `parts` gives those of one micro-batch, each a share of the step's mean. Neither the student's statistics nor the
    course of random numbers are changed; projectors do not count.
    """
    student.train()
    learning = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    parameters = list(without_projectors(learning).values())
    sums: dict[str, list[torch.Tensor]] = {}
    with same_random_numbers(), _unchanged_buffers(student):
        for batch in batches:
            for name, part in parts(batch).items():
                if part.requires_grad:
                    sums[name] = _added(sums.get(name), part, parameters)
    lengths = {}
    for name, tensors in sums.items():
        squares = [accelerator.reduce(each, reduction="sum").double().square().sum() for each in tensors]
        lengths[name] = float(torch.stack(squares).sum().sqrt())
    return lengths


def _added(
    known: Sequence[torch.Tensor] | None, part: torch.Tensor, parameters: Sequence[nn.Parameter]
) -> list[torch.Tensor]:
    gradients = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return list(gradients) if known is None else [a + b for a, b in zip(known, gradients, strict=True)]


@contextmanager
def _unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Put statistics that a forward updates, such as those of batch normalisation, back after the block."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in kept:
                    buffer.copy_(kept[name])


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
