"""Blocks of logits become values and gradients where they lie: the element-wise half of the fused head.

All functions here write into the tensors they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.losses._fused_blocks import (
    IMPOSSIBLE,
    LABEL_SOFTMAX,
    LOWEST,
    RATIO,
    SLOPE,
    STUDENT_SOFTMAX,
    TEACHER_SOFTMAX,
    WORK,
    Kind,
    RowBlock,
    Scratch,
    Student,
    Teacher,
    TopKBlock,
    curved,
    softmax_into,
)
from hfdistill.losses._fused_top_k import top_k_into


def label_values(logits: Tensor, softmax: Tensor, rows: RowBlock) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row, and log sum exp, both columns; writes the softmax over all classes."""
    assert rows.labels is not None
    normaliser = softmax_into(softmax, logits)
    values = normaliser - logits.gather(1, rows.labels)
    if rows.smoothing:
        possible = logits > IMPOSSIBLE
        mean = torch.where(possible, logits, 0.0).sum(-1, keepdim=True) / possible.sum(-1, keepdim=True)
        values = (1 - rows.smoothing) * values + rows.smoothing * (normaliser - mean)
    return values, normaliser


def dense_into(
    kind: Kind,
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    scratch: Scratch,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The divergence of each row, a column; `student`, logits over T, becomes the gradient times `weight`.

    `teacher`, logits over T, is used up. `known` is the student's softmax with its normaliser, where there is one
    already. Without `weight` no gradient is made.
    """
    if known is None:
        p = scratch(STUDENT_SOFTMAX, student)
        known = p, softmax_into(p, student)
    p, of_student = known
    q, work = scratch(TEACHER_SOFTMAX, teacher), scratch(WORK, student)
    of_teacher = softmax_into(q, teacher)
    if kind.mixture is None and kind.teacher_part:
        torch.sub(teacher, student, out=work)
        values = work.mul_(q).sum(-1, keepdim=True) - of_teacher + of_student
        if weight is not None:
            torch.sub(p, q, out=student).mul_(weight * kind.temperature)
        return kind.temperature**2 * values
    if kind.mixture is None:
        student.sub_(teacher)
        mean = torch.mul(p, student, out=work).sum(-1, keepdim=True)
        values = mean - of_student + of_teacher
    else:
        values = _mixed_into(kind, student.sub_(of_student), teacher.sub_(of_teacher), p, q, scratch)
        mean = torch.mul(p, student, out=work).sum(-1, keepdim=True)
    if weight is not None:
        # For a derivative a by the probabilities: p (a - sum p a).
        student.sub_(mean).mul_(p).mul_(weight * kind.temperature)
    return kind.temperature**2 * values


def _mixed_into(kind: Kind, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor, scratch: Scratch) -> Tensor:
    """The divergence from the mixture, a column; `log_p` becomes its derivative by p, but for a constant."""
    c, own, other = kind.mixture, kind.student_part, kind.teacher_part
    assert c is not None
    mixed = torch.mul(q, c, out=scratch(WORK, p)).add_(p, alpha=1 - c)
    # Where both underflow their share of value and gradient is 0: any finite logarithm will do.
    mixed.clamp_(min=torch.finfo(p.dtype).tiny)
    ratio = None
    # For Jensen and Shannon's parts this share of the derivative is the same for all classes.
    if own * c != other * (1 - c):
        ratio = torch.mul(q, other, out=scratch(RATIO, p)).add_(p, alpha=own).div_(mixed).mul_(1 - c)
    mixed.log_()
    values = torch.zeros_like(log_p[:, :1])
    if other:
        values.add_(log_q.sub_(mixed).mul_(q).sum(-1, keepdim=True), alpha=other)
    if own:
        log_p.sub_(mixed)
        values.add_(torch.mul(log_p, p, out=mixed).sum(-1, keepdim=True), alpha=own)
        log_p.mul_(own)
    else:
        log_p.zero_()
    if ratio is not None:
        log_p.sub_(ratio)
    return values


def sweep(
    student: Student,
    logits: Tensor,
    rows: RowBlock,
    scratch: Scratch,
    kind: Kind | None = None,
    teacher: Teacher | None = None,
    targets: Tensor | TopKBlock | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Cross-entropy and divergence of each row, two columns; `logits`, as they come from the product, become gradients.

    `targets` are the teacher's products, which are used up, or what is kept of its probabilities.
    """
    gradient = rows.label_weight is not None or rows.divergence_weight is not None
    slope = scratch(SLOPE, logits) if gradient and student.curve.softcap is not None else None
    curved(logits, student.bias, student.curve, slope)
    label = divergence = possible = known = None
    softmax = scratch(LABEL_SOFTMAX, logits)
    if rows.labels is not None:
        label, normaliser = label_values(logits, softmax, rows)
        known = softmax, normaliser
        possible = logits > IMPOSSIBLE if rows.smoothing and gradient else None
    if kind is not None:
        compared = logits[:, : student.compared]
        if kind.temperature != 1:
            compared.mul_(1 / kind.temperature)
        if isinstance(targets, TopKBlock):
            divergence = top_k_into(kind, compared, targets.indices, targets.kept, rows.divergence_weight, scratch)
        else:
            assert teacher is not None and targets is not None
            ready = taught(targets, teacher, kind.temperature, scratch)
            same = kind.temperature == 1 and student.compared == logits.shape[1]
            divergence = dense_into(kind, compared, ready, rows.divergence_weight, scratch, known if same else None)
        logits[:, student.compared :].zero_()
    if gradient and rows.labels is not None:
        add_label_gradient(logits, softmax, rows, possible, fresh=kind is None)
    if slope is not None:
        logits.mul_(slope)
    return label, divergence


def taught(products: Tensor, teacher: Teacher, temperature: float, scratch: Scratch) -> Tensor:
    """The teacher's logits over T, its classes in the student's order, from its head's products."""
    curved(products, teacher.bias, teacher.curve)
    if teacher.picked is not None:
        products = products.index_select(1, teacher.picked)
    if temperature != 1:
        products.mul_(1 / temperature)
    if teacher.lacking is not None:
        products.index_fill_(1, teacher.lacking, LOWEST)
    return products


def add_label_gradient(out: Tensor, softmax: Tensor, rows: RowBlock, possible: Tensor | None, fresh: bool) -> None:
    """Add the gradient of the weighted cross-entropy to `out`; where `out` is fresh, put it there."""
    assert rows.labels is not None and rows.label_weight is not None
    if fresh:
        torch.mul(softmax, rows.label_weight, out=out)
    else:
        out.addcmul_(softmax, rows.label_weight)
    if possible is not None:
        out.sub_(possible * (rows.smoothing * rows.label_weight / possible.sum(-1, keepdim=True)))
    out.scatter_add_(1, rows.labels, (rows.smoothing - 1) * rows.label_weight)
