"""Deep mutual learning: what two students have to have in common, and the step as the second of them sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from hfdistill import contract
from hfdistill.errors import HfDistillError
from hfdistill.knowledge import Logits, StepContext, TaskLoss
from hfdistill.objective import Objective
from hfdistill.schedules import is_used
from hfdistill.tasks import Classes, Queries, Task, TwoHeads
from hfdistill.teachers import Targets


def turned(context: StepContext) -> StepContext | None:
    """The micro-batch as the peer sees it, with the student for its teacher; None where no peer learns."""
    learning = None if context.targets is None else context.targets.learning
    if learning is None:
        return None
    return replace(context, logits=learning, targets=Targets(context.logits.detach()), features=None)


def check_peers(student: nn.Module, peer: nn.Module, task: Task, objective: Objective) -> None:
    """Refuse terms, heads and classes with which two students cannot learn from each other.

    Errors: HfDistillError.
    """
    others = [term for term in objective.active if not isinstance(term, (TaskLoss, Logits))]
    if others:
        raise HfDistillError(
            f"{others[0]!r} came beside a Peer, and two students learn from labels and from each other's logits; "
            "expected TaskLoss and Logits terms alone."
        )
    if not any(isinstance(term, TaskLoss) and is_used(term.weight) for term in objective.active):
        raise HfDistillError(
            f"{objective!r} came beside a Peer, and without labels two students could only agree with each other; "
            "expected a TaskLoss with a weight above 0 (alpha below 1)."
        )
    if task.loss_inside or isinstance(task.layout, (Queries, TwoHeads)):
        raise HfDistillError(
            f"A Peer came for {task.name}, where the loss of the labels is the model's own or its heads learn from "
            "different things; expected a head whose loss follows from its logits, or an ordinary teacher."
        )
    counts = [contract.class_count(model, task) for model in (student, peer)]
    if task.classes is Classes.NAMED and None not in counts and counts[0] != counts[1]:
        raise HfDistillError(
            f"The student has {counts[0]} classes and its peer {counts[1]}; expected the same ones, in any order, as "
            "both learn from the labels. Build both with the same id2label."
        )


def check_trainable_together(
    student: nn.Module, peer: nn.Module, optimized: Iterable[nn.Parameter] | None, processes: int
) -> None:
    """Refuse an optimizer of the user's that does not know the peer, and plain modules on several processes.

    `optimized` are the parameters of such an optimizer, None where there is none. Errors: HfDistillError.
    """
    if optimized is not None:
        known = set(map(id, optimized))
        if not all(id(each) in known for each in peer.parameters() if each.requires_grad):
            raise HfDistillError(
                "An optimizer came in optimizers=, and it lacks parameters of the peer, which would learn nothing; "
                "expected one over [*student.parameters(), *peer.parameters()], or optim= in the arguments."
            )
    if processes > 1 and not isinstance(contract.bare(student), PreTrainedModel):
        raise HfDistillError(
            f"A {type(student).__name__} came with a Peer on {processes} processes, which find the peer by way of the "
            "outputs of a Transformers model; expected a PreTrainedModel, or one process."
        )
