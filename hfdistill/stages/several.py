"""Several teachers of a recipe as one model: what stands before an exam, and what teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hfdistill.contract import aligned_classes, class_names
from hfdistill.data import LabelSpace
from hfdistill.data.labels import WHOLE_TASKS
from hfdistill.data.regions import TASK as SEGMENTATION
from hfdistill.errors import HfDistillError
from hfdistill.recipe import RecipeError, TeacherSection
from hfdistill.tasks import TASKS
from hfdistill.tasks.pixels import Pixels
from hfdistill.teachers import EnsembleTeacher, LiveEnsemble, LiveMember, LiveTeacher
from hfdistill.teachers.ensemble import check_task
from hfdistill.views import accepted_names

SPOKEN = (*WHOLE_TASKS, "causal_lm", "masked_lm", "token_classification", SEGMENTATION)
"""Kinds of problems over which recipes let several teachers speak."""


class SeveralTeachers(nn.Module):
    """Models that speak together, in the order of the data's classes: of examples, tokens or pixels.

    Its own logits are those of the mean at temperature 1, with the plain weights, since an example has no label here;
    `description` is what teaches, at each term's temperature and with weights by confidence where they are asked for.
    Errors: RecipeError for data of another kind, HfDistillError for a member of other classes.
    """

    def __init__(self, members: Sequence[PreTrainedModel], section: TeacherSection, space: LabelSpace) -> None:
        super().__init__()
        if space.problem_type not in SPOKEN:
            raise RecipeError(
                f"teacher.ensemble: recipes have several teachers for labels of examples, tokens and pixels, and the "
                f"data are for {space.problem_type}; expected a single teacher.model, or Python (EnsembleTeacher)."
            )
        self.members = nn.ModuleList(members)
        self.description = EnsembleTeacher(list(members), section.weights, section.average, section.confidence)
        task = TASKS[space.problem_type]
        check_task(self.description, task)
        live = []
        for place, member in enumerate(members):
            who = f"teacher.ensemble.{place} ({member.config._name_or_path})"
            try:
                columns = aligned_classes(space.names or None, class_names(member)).tensor()
            except HfDistillError as error:
                raise HfDistillError(f"{who}: {error}") from error
            live.append(LiveMember(who, LiveTeacher(member, columns, task.bound(member).logits), _Reader(member)))
        self._together = LiveEnsemble(live, replace(self.description, confidence=False), task)
        self._classes_first = isinstance(task.layout, Pixels)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def forward(self, **inputs: Any) -> SequenceClassifierOutput:
        """Logits where each member has its own: `(examples, classes)`, `(examples, tokens, classes)` or maps."""
        logits = self._together(inputs).logits
        return SequenceClassifierOutput(logits=logits.movedim(-1, 1) if self._classes_first else logits)


class _Reader:
    """What a member reads of a batch."""

    def __init__(self, member: nn.Module) -> None:
        self.names = accepted_names(member)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in inputs.items() if not self.names or key in self.names}
