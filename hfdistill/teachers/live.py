"""A teacher that is a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hfdistill.sight import NOTHING, Seen, Sight, unwrapped, watched
from hfdistill.tasks.layouts import EXAMPLES, output_field
from hfdistill.teachers.targets import Targets

Read = Callable[[Any, Mapping[str, Any]], torch.Tensor]


class LiveTeacher:
    """A frozen model, run without gradient and in eval mode.

    It is deliberately no `nn.Module`: held by a trainer beside the student it can enter neither the student's
    state_dict, nor the optimizer, nor be put in train mode along with the student.
    `columns` picks and orders the teacher's classes as the student has them; None keeps them as they are. `read` takes
    the logits from the model's outputs and inputs, as the task does. `fields` names further outputs to give, `sight`
    what of the model's insides.
    """

    def __init__(
        self,
        model: nn.Module,
        columns: torch.Tensor | None = None,
        read: Read = EXAMPLES.logits,
        fields: Sequence[str] = (),
        sight: Sight = NOTHING,
    ) -> None:
        model.requires_grad_(False)
        model.eval()
        self.model = model
        self.columns = columns
        self.read = read
        self.fields = tuple(fields)
        self.sight = sight

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Targets:
        """Targets for one batch of the teacher's inputs."""
        if self.model.training:
            self.model.eval()
        seen = Seen(inputs)
        with watched(unwrapped(self.model), self.sight, seen):
            outputs = seen.outputs = self.model(**inputs, **self.sight.arguments)
        logits = self.read(outputs, inputs)
        if self.columns is not None:
            if self.columns.device != logits.device:
                self.columns = self.columns.to(logits.device)
            logits = logits.index_select(-1, self.columns)
        fields = {name: output_field(outputs, name) for name in self.fields}
        return Targets(logits, fields, seen if self.sight else None)
