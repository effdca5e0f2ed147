"""A teacher that is a model in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import Any

import torch
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.sight import NOTHING, Seen, Sight, unwrapped, watched
from hfdistill.tasks.layouts import EXAMPLES, first_tensor, output_field
from hfdistill.teachers.copies import is_offloaded
from hfdistill.teachers.crossing import brought, brought_back
from hfdistill.teachers.portions import Portions
from hfdistill.teachers.targets import Targets

logger = logging.getLogger(__name__)

Read = Callable[[Any, Mapping[str, Any]], torch.Tensor]

Replaced = Callable[[Callable[[torch.Tensor], torch.Tensor]], AbstractContextManager[None]]
"""Puts a function of the hidden states in the place of a model's head, within a block."""


class LiveTeacher:
    """A frozen model, run without gradient and in eval mode.

    It is deliberately no `nn.Module`: held by a trainer beside the student it can enter neither the student's
    state_dict, nor the optimizer, nor be put in train mode along with the student.
    `columns` picks and orders the teacher's classes as the student has them; None keeps them as they are. `read` takes
    the logits from the model's outputs and inputs, as the task does. `fields` names further outputs to give, `sight`
    what of the model's insides. `portions` says how many rows it reads at a time, and `arguments` are given to its
    forward beside the inputs. It may compute on another device and in another dtype than the batch; targets come back
    to the batch's device.
    """

    def __init__(
        self,
        model: nn.Module,
        columns: torch.Tensor | None = None,
        read: Read = EXAMPLES.logits,
        fields: Sequence[str] = (),
        sight: Sight = NOTHING,
        portions: Portions | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        model.requires_grad_(False)
        model.eval()
        self.model = model
        self.columns = columns
        self.read = read
        self.fields = tuple(fields)
        self.sight = sight
        self.portions = portions or Portions()
        self.arguments = dict(arguments or {})
        self._replaced: Replaced | None = None
        self._offloaded = is_offloaded(model)
        self._told = False

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Targets:
        """Targets for one batch of the teacher's inputs."""
        if self.model.training:
            self.model.eval()
        if self.sight.scores and self.portions.size is not None:
            raise HfDistillError(
                f"The teacher reads {self.portions.size} rows at a time, and a term compares attention scores, which "
                "are noted for a whole batch; expected one of the two. Leave teacher_batch_size out."
            )
        return self.portions(self._of_rows, inputs)

    def without_head(self, replaced: Replaced) -> LiveTeacher:
        """The same model, whose head computes nothing: instead of logits it gives the hidden states before it."""
        other = copy(self)
        other.columns, other._replaced = None, replaced
        return other

    def _of_rows(self, inputs: Mapping[str, Any]) -> Targets:
        bare = unwrapped(self.model)
        there = brought(inputs, bare, self._offloaded)
        seen = Seen(there)
        with watched(bare, self.sight, seen), self._head() as states:
            outputs = seen.outputs = self._runs(bare)(**there, **self.sight.arguments, **self.arguments)
        logits = self.read(outputs, there) if states is None else states.pop()
        if self.columns is not None:
            if self.columns.device != logits.device:
                self.columns = self.columns.to(logits.device)
            logits = logits.index_select(-1, self.columns)
        fields = {name: output_field(outputs, name) for name in self.fields}
        targets = Targets(logits, fields, seen if self.sight else None)
        home = first_tensor(inputs).device
        return targets if logits.device == home else brought_back(targets, inputs, home)

    @contextmanager
    def _head(self) -> Iterator[list[torch.Tensor] | None]:
        """The states that a replaced head was given; None where the head computes its logits."""
        if self._replaced is None:
            yield None
            return
        states: list[torch.Tensor] = []

        def nothing(given: torch.Tensor) -> torch.Tensor:
            states.append(given)
            return given.new_zeros(*given.shape[:-1], 0)

        with self._replaced(nothing):
            yield states

    def _runs(self, bare: nn.Module) -> nn.Module:
        """The model as it is called: a compiled one as it was before where a term looks inside, by hooks."""
        if bare is self.model or not self.sight:
            return self.model
        if not self._told:
            logger.info("The teacher is not compiled: a term looks inside of it, by hooks that a compiled model skips.")
            self._told = True
        return bare
