"""Faults in a batch that no construction check can foresee: NaN teacher logits, labels out of range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hfdistill.errors import HfDistillError
from hfdistill.rows import BatchRows
from hfdistill.teachers import Targets

TEACHER, LABELS = "The teacher", "labels"
"""Where a fault can come from; a teacher of several has a name of its own."""


@contextmanager
def lookups_explained(inputs: Mapping[str, Any]) -> Iterator[None]:
    """Say which ids were there when a model looked up one that it has no row for, which torch does not say."""
    try:
        yield
    except IndexError as error:
        if "index out of range" not in str(error):
            raise
        integers = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor) and value.numel()}
        highest = [f"{key} {int(value.max())}" for key, value in integers.items() if value.dtype == torch.long]
        raise HfDistillError(
            f"A model has no row for an id of the batch (the highest: {', '.join(highest)}); expected ids below the "
            "sizes of its embeddings. Is processing_class the tokenizer of this model, has the model been given rows "
            "for added tokens (resize_token_embeddings), and are the texts cut to its longest input?"
        ) from error


class FaultWatch:
    """Stops training at the first batch with a fault, and names it.

    On a CPU each batch is looked at as it comes. On an accelerator the look would make the host wait, so the number of
    the first bad batch is kept there and read when the trainer logs, evaluates or saves; nothing is saved after it.
    """

    def __init__(self) -> None:
        self.first_bad: dict[str, torch.Tensor] = {}

    def targets(self, targets: Targets, where: str, step: int) -> None:
        """Look at what a teacher gives, or each of several."""
        for said in targets.said:
            self.teacher_logits(said.logits, where, step, said.who, said.examples)
        if not targets.said:
            self.teacher_logits(targets.logits, where, step)

    def teacher_logits(
        self, logits: torch.Tensor, where: str, step: int, who: str = TEACHER, examples: Sequence[int] | None = None
    ) -> None:
        """Look for NaN and +inf; -inf is how a teacher says that a class is impossible.

        `examples` are the places of the rows in their batch, where those are not all of it.
        """
        bad = ~(logits.detach().amax() < float("inf"))  # true for NaN and +inf
        if logits.device.type == "cpu":
            if bad:
                rows = (torch.isnan(logits) | torch.isposinf(logits)).flatten(1).any(1).nonzero().flatten().tolist()
                of = f"{rows[:8]} of {len(logits)}" if examples is None else str([examples[row] for row in rows[:8]])
                raise self._teacher_error(f"{where}, rows {of}", who)
            return
        self._remember(who, bad, step)

    def labels(self, rows: BatchRows, classes: int, where: str, step: int) -> None:
        """Look for class indices outside `[0, classes)` other than -100."""
        if rows.labels is None:
            return
        outside = (rows.labels < 0) | (rows.labels >= classes)
        bad = outside.any()
        if rows.labels.device.type == "cpu":
            if bad:
                raise self._label_error(f"label {int(rows.labels[outside][0])} in {where}", classes)
            return
        rows.labels.clamp_(min=0, max=classes - 1)
        self._remember(LABELS, bad, step)

    def check(self) -> None:
        """Raise what an accelerator remembered; this is where the host waits."""
        for kind, place in self.first_bad.items():
            step = int(place.item())
            if step >= 0 and kind != LABELS:
                raise self._teacher_error(f"optimizer step {step}", kind)
            if step >= 0:
                raise self._label_error(f"a label at optimizer step {step}", None)

    def _remember(self, kind: str, bad: torch.Tensor, step: int) -> None:
        before = self.first_bad.get(kind, torch.full((), -1, device=bad.device))
        self.first_bad[kind] = torch.where(bad & (before < 0), step, before)

    @staticmethod
    def _teacher_error(where: str, who: str) -> HfDistillError:
        return HfDistillError(
            f"{who} gave NaN or infinite logits in {where}; training stopped before they reached a checkpoint. "
            "Look at these examples, or run the teacher in float32 (teacher_dtype='float32')."
        )

    @staticmethod
    def _label_error(where: str, classes: int | None) -> HfDistillError:
        expected = "below the number of classes" if classes is None else f"from 0 to {classes - 1}"
        return HfDistillError(
            f"There is {where}; expected class indices {expected}, or -100 for an unlabelled row. Check the label "
            "column and the number of the student's classes (num_labels, vocab_size)."
        )
