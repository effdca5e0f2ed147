"""Distillation through two language-model heads without their logits: from hidden states to losses and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfdistill.losses._checks import widened
from hfdistill.losses._fused_blocks import LOWEST, Student, Teacher, TopKBlock
from hfdistill.losses._fused_checks import checked_kind, checked_threshold, compared_classes, whole
from hfdistill.losses._fused_chunks import Job, fused, product_dtype
from hfdistill.losses._fused_inputs import Columns, Divergence, Head, Taught, TopK

UNLABELLED = -100


@dataclass(frozen=True, eq=False)
class FusedLoss:
    """`total`, with its gradient, and what it is made of: one value a row without gradient, 0 where none counts."""

    total: Tensor
    label: Tensor | None
    divergence: Tensor | None


def fused_linear(
    hidden: Tensor,
    head: Head,
    *,
    labels: Tensor | None = None,
    label_weight: float | Tensor = 1.0,
    label_smoothing: float = 0.0,
    teacher: Taught | TopK | None = None,
    divergence: Divergence | None = None,
    divergence_weight: float | Tensor = 1.0,
    rows: Tensor | None = None,
    chunk_bytes: int | None = None,
    wide_gradient: bool = False,
    compiled: bool = False,
    gradient_threshold: float | None = None,
) -> FusedLoss:
    """Cross-entropy and divergence of two heads from their hidden states, without a tensor of rows × classes.

    total = label_weight × sum of cross-entropies + divergence_weight × sum of divergences; the weights (a term's weight
    over the rows of its mean) are numbers or 0-d tensors without gradient. Gradients reach `hidden`, the head's weight
    and bias and what is added to it; they are made in the forward and multiplied in the backward, which runs once.
    Shapes: hidden `(rows, width)`, labels `(rows,)`, -100 where there is none; nats. `rows` are those whose divergence
    counts, a mask or indices, None: all; a row that counts nowhere is never projected, and to pick them, or labels
    alone, the host waits for a device (give rows that are picked already where that matters). With `columns` the first
    `len(columns)` classes are compared, else all; the cross-entropy is over all of the student's.
    `chunk_bytes` bounds the logits that exist at a time; `wide_gradient` adds up the gradient of a 16-bit weight in
    float32; `compiled` sweeps by torch.compile (CUDA, several threads); `gradient_threshold` approximates: `Thinned`.
    Domain: float32 or wider inside, whatever the dtype; under autocast its dtype is multiplied in.
    Errors: ValueError, TypeError for what does not fit; NotImplementedError for a trainable head in pieces (DTensor).
    Source: as in `LOSSES`; the gradient in the forward: Hsu et al., "Liger Kernel", arXiv 2410.10989, section 3.2.
    """
    kind = checked_kind(hidden, head, labels, teacher, divergence)
    labelled = None if labels is None else labels != UNLABELLED
    counted = None if kind is None else _mask(rows, len(hidden), hidden.device)
    picked = None if kind is not None and rows is None else _picked(labelled, counted)
    chosen = hidden if picked is None else hidden.index_select(0, picked)
    wide = widened(hidden[:0]).dtype

    def of_rows(tensor: Tensor) -> Tensor:
        return tensor if picked is None else tensor.index_select(0, picked)

    job = Job(
        student=Student(head.curve, _finite(head.bias, wide), compared_classes(head, teacher)),
        kind=kind,
        labels=None if labels is None else of_rows(labels.long().clamp(min=0)).unsqueeze(1),
        smoothing=label_smoothing,
        label_weight=None if labelled is None else _coefficients(of_rows(labelled), label_weight, wide),
        divergence_weight=None if counted is None else _coefficients(of_rows(counted), divergence_weight, wide),
        dtype=product_dtype(hidden, head.weight),
        chunk_bytes=chunk_bytes,
        compiled=compiled,
        wide_gradient=wide_gradient,
        gradient=torch.is_grad_enabled(),
        threshold=checked_threshold(gradient_threshold),
        **_teaching(teacher, of_rows, wide),
    )
    bias = None if head.bias is None else whole(head.bias)
    added = [part for inputs, factor in head.added for part in (inputs(chosen), whole(factor))]
    total, label, divergences = fused(chosen, whole(head.weight), bias, job, *added)
    return FusedLoss(total, _placed(label, labelled, picked), _placed(divergences, counted, picked))


def _mask(rows: Tensor | None, size: int, device: torch.device) -> Tensor:
    """The rows, a mask or indices, as a mask; None: all."""
    if rows is None:
        return torch.ones(size, dtype=torch.bool, device=device)
    if rows.dtype == torch.bool:
        return rows
    return torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, rows, True)


def _picked(*masks: Tensor | None) -> Tensor:
    """The indices of the rows that are in any of the masks."""
    return functools.reduce(torch.logical_or, [mask for mask in masks if mask is not None]).nonzero().squeeze(-1)


def _coefficients(counted: Tensor, weight: float | Tensor, dtype: torch.dtype) -> Tensor:
    """The weight where a row counts, else 0, as a column."""
    if isinstance(weight, Tensor):
        weight = weight.detach()
    return (counted * weight).to(dtype).unsqueeze(1)


def _placed(values: Tensor | None, counted: Tensor | None, picked: Tensor | None) -> Tensor | None:
    """Values of the picked rows at their places among all rows, 0 where none counts."""
    if values is None or counted is None:
        return None
    if picked is not None:
        values = values.new_zeros(len(counted)).index_copy_(0, picked, values)
    return values.where(counted, 0.0)


def _finite(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bias to compute with: one of -inf gives probability 0, and no NaN."""
    return None if bias is None else whole(bias.detach()).to(dtype).clamp(min=LOWEST)


def _teaching(teacher: Taught | TopK | None, of_rows: Callable[[Tensor], Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """What a job has to know of the teacher."""
    if not isinstance(teacher, Taught):
        kept = (
            None
            if teacher is None
            else TopKBlock(of_rows(teacher.indices).long(), of_rows(teacher.log_probabilities.detach()).to(dtype).exp())
        )
        return {"teacher": None, "teacher_hidden": None, "teacher_weight": None, "top_k": kept}
    head, columns = teacher.head, teacher.columns
    weight, bias = whole(head.weight.detach()), _finite(head.bias, dtype)
    width, picked, lacking = len(weight), None, None
    if columns is not None:
        columns = columns.to(weight.device)
        picked, lacking = columns.picked, columns.lacking
        if picked is None:
            width = columns.width
            weight = weight[:width]
            if bias is not None:
                bias = torch.nn.functional.pad(bias[:width], (0, width - len(bias[:width])))
    return {
        "teacher": Teacher(head.curve, bias, picked, lacking),
        "teacher_hidden": of_rows(teacher.hidden.detach()),
        "teacher_weight": weight,
        "top_k": None,
        "teacher_width": width,
        "teacher_dtype": product_dtype(teacher.hidden, weight),
    }


__all__ = ["Columns", "Divergence", "FusedLoss", "Head", "Taught", "TopK", "fused_linear"]
