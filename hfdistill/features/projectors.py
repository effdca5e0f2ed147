"""Projectors: trained layers that bring the student's features to the teacher's width, and no part of the student.

Whatever else learns beside the student, such as a temperature, goes the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import nn

from hfdistill._atomic import write_tensors
from hfdistill.errors import HfDistillError
from hfdistill.shards import load_whole, whole_state
from hfdistill.teachers.peer import ATTRIBUTE as PEER

ATTRIBUTE = "distillation_projectors"
ATTACHED = {ATTRIBUTE, PEER}
"""The names of whatever hangs on a student while a training runs."""
FOLDER, FILE = "distillation", "projectors.safetensors"


class Projector(nn.Module):
    """A linear map of each position (on maps: a 1x1 convolution), with layer normalisation behind it by choice."""

    def __init__(self, student: int, teacher: int, *, channels_first: bool, norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(student, teacher)
        self.norm = nn.LayerNorm(teacher) if norm else nn.Identity()
        self.channels_first = channels_first

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The features with the teacher's width, in the same layout."""
        if not self.channels_first:
            return self.norm(self.linear(features))  # type: ignore[no-any-return]
        return self.norm(self.linear(features.movedim(1, -1))).movedim(-1, 1)  # type: ignore[no-any-return]


class ModulePlan(Protocol):
    """A module to be made that learns beside the student."""

    def module(self) -> nn.Module:
        """The module, its weights drawn from torch's generator."""
        ...


@dataclass(frozen=True)
class Plan:
    """A projector to be made: widths of student and teacher, and the student's layout."""

    student: int
    teacher: int
    channels_first: bool
    norm: bool

    def module(self) -> Projector:
        """The projector."""
        return Projector(self.student, self.teacher, channels_first=self.channels_first, norm=self.norm)


class Projectors:
    """All projectors of a training, by name, and the `others` that learn beside the student.

    While a training runs they hang on the student (`attached`), where the optimizer, gradient clipping and every
    distributed wrapper find them as they find the student's own parameters. Checkpoints hold them beside the student,
    and they are taken off when the training ends.
    """

    def __init__(
        self,
        plans: Mapping[str, ModulePlan],
        seed: int,
        device: torch.device,
        others: Mapping[str, nn.Module] | None = None,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = {name: plan.module() for name, plan in plans.items()}
        self.modules = nn.ModuleDict({**made, **(others or {})}).to(device)

    def __len__(self) -> int:
        return len(self.modules)

    def __contains__(self, name: str) -> bool:
        return name in self.modules

    def __call__(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """One projector's output."""
        projected: torch.Tensor = self.modules[name](features)
        return projected

    @contextmanager
    def attached(self, student: nn.Module) -> Iterator[None]:
        """Make them submodules of the student while the block runs."""
        if not len(self.modules):
            yield
            return
        if ATTRIBUTE in dict(student.named_children()):
            raise HfDistillError("The student holds projectors of another training; expected one training at a time.")
        student.add_module(ATTRIBUTE, self.modules)
        try:
            yield
        finally:
            delattr(student, ATTRIBUTE)

    def save(self, checkpoint: Path, *, writes: bool = True) -> None:
        """Write them whole beside a checkpoint; all processes have to call it, and those that `writes` says write."""
        tensors = whole_state(self.modules)
        if writes:
            (checkpoint / FOLDER).mkdir(parents=True, exist_ok=True)
            write_tensors(checkpoint / FOLDER / FILE, tensors)

    def load(self, checkpoint: Path) -> None:
        """Read them from a checkpoint, strictly; all processes have to call it.

        Errors: HfDistillError where they are missing or of another shape.
        """
        file = checkpoint / FOLDER / FILE
        if not file.is_file():
            raise HfDistillError(
                f"The checkpoint {checkpoint} holds no projectors ({FOLDER}/{FILE}), and the objective trains "
                f"{len(self.modules)}; expected one that was saved with this objective. Start anew."
            )
        try:
            load_whole(self.modules, load_file(file))
        except RuntimeError as error:
            raise HfDistillError(
                f"The projectors of {checkpoint} are not those of this objective ({error}); expected the same terms "
                "and layers. Start anew."
            ) from error


def without_projectors(state: Mapping[str, Any]) -> dict[str, Any]:
    """A student's state without what was attached to it."""
    return {name: value for name, value in state.items() if not ATTACHED & set(name.split("."))}
