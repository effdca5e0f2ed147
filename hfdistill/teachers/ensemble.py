"""Several teachers at once: what the user asks for, and the callable that gives their targets together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from hfdistill.errors import HfDistillError, nearest
from hfdistill.losses import bernoulli_kl
from hfdistill.rows import BatchRows
from hfdistill.tasks import Classes, Queries, Task, TwoHeads
from hfdistill.tasks.label_losses import cross_entropy
from hfdistill.tasks.pairs import ImageTextPairs
from hfdistill.tasks.pixels import Depths, Pixels
from hfdistill.teachers.division import Division
from hfdistill.teachers.mapped import MappedTeacher
from hfdistill.teachers.mixture import Mixture, weighted_mean
from hfdistill.teachers.targets import Said, Targets, Teacher

AVERAGES = ("probabilities", "logits")
# The cross-entropy of a teacher that holds the label for impossible is infinite, and inf - inf is no number.
LARGEST_LOSS = 1e4


@dataclass(frozen=True, eq=False)
class EnsembleTeacher:
    """Several teachers as one: `DistillationTrainer(..., teacher_model=EnsembleTeacher([one, other]))`.

    `members` are Hub ids, folders, modules, `MappedTeacher` or `ZeroShotTeacher`; each is checked against the student
    as a single teacher is, and all read the same inputs. With `average` "probabilities" the target at a temperature T
    is `sum_i w_i softmax(z_i / T)` (sigmoids for labels that are true or false each for itself), with "logits" the
    softmax of `sum_i w_i z_i / T`; outputs that are no distribution are averaged as they are. Where a loss standardises
    logits, or each row has a temperature of its own, they are those of the probabilities at temperature 1. `weights`
    are one number of at least 0 a member, by default equal; they are divided by their sum.

    `confidence` weighs each row by how well each teacher knows its label: `w_k (1 - softmax_k(CE_k)) / (K - 1)`,
    divided by the sum, with the cross-entropy of teacher k; rows without a label take `weights`. With `by`, the name of
    an integer column, its value is the number of the one member that teaches the example, counted from 0, and a member
    runs on its own examples alone.
    Errors: HfDistillError, here for what cannot be an ensemble, and when the trainer is built for members that do not
    fit the student, naming them by place and name.
    Source: Hinton et al., arXiv 1503.02531, section 1 (mean of probabilities or logits); Zhang et al. (CA-MKD), arXiv
    2201.00007, section 3 (`confidence`).
    """

    members: Sequence[nn.Module | MappedTeacher | str]
    weights: Sequence[float] | None = None
    average: Literal["probabilities", "logits"] = "probabilities"
    confidence: bool = False
    by: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.members, (str, nn.Module)) or not self.members:
            raise HfDistillError(
                f"{'No members' if not self.members else type(self.members).__name__} came to EnsembleTeacher; "
                "expected a list of Hub ids, folders or modules, such as EnsembleTeacher([one, other])."
            )
        for place, member in enumerate(self.members):
            if not isinstance(member, (str, nn.Module, MappedTeacher)):
                raise HfDistillError(
                    f"members[{place}] of an EnsembleTeacher is a {type(member).__name__}; expected a Hub id, a "
                    "folder, a module or a MappedTeacher."
                )
        if self.average not in AVERAGES:
            raise HfDistillError(
                f"average={self.average!r} came to EnsembleTeacher{nearest(str(self.average), AVERAGES)} Expected "
                "'probabilities' or 'logits'."
            )
        self._check_weights()
        if self.by is not None and (self.confidence or self.weights is not None):
            raise HfDistillError(
                f"by={self.by!r} came beside {'confidence' if self.confidence else 'weights'}, and the column says "
                "alone which member teaches an example; expected one of them."
            )
        if self.confidence and len(self.members) < 2:
            raise HfDistillError("confidence=True compares teachers, and one member came; expected two or more.")

    def _check_weights(self) -> None:
        weights = self.weights
        if weights is None:
            return
        numbers = all(isinstance(each, (int, float)) and math.isfinite(each) and each >= 0 for each in weights)
        if len(weights) != len(self.members) or not numbers or not any(weights):
            raise HfDistillError(
                f"weights={list(weights)} came for {len(self.members)} members of an EnsembleTeacher; expected a "
                "finite number of at least 0 for each, and some above 0."
            )

    @property
    def shares(self) -> list[float]:
        """The weights, divided by their sum."""
        weights = [1.0] * len(self.members) if self.weights is None else [float(each) for each in self.weights]
        return [weight / math.fsum(weights) for weight in weights]


@dataclass(frozen=True)
class LiveMember:
    """One teacher of several in memory: how it is called in messages, and what it reads of a batch."""

    who: str
    teacher: Teacher
    view: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    def said(self, inputs: Mapping[str, Any], examples: tuple[int, ...] | None = None) -> Said:
        """What it says of a batch, or of those examples of one."""
        return Said(self.who, self.teacher(self.view(inputs)).logits, examples)


class MixedTargets(Targets):
    """Targets of several teachers whose `logits` are mixed when somebody asks for them.

    Terms mix at temperatures of their own, and faults are looked for in what each teacher has `said`, so that a step
    asks for none at temperature 1.
    """

    _together: Mixture

    def __init__(self, mixture: Mixture, said: tuple[Said, ...], together: Mixture) -> None:
        # Not as a dataclass does it, which would need the logits now.
        vars(self).update(mixture=mixture, said=said, fields={}, _together=together)

    @cached_property
    def logits(self) -> torch.Tensor:
        """Those together, at temperature 1."""
        return self._together.at(1.0)


class LiveEnsemble:
    """Teachers in memory whose targets are those of all together. It takes a whole batch, with its labels.

    `task` is the student's. Nothing here makes the host wait, but `by`: how many examples a member has is read there.
    """

    def __init__(self, members: Sequence[LiveMember], description: EnsembleTeacher, task: Task) -> None:
        check_task(description, task)
        shares = description.shares
        # One without a say is not asked; with `by` every member has its own examples.
        self.members = [member for member, share in zip(members, shares, strict=True) if share > 0]
        self.weights = torch.tensor([share for share in shares if share > 0])
        self.division = None if description.by is None else Division(description.by, len(members))
        self.confident = description.confidence and len(self.members) > 1
        self.mixes = description.average == "probabilities" and _is_distribution(task)
        self.task = task

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Targets:
        """Targets for one batch."""
        if self.division is not None:
            parts = self.division.parts(inputs)
            said = tuple(self.members[number].said(own, examples) for number, examples, own in parts)
            return Targets(self.division.together(said, self._at_same_places(said)), said=said)
        said = tuple(member.said(inputs) for member in self.members)
        given = self._at_same_places(said)
        weights = self._weights(given, inputs)
        if not self.mixes:
            return Targets(weighted_mean(given, weights), said=said)
        # A term brings the logits as they came to the student's places: once, and not by way of another teacher's.
        mixture = Mixture([each.logits for each in said], weights, self._sigmoid)
        return MixedTargets(mixture, said, Mixture(given, weights, self._sigmoid))

    @property
    def _sigmoid(self) -> bool:
        return self.task.default_loss is bernoulli_kl

    def _at_same_places(self, said: Sequence[Said]) -> list[torch.Tensor]:
        """The logits of all; maps of other sizes are brought to the first one's, and other differences refused."""
        if isinstance(self.task.layout, TwoHeads):
            said = [replace(each, logits=self.task.layout.prediction(each.logits)) for each in said]
        first = said[0]
        given = []
        for each in said:
            logits, expected = each.logits, len(first.logits) if each.examples is None else len(each.examples)
            if isinstance(self.task.layout, (Pixels, Depths)) and logits.shape[-1] == first.logits.shape[-1]:
                logits = self.task.matched(logits, first.logits)
            if logits.shape[1:] != first.logits.shape[1:] or len(logits) != expected:
                raise HfDistillError(
                    f"{first.who} gives logits of shape {tuple(first.logits.shape)} and {each.who} of shape "
                    f"{tuple(each.logits.shape)} for the same kind of batch; expected the same rows and the same "
                    "classes of all members of an ensemble. Give those that differ a run of their own."
                )
            given.append(logits)
        return given

    def _weights(self, given: Sequence[torch.Tensor], inputs: Mapping[str, Any]) -> torch.Tensor:
        """What each member weighs: `(members,)`, or `(..., members)` where it depends on the row."""
        if self.weights.device != given[0].device:
            self.weights = self.weights.to(given[0].device)
        if not self.confident:
            return self.weights
        rows = self.task.rows(inputs)
        if rows.labels is None:
            return self.weights
        # A label out of range is for the watch over faults to tell; on an accelerator it looks after this.
        labels = rows.labels.clamp(0, given[0].shape[-1] - 1)
        losses = [cross_entropy(self.task.layout.label_logits(logits, rows), labels, 0.0) for logits in given]
        weights = confidence_weights(torch.stack(losses, dim=-1), self.weights)
        return self._of_places(weights, rows).reshape(*given[0].shape[:-1], -1)

    def _of_places(self, weights: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """Weights of the rows that count, and the plain ones for those without a label and for all other places."""
        if rows.labelled.valid is not None:
            weights = torch.where(rows.labelled.valid.unsqueeze(-1), weights, self.weights)
        if rows.every.index is None:
            return weights
        return self.weights.repeat(rows.every.size, 1).index_copy(0, rows.every.index, weights)


def confidence_weights(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weights of each row's teachers, `(rows, teachers)`, from their losses on its label and their plain weights.

    `w_k (1 - softmax_k(losses)) / (K - 1)`, divided by its sum over the K teachers.
    Source: Zhang et al. (CA-MKD), arXiv 2201.00007, equation 4, there with equal `w`.
    """
    shares = (1 - losses.clamp(max=LARGEST_LOSS).softmax(-1)) / (losses.shape[-1] - 1)
    weighted = shares * weights
    return weighted / weighted.sum(-1, keepdim=True)


def check_task(ensemble: EnsembleTeacher, task: Task) -> None:
    """Refuse a task that several teachers, or such a choice among them, cannot teach."""
    if isinstance(task.layout, Queries):
        raise HfDistillError(
            f"An EnsembleTeacher came for {task.name}, whose queries are a set: those of several teachers are not the "
            "same objects, so that no mean is defined. Expected a single teacher."
        )
    of_rows = task.integer_labels and task.layout.labels_match and _is_distribution(task)
    two = isinstance(task.layout, TwoHeads)
    if ensemble.confidence and (not of_rows or two or task.default_loss is bernoulli_kl):
        raise HfDistillError(
            f"confidence=True weighs teachers by their cross-entropy on the label of each row, and the labels of "
            f"{task.name} are not one class a row of its logits; leave confidence out, or give weights."
        )
    if ensemble.by is not None and isinstance(task.layout, ImageTextPairs):
        raise HfDistillError(
            f"by={ensemble.by!r} came for {task.name}, where each pair is held against all others of its batch, so "
            "that a batch cannot be divided among teachers; leave by out."
        )


def _is_distribution(task: Task) -> bool:
    """Whether the logits are those of probabilities, and not numbers or coordinates."""
    return task.classes not in (Classes.VALUES, Classes.COORDINATES)
