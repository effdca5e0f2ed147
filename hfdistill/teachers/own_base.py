"""A teacher that is the student itself, without its adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

from hfdistill.sight import NOTHING, Seen, Sight, watched
from hfdistill.tasks.layouts import EXAMPLES, output_field
from hfdistill.teachers.live import Read
from hfdistill.teachers.targets import Targets


@dataclass(frozen=True)
class OwnBase:
    """The student's own frozen base as its teacher: `DistillationTrainer(..., teacher_model=OwnBase())`.

    The student needs adapters (`peft_config`, or a PeftModel); switched off, they leave the model as it was before the
    training. It costs no second model in memory.
    """


class WithAdapters(Protocol):
    """A model that can be run without its adapters: what of a PeftModel is used here."""

    base_model: Any

    @property
    def active_peft_config(self) -> Any:
        """The config of the adapters in use."""
        ...

    def disable_adapter(self) -> AbstractContextManager[None]:
        """A context in which the adapters do not exist."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Every module."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter."""
        ...

    def __call__(self, **inputs: Any) -> Any:
        """The model's outputs."""
        ...


class OwnBaseTeacher:
    """The student with its adapters switched off, run without gradient and without dropout.

    `student` gives the model when it is asked, so that a search that builds it anew needs no new teacher. `read`,
    `fields` and `sight` are those of `LiveTeacher`. Afterwards the student is as it was: adapters on, each module in
    the mode and each parameter with the `requires_grad` that it had.
    """

    def __init__(
        self,
        student: Callable[[], WithAdapters],
        read: Read = EXAMPLES.logits,
        fields: Sequence[str] = (),
        sight: Sight = NOTHING,
    ) -> None:
        self.student = student
        self.read = read
        self.fields = tuple(fields)
        self.sight = sight

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Targets:
        """Targets for one batch of the student's inputs."""
        seen = Seen(inputs)
        with base_of(self.student()) as base, watched(cast(nn.Module, base), self.sight, seen):
            outputs = seen.outputs = base(**inputs, **self.sight.arguments)
        fields = {name: output_field(outputs, name) for name in self.fields}
        return Targets(self.read(outputs, inputs), fields, seen if self.sight else None)


@contextmanager
def base_of(student: WithAdapters) -> Iterator[WithAdapters]:
    """The student without adapters and dropout, for as long as the context lasts."""
    # The flags themselves are set, and set back: eval() and train() may do more, and train() would put all in one mode.
    training = [module for module in student.modules() if module.training]
    learning = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    try:
        for module in training:
            module.training = False
        with _adapters_off(student):
            yield student
    finally:
        for module in training:
            module.training = True
        # Switching adapters on again makes all of them learn (PEFT 0.21), also those that were frozen.
        for parameter, learns in learning:
            if parameter.requires_grad != learns:
                parameter.requires_grad_(learns)


@contextmanager
def _adapters_off(student: WithAdapters) -> Iterator[None]:
    """The same as `student.disable_adapter()`, where possible without its survey of every layer.

    That survey takes two thirds of the time (PEFT 0.21), which is spent for each micro-batch.
    """
    config = student.active_peft_config
    if config.is_prompt_learning or config.is_adaption_prompt:
        with student.disable_adapter():
            yield
        return
    student.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        student.base_model.enable_adapter_layers()
