"""The objective: a weighted sum of terms, and the only place that divides."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hfdistill.boxes import Boxes, Masks
from hfdistill.errors import HfDistillError
from hfdistill.features import FeatureTerm
from hfdistill.knowledge import Comparison, Logits, StepContext, TaskLoss, Term
from hfdistill.rows import RowCounts
from hfdistill.schedules import Auto, Schedule, is_used
from hfdistill.tasks import Queries, Task


class Objective:
    """A weighted sum of terms; each is a mean over its own rows of the whole optimizer step.

    Because the denominator counts the rows of all micro-batches and ranks, the update does not depend on how a global
    batch is cut. Names must differ, since they name the parts in the logs.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        names = [term.name for term in self.terms]
        if not names:
            raise HfDistillError(
                "An objective without terms came; expected at least one, such as TaskLoss() or Logits()."
            )
        if len(set(names)) < len(names):
            raise HfDistillError(f"Terms with the same name came ({', '.join(names)}); give each its own name=.")
        if not any(is_used(term.weight) for term in self.terms):
            raise HfDistillError("All weights are 0; expected at least one term with a positive weight.")

    def __repr__(self) -> str:
        return f"Objective([{', '.join(map(repr, self.terms))}])"

    @classmethod
    def default(cls, task: Task, alpha: float, temperature: float) -> Objective:
        """`(1 - alpha) * task loss + alpha * T^2 * KL(teacher || student)` (Hinton et al. 2015, section 2).

        `alpha` is the teacher's share. Multi-label heads take the Bernoulli KL; regression takes the squared error
        between the two outputs, to which no temperature applies. A task without labels learns from the teacher alone.
        To a set of queries come `alpha` times its boxes and its masks.
        """
        tempered = "temperature" in inspect.signature(task.default_loss).parameters
        options: dict[str, Any] = {"temperature": temperature} if tempered else {}
        if not task.labelled:
            return cls([Logits(task.default_loss, **options)])
        terms: list[Term] = [TaskLoss(weight=1 - alpha), Logits(task.default_loss, weight=alpha, **options)]
        if isinstance(task.layout, Queries):
            terms += [Boxes(weight=alpha)] if task.layout.boxes is not None else []
            terms += [Masks(weight=alpha)] if task.layout.masks is not None else []
        return cls(terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term with a positive weight asks for targets."""
        return any(term.needs_teacher and is_used(term.weight) for term in self.terms)

    @property
    def fields(self) -> tuple[str, ...]:
        """The outputs beside the logits that the terms read of both models."""
        return tuple(dict.fromkeys(name for term in self.active for name in term.fields))

    @property
    def active(self) -> tuple[Term, ...]:
        """The terms that are computed: those with a positive weight, and TaskLoss, whose value is reported always."""
        return tuple(term for term in self.terms if is_used(term.weight) or not term.needs_teacher)

    def check(self, num_classes: int | None, task: Task) -> None:
        """Refuse, before training, terms that are dead for so many classes or do not fit the task."""
        for term in self.active:
            term.check(num_classes, task)

    def check_models(self, student: nn.Module, teacher: nn.Module, task: Task) -> None:
        """Refuse, before training, two models whose outputs a term cannot compare."""
        for term in self.active:
            if isinstance(term, Comparison):
                term.check_models(student, teacher, task)

    def own_counts(self, batches: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, torch.Tensor]:
        """The rows in some micro-batches of each term that has rows of its own."""
        terms = [term for term in self.active if isinstance(term, FeatureTerm)]
        return {term.name: torch.stack([term.count(batch).to(device) for batch in batches]).sum() for term in terms}

    def __call__(self, context: StepContext, counts: RowCounts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The total, and each term's unweighted part: this micro-batch's share of the step's means."""
        fused = context.fused
        total: torch.Tensor | None = None if fused is None else fused.total
        parts = self.parts(context, counts)
        made = {} if fused is None else fused.parts
        for term in self.active:
            if is_used(term.weight) and term.name in parts and term.name not in made:
                weight = weight_at(term, context.epoch, context.balanced)
                weighted = parts[term.name] if weight == 1 else weight * parts[term.name]
                total = weighted if total is None else total + weighted
        if total is None:
            raise HfDistillError(
                f"A batch without labels came, and every term of {self!r} needs them; expected the key 'labels', or a "
                "term that learns from the teacher alone, such as Logits()."
            )
        return total, {name: part.detach() for name, part in parts.items()}

    def parts(self, context: StepContext, counts: RowCounts) -> dict[str, torch.Tensor]:
        """Each term's unweighted part with its graph; terms that need labels are left out of a batch without."""
        parts: dict[str, torch.Tensor] = {} if context.fused is None else dict(context.fused.parts)
        for term in self.active:
            if term.name in parts:
                continue
            if term.needs_labels and context.rows.labels is None:
                continue
            values = term.values(context)
            own_rows = isinstance(term, FeatureTerm)
            summed = values.sum() if own_rows else context.rows.for_term(term.needs_labels).total(values)
            # At least 1, so that a step without rows gives 0, not NaN.
            parts[term.name] = summed / counts.for_term(term.name, term.needs_labels).clamp(min=1)
        return parts


def weight_at(term: Term, epoch: float, balanced: Mapping[str, float]) -> float:
    """The weight of a term after so many epochs; one that is yet to be measured counts as 1."""
    weight = term.weight
    if isinstance(weight, Auto):
        return balanced.get(term.name, 1.0)
    return weight.at(epoch) if isinstance(weight, Schedule) else weight
