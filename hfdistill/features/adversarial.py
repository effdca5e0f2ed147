"""A discriminator that learns to tell student from teacher by their features, and a student that learns to fool it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.functional import layer_norm, softplus

from hfdistill.errors import HfDistillError
from hfdistill.features.layers import LAST, Layers
from hfdistill.features.layout import Features
from hfdistill.features.pooling import pooled_features
from hfdistill.features.projectors import ModulePlan, Projectors
from hfdistill.features.terms import Binding, HiddenStates, Look, Source
from hfdistill.knowledge import StepContext
from hfdistill.losses._checks import widened
from hfdistill.reversal import with_reversed_gradient
from hfdistill.schedules import Weight
from hfdistill.sight import Seen
from hfdistill.tasks.layouts import first_tensor

OneOf = Literal["mean", "first", "last"]


def adversarial(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How badly a discriminator tells the two apart, from its logits for "this is the teacher": `(rows,)` in nats.

    -(log(1 - sigmoid(student)) + log(sigmoid(teacher))) / 2, which is log 2 where it cannot tell.
    """
    return (softplus(widened(student)) + softplus(-widened(teacher))) / 2


class Discriminator(nn.Module):
    """A perceptron of one hidden layer that says of a vector how much it looks like the teacher's."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `(rows,)` for vectors `(rows, width)`."""
        # Without their scale, which would give each side away, and which may be in the hundreds.
        vectors = layer_norm(features.to(self.inner.weight.dtype), features.shape[-1:])
        logits: torch.Tensor = self.outer(nn.functional.leaky_relu(self.inner(vectors), 0.2))
        return logits.squeeze(-1)


@dataclass(frozen=True)
class DiscriminatorPlan:
    """A discriminator to be made."""

    width: int
    hidden: int

    def module(self) -> Discriminator:
        """The discriminator."""
        return Discriminator(self.width, self.hidden)


class Adversarial(HiddenStates):
    """A discriminator on hidden states that learns to tell student from teacher, and a student that learns to fool it.

    For each pair of `layers` (as in HiddenStates) a perceptron with `hidden` units says of one vector an example
    whether it is the teacher's; the vector is the layer's hidden state pooled by `pool`, as in Relations, brought to
    mean 0 and variance 1, and the student's is projected to the teacher's width first where they differ. The value is
    the mean of the two cross-entropies, log 2 where nothing gives the student away, summed over the pairs. The gradient
    turns round on its way into the student and its projector, multiplied by `strength`, so that one optimizer with one
    learning rate trains both sides. Discriminators lie in checkpoints beside the student and are no part of it.
    Domain: hidden >= 1, strength > 0. Errors: HfDistillError outside of it and as those of HiddenStates.
    Source: Xu et al., "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional
    Adversarial Networks", arXiv 1709.00513, there on logits and by turns; the gradient reversal is that of Ganin and
    Lempitsky, arXiv 1409.7495. Pooling, normalised vectors and the absence of a condition are ours.
    """

    def __init__(
        self,
        *,
        layers: Layers = LAST,
        weight: Weight | str = 1.0,
        hidden: int = 64,
        strength: float = 1.0,
        pool: OneOf = "mean",
        name: str = "adversarial",
        part: str | None = None,
        projector: Literal["linear"] | None = "linear",
        norm: bool = False,
    ) -> None:
        if pool not in get_args(OneOf):
            raise HfDistillError(f"pool={pool!r}; expected one of {', '.join(map(repr, get_args(OneOf)))}.")
        if hidden < 1 or not (math.isfinite(strength) and strength > 0):
            raise HfDistillError(
                f"Adversarial(hidden={hidden}, strength={strength}) came; expected one hidden unit or more and a "
                "finite strength above 0."
            )
        self.hidden, self.strength, self.pool = hidden, strength, pool
        super().__init__(
            adversarial, layers=layers, weight=weight, name=name, part=part, projector=projector, norm=norm
        )

    def described(self) -> dict[str, Any]:
        """Which layers, and what looks at them."""
        return {"layers": self.layers, "hidden": self.hidden, "strength": self.strength, "pool": self.pool}

    @property
    def over_positions(self) -> bool:
        """An example is a row."""
        return False

    def bound(self, look: Look, student: Seen, teacher: Seen, widths: tuple[frozenset[int], frozenset[int]]) -> Binding:
        """The pairs, the projectors between different widths, and a discriminator for each pair."""
        binding = super().bound(look, student, teacher, widths)
        others: dict[str, ModulePlan] = {}
        for source in binding.sources:
            _, theirs = self._features(source, replace(binding, plans={}), student, teacher, {})
            others[_judge(source)] = DiscriminatorPlan(int(theirs.values.shape[-1]), self.hidden)
        return replace(binding, others=others)

    def project(self, binding: Binding, seen: Seen, projectors: Projectors) -> None:
        """Run projectors and discriminators within the student's forward, on what the teacher has shown too."""
        super().project(binding, seen, projectors)
        if seen.beside is None:
            return
        for source in binding.sources:
            ours, theirs = self._features(source, binding, seen, seen.beside, seen.projected)
            student = with_reversed_gradient(pooled_features(ours, self.pool), self.strength)
            teacher = pooled_features(theirs, self.pool).detach()
            key = self.key(_judge(source))
            seen.projected[key] = torch.stack([projectors(key, side) for side in (student, teacher)])

    def values(self, context: StepContext) -> torch.Tensor:
        """Values whose sum is that over the examples: a value is itself a sum over the pairs of layers."""
        if context.features is None:
            raise HfDistillError(f"{self!r} needs a teacher; pass teacher_model.")
        said: Mapping[str, torch.Tensor] = context.features.student.projected
        sources = context.features.bindings[self.name].sources
        values = torch.stack([self.loss(*said[self.key(_judge(source))]) for source in sources]).sum(0)
        # The choices of a question are read as examples of their own.
        return values.reshape(len(first_tensor(context.inputs)), -1).mean(1)

    def _aligned(self, student: Features, teacher: Features) -> tuple[Features, Features]:
        """As they are: pooled vectors have no positions to bring in line."""
        return student, teacher


def _judge(source: Source) -> str:
    return f"{source.name}__discriminator"
