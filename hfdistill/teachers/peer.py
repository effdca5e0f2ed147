"""A teacher that is a second student: each learns from the other, in the same optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.teachers.beside import read_model, write_model
from hfdistill.teachers.live import Read
from hfdistill.teachers.targets import Targets
from hfdistill.teachers.zero_shot import ZeroShotTeacher

ATTRIBUTE = "distillation_peer"
FILE = Path("distillation") / "peer.safetensors"
GIVEN = "distillation_peer_logits"


@dataclass(frozen=True, eq=False)
class Peer:
    """A second student that learns beside the first: `DistillationTrainer(..., teacher_model=Peer(other))`.

    `model` is a module, or a Hub id or folder that is loaded with the student's kind of head and its classes; it may be
    untrained, and of another architecture. Each of the two learns from the labels and from the other's softened
    outputs, which stand still for it: the loss is objective(student; peer) + objective(peer; student), with the same
    terms for both, TaskLoss and Logits. One optimizer steps both, with one learning rate and one clipped gradient. Logs
    carry the student's parts as `loss/<term>`, the peer's as `peer/loss/<term>`, and the sum of both as `loss`;
    evaluation scores the student, against the peer as it then is. Checkpoints hold the peer beside the student
    (distillation/peer.safetensors); `save_model()` writes the student, `save_peer(folder)` the peer. The two have to
    differ from the start: copies that draw no random numbers stay copies. Activation checkpointing in the arguments is
    the student's; the peer's is switched on in the model itself.
    Errors: HfDistillError, here for what cannot learn, and when the trainer is built for what does not fit.
    Source: Zhang et al., "Deep Mutual Learning", arXiv 1706.00384, there with temperature 1, weight 1 and steps taken
    by turns; the one step for both is ours.
    """

    model: nn.Module | str

    def __post_init__(self) -> None:
        if not isinstance(self.model, (str, nn.Module)) or isinstance(self.model, ZeroShotTeacher):
            raise HfDistillError(
                f"A {type(self.model).__name__} came to Peer; expected a Hub id, a folder or a module that can learn."
            )
        learns = isinstance(self.model, str) or any(each.requires_grad for each in self.model.parameters())
        if not learns:
            raise HfDistillError(
                "The model of a Peer has no parameter that requires a gradient, and a peer learns; expected "
                "model.requires_grad_(True), or the model itself as teacher_model if it is to stand still."
            )


class PeerTeacher:
    """The peer of a training.

    While a training runs it hangs on the student (`attached`), where the optimizer, gradient clipping and distributed
    wrappers find its parameters, and it runs inside the student's forward (`beside`), in the student's mode. Called, it
    gives targets as any other teacher does. `model` is the bare module, `run` the same one as it is called; `read`
    takes the logits from its outputs, `columns` brings its classes into the student's order.
    """

    def __init__(self, model: nn.Module, run: nn.Module, read: Read, columns: torch.Tensor | None = None) -> None:
        self.model = model
        self.run = run
        self.read = read
        self.columns = columns

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Targets:
        """Targets for one batch of its inputs, without gradient and without dropout."""
        if self.model.training:
            self.model.eval()
        return Targets(self.logits(inputs))

    def logits(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Its logits for such inputs, with their gradient."""
        logits = self.read(self.run(**inputs), inputs)
        if self.columns is None:
            return logits
        if self.columns.device != logits.device:
            self.columns = self.columns.to(logits.device)
        return logits.index_select(-1, self.columns)

    @contextmanager
    def attached(self, student: nn.Module) -> Iterator[None]:
        """Make it a submodule of the student while the block runs."""
        if ATTRIBUTE in dict(student.named_children()):
            raise HfDistillError("The student has the peer of another training; expected one training at a time.")
        student.add_module(ATTRIBUTE, self.model)
        try:
            yield
        finally:
            delattr(student, ATTRIBUTE)

    @contextmanager
    def beside(self, student: nn.Module, inputs: Mapping[str, Any]) -> Iterator[PeerForward]:
        """Run it inside the forward of the bare student within the block, on inputs of its own.

        Inside, because DistributedDataParallel looks from the outputs for the parameters that a step uses.
        """
        forward = PeerForward(self, inputs)

        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            forward.logits = self.logits(inputs)
            return {**output, GIVEN: forward.logits} if isinstance(output, Mapping) else output

        handle = student.register_forward_hook(hook)
        try:
            yield forward
        finally:
            handle.remove()

    def save(self, checkpoint: Path) -> None:
        """Write its weights beside a checkpoint."""
        write_model(checkpoint / FILE, self.model)

    def load(self, checkpoint: Path) -> None:
        """Read them from a checkpoint. Errors: HfDistillError where they are missing or of another model."""
        if read_model(checkpoint / FILE, self.model) is None:
            raise HfDistillError(
                f"The checkpoint {checkpoint} holds no weights of this peer ({FILE}); expected one that was saved with "
                "Peer and a model of the same architecture. Start anew."
            )


@dataclass
class PeerForward:
    """What a peer has said of one micro-batch."""

    teacher: PeerTeacher
    inputs: Mapping[str, Any]
    logits: torch.Tensor | None = None

    def targets(self) -> Targets:
        """Its logits as targets, and beside them the same with their gradient."""
        # A compiled student does not call hooks that are newer than itself.
        logits = self.teacher.logits(self.inputs) if self.logits is None else self.logits
        return Targets(logits.detach(), learning=logits)
