"""A teacher that is the moving average of the student's own weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.tasks.layouts import EXAMPLES
from hfdistill.teachers.beside import read_model, write_model
from hfdistill.teachers.live import LiveTeacher, Read

FILE = Path("distillation") / "moving_average.safetensors"
UPDATES = "updates"


@dataclass(frozen=True)
class EmaTeacher:
    """The moving average of the student's weights as its teacher: `teacher_model=EmaTeacher(decay=0.999)`.

    After optimizer step t = 1, 2, ...: w' <- d w' + (1 - d) w, d = min(decay, t / (t + 9)), so that the first weights
    count little; statistics of batch normalisation are taken as they are. The average starts as the student does. It
    lies in checkpoints beside the student, not in what is exported. Something has to make the two differ: dropout, or
    views of their own.
    Domain: 0 <= decay < 1. Errors: HfDistillError outside of it.
    Source: Tarvainen and Valpola, "Mean teachers are better role models", arXiv 1703.01780, section 2.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise HfDistillError(f"EmaTeacher(decay={self.decay}) came; expected 0 to below 1, such as 0.999.")


class AverageTeacher(LiveTeacher):
    """The average, kept as a model of its own beside the student."""

    def __init__(
        self, student: nn.Module, decay: float, read: Read = EXAMPLES.logits, fields: Sequence[str] = ()
    ) -> None:
        super().__init__(copy.deepcopy(student), None, read, fields)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def restart(self, student: nn.Module) -> None:
        """Begin again with the student's present weights."""
        self.updates = 0
        self._follow(student, keep=0.0)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        self.updates += 1
        self._follow(student, keep=min(self.decay, self.updates / (self.updates + 9)))

    def _follow(self, student: nn.Module, keep: float) -> None:
        # By name: while a training runs the student may hold more, such as projectors.
        parameters, buffers = dict(student.named_parameters()), dict(student.named_buffers())
        for name, average in self.model.named_parameters():
            average.lerp_(parameters[name].to(average.dtype), 1 - keep)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])

    def save(self, checkpoint: Path) -> None:
        """Write the average beside a checkpoint."""
        write_model(checkpoint / FILE, self.model, {UPDATES: torch.tensor(self.updates)})

    def load(self, checkpoint: Path) -> None:
        """Read it from a checkpoint. Errors: HfDistillError where it is missing or of another model."""
        saved = read_model(checkpoint / FILE, self.model, UPDATES)
        if saved is None:
            raise HfDistillError(
                f"The checkpoint {checkpoint} holds no moving average of this student ({FILE}); expected one that was "
                "saved with EmaTeacher and the same student. Start anew."
            )
        self.updates = int(saved[UPDATES])
