"""A teacher of other classes than the student's: several of its classes are one of the student's, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.functional import softplus

from hfdistill.errors import HfDistillError
from hfdistill.tasks.label_losses import wide
from hfdistill.teachers.live import Read

ClassMap = Mapping[str, str | Sequence[str]]
"""For each class of the student the class of the teacher that means the same, or several, all by name."""

Unmapped = Literal["refuse", "ignore"]

# Below this sum of odds the sum's own logarithm is exact in float32, and expm1 would lose its digits.
FEW_ODDS = 1e-6


@dataclass(frozen=True, eq=False)
class MappedTeacher:
    """A teacher with other classes, mapped by names: `DistillationTrainer(..., teacher_model=MappedTeacher(...))`.

    `model` is a Hub id, a folder or a module; `classes` names for each class of the student the class of the teacher
    that means the same, or several: `{"cat": ["tabby, tabby cat", "Persian cat"], "car": "sports car"}`. Upper and
    lower case and underscores do not matter; without `classes` equal names mean the same. The probability of a
    student's class is the sum of the teacher's over its classes at temperature 1 (logit: logsumexp), renormalised over
    those that are mapped; for labels that are true or false each for itself it is 1 - prod_i (1 - p_i).
    With `unmapped="ignore"` both are compared over the student's mapped classes alone, and the others learn from
    labels: an old model as the teacher of a student that learns further classes without the old data (Li and Hoiem,
    "Learning without Forgetting", arXiv 1606.09282, whose term is forward_kl at T = 2).
    Errors: HfDistillError, when the trainer is built, for names that a model does not know (with the nearest that it
    does), classes of the student that are not mapped, and tasks whose classes have no names.
    """

    model: nn.Module | str
    classes: ClassMap | None = None
    unmapped: Unmapped = "refuse"

    def __post_init__(self) -> None:
        if self.unmapped not in get_args(Unmapped):
            raise HfDistillError(f"unmapped={self.unmapped!r}; expected 'refuse' or 'ignore'.")


class MappedLogits:
    """Reads a teacher's logits as `read` does, then brings them to the student's classes.

    `groups[i]` are the teacher's columns of the student's class i. With `sigmoid` each class is true or false for
    itself.
    """

    def __init__(self, read: Read, groups: Sequence[Sequence[int]], sigmoid: bool) -> None:
        self.read = read
        self.sigmoid = sigmoid
        self.most = max(len(group) for group in groups)
        # Shorter groups are filled up with their first column, which is masked there.
        self.columns = torch.tensor([column for group in groups for column in self._filled(group)])
        self.filling = torch.tensor([[place >= len(group) for place in range(self.most)] for group in groups])

    def _filled(self, group: Sequence[int]) -> list[int]:
        return [*group, *[group[0]] * (self.most - len(group))]

    def __call__(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The logits, `(..., classes of the student)`."""
        logits = self.read(outputs, inputs)
        if self.columns.device != logits.device:
            self.columns, self.filling = self.columns.to(logits.device), self.filling.to(logits.device)
        picked = logits.index_select(-1, self.columns)
        if self.most == 1:
            return picked
        each = wide(picked.reshape(*picked.shape[:-1], -1, self.most)).masked_fill(self.filling, -torch.inf)
        return any_of(each) if self.sigmoid else each.logsumexp(-1)


def any_of(logits: torch.Tensor) -> torch.Tensor:
    """The logit of `1 - prod_i (1 - sigmoid(z_i))` over the last axis: that at least one of several is true."""
    # With odds e^z: 1 + odds = prod_i (1 + e^z_i).
    odds = softplus(logits).sum(-1)
    some = odds.clamp(min=FEW_ODDS)
    return torch.where(odds > FEW_ODDS, some + (-torch.expm1(-some)).log(), logits.logsumexp(-1))
