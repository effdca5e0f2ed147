"""The fused head's loop: chunks of rows under a byte budget, each projected, swept and folded into gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfdistill.losses._checks import widened
from hfdistill.losses._fused_blocks import (
    BUFFERS,
    Kind,
    RowBlock,
    Scratch,
    Student,
    Teacher,
    TopKBlock,
)
from hfdistill.losses._fused_compiled import ELEMENTS, compiled_sweep
from hfdistill.losses._fused_products import Products, multiplied_natively
from hfdistill.losses._fused_sweep import sweep
from hfdistill.losses._fused_thin import Thinned

LEAST_ROWS = {"cpu": 152}
"""Chunks of fewer rows read the heads more often than a product takes; other devices: LEAST_ROWS_ELSEWHERE."""
LEAST_ROWS_ELSEWHERE = 2048
"""By arithmetic, not yet measured: two 16-bit heads of 152,000 classes then take 1.2 GB, in products of full size."""
LEAST_BYTES = 64 * 2**20
BLOCK_ELEMENTS = {"cpu": 2**18}
"""What one thread sweeps at a time, so that it stays in its cache."""
SHARED_BLOCK_ELEMENTS = 2**22
"""The same where threads share an operation, or a device does: small ones are all waiting."""


@dataclass
class Job:
    """All that gets no gradient; tensors of rows are those of the rows that are projected. Dtypes are multiplied in."""

    student: Student
    kind: Kind | None
    labels: Tensor | None
    smoothing: float
    label_weight: Tensor | None
    divergence_weight: Tensor | None
    dtype: torch.dtype
    chunk_bytes: int | None
    compiled: bool
    wide_gradient: bool
    gradient: bool
    teacher: Teacher | None = None
    teacher_hidden: Tensor | None = None
    teacher_weight: Tensor | None = None
    teacher_width: int = 0
    teacher_dtype: torch.dtype = torch.float32
    top_k: TopKBlock | None = None
    threshold: float | None = None


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to multiply in: the common one, or autocast's, and float32 where the device has no better."""
    device = tensors[0].device
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    else:
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return dtype if multiplied_natively(dtype, device) else torch.float32


def chunk_rows(rows: int, row_bytes: int, device: torch.device, head_bytes: int, chunk_bytes: int | None) -> int:
    """How many rows to project at a time: as many as the budget allows, and chunks of equal size."""
    if chunk_bytes is None:
        least = LEAST_ROWS.get(device.type, LEAST_ROWS_ELSEWHERE)
        most = max(least, max(LEAST_BYTES, head_bytes // 4) // row_bytes)
    else:
        most = max(1, chunk_bytes // row_bytes)
    chunks = -(-rows // most)
    return -(-rows // max(1, chunks))


def fused(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job, *added: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The total with its gradient, then cross-entropies and divergences of the rows, where there are any."""
    found: tuple[Tensor, Tensor | None, Tensor | None] = Fused.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, job, *added
    )
    return found


class Fused(torch.autograd.Function):
    """Total, cross-entropies and divergences of rows; the gradients of the total are made beside them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job, *added: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`added` are pairs: inputs `(rows, rank)`, weight `(classes, rank)`."""
        needed = ctx.needs_input_grad if job.gradient else (False,) * len(ctx.needs_input_grad)
        run = Run(hidden, weight, bias, job, added, needed)
        values = run()
        ctx.gradients = run.gradients()
        ctx.mark_non_differentiable(*(each for each in values if each is not None))
        total = hidden.new_zeros((), dtype=widened(hidden[:0]).dtype)
        for each, coefficient in zip(values, (job.label_weight, job.divergence_weight), strict=True):
            if each is not None and coefficient is not None:
                # A row without weight may hold an infinite value: 0 times that would be NaN.
                total = total + torch.where(coefficient != 0, each.unsqueeze(1) * coefficient, 0.0).sum()
        return total, *values

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradients times that of the total."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fused_linear got create_graph=True, expected a first gradient only: it is made in the forward and has "
                "no graph of its own. Use the plain losses on logits for gradients of gradients."
            )
        if ctx.gradients is None:
            raise RuntimeError(
                "fused_linear got a second backward through one call, expected one: its gradients are handed on, not "
                "kept. Call it again, or add up the losses and run backward once."
            )
        gradients: tuple[Tensor | None, ...] = ctx.gradients
        # Let go of them, so that autograd keeps the weight's as it is and makes no copy.
        ctx.gradients = None
        # Of a processor one may ask; a device would be waited for.
        if grad_total.device.type == "cpu" and grad_total == 1:
            return gradients
        return tuple(None if each is None else each.mul_(grad_total) for each in gradients)


class Run:
    """One forward: its buffers and the gradients it adds up."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        job: Job,
        added: tuple[Tensor, ...],
        needed: tuple[bool, ...],
    ) -> None:
        self.hidden, self.weight, self.bias, self.job = hidden, weight, bias, job
        self.added = tuple(tensor.detach() for tensor in added)
        self.gradient = any(needed)
        device, dtype = hidden.device, job.dtype
        self.products = Products(weight, dtype)
        self.taught = None if job.teacher_weight is None else Products(job.teacher_weight, job.teacher_dtype)
        width = weight.shape[0]
        row_bytes = width * dtype.itemsize + job.teacher_width * job.teacher_dtype.itemsize
        head_bytes = weight.numel() * weight.element_size()
        self.rows = chunk_rows(len(hidden), row_bytes, device, head_bytes, job.chunk_bytes)
        self.logits = torch.empty(self.rows, width, dtype=dtype, device=device)
        self.teacher_logits = torch.empty(self.rows, job.teacher_width, dtype=job.teacher_dtype, device=device)
        wide = torch.float32 if job.wide_gradient and weight.dtype.itemsize < 4 else weight.dtype
        into_hidden, into_weight, into_bias, _, *into_added = needed
        self.of_hidden = torch.empty_like(hidden, dtype=dtype) if into_hidden else None
        # Large enough that filling it with zeros first would show.
        new = torch.empty_like if len(hidden) else torch.zeros_like
        self.of_weight = new(weight, dtype=wide) if into_weight else None
        self.of_bias = widened(torch.zeros_like(bias)) if into_bias and bias is not None else None
        self.of_added = [
            torch.zeros_like(tensor, dtype=dtype) if asked else None
            for tensor, asked in zip(added, into_added, strict=True)
        ]
        thin = job.threshold is not None and (into_hidden or into_weight)
        self.thinned = Thinned(job.threshold, width, hidden) if thin and job.threshold is not None else None

    def gradients(self) -> tuple[Tensor | None, ...]:
        """One for each argument of `Fused`, in the dtype of the argument."""
        found = (self.of_hidden, self.of_weight, self.of_bias, None, *self.of_added)
        arguments = (self.hidden, self.weight, self.bias, None, *self.added)
        return tuple(
            None if each is None or argument is None else each.to(argument.dtype)
            for each, argument in zip(found, arguments, strict=True)
        )

    def __call__(self) -> tuple[Tensor | None, Tensor | None]:
        """Cross-entropies and divergences of all rows, `(rows,)`."""
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        for start in range(0, len(self.hidden), max(1, self.rows)):
            chunk = slice(start, min(start + self.rows, len(self.hidden)))
            for values in self._swept(chunk):
                for part, value in zip(parts, values, strict=True):
                    if value is not None:
                        part.append(value.squeeze(1))
            if self.gradient:
                self._fold(chunk)
        if self.thinned is not None:
            self.thinned.finish(self.products, self.of_weight)
        job = self.job
        none = widened(self.hidden[:0, 0])
        label, divergence = (torch.cat(part) if part else none for part in parts)
        return (None if job.labels is None else label), (None if job.kind is None else divergence)

    def _swept(self, chunk: slice) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Project a chunk's rows and make gradients of their logits, block by block."""
        job, count = self.job, chunk.stop - chunk.start
        logits = self.logits[:count]
        self.products.logits_into(logits, self.hidden[chunk].to(job.dtype))
        for inputs, weight in zip(self.added[::2], self.added[1::2], strict=True):
            logits.addmm_(inputs[chunk].to(job.dtype), weight.to(job.dtype).t())
        targets = None
        if self.taught is not None:
            assert job.teacher_hidden is not None
            targets = self.teacher_logits[:count]
            self.taught.logits_into(targets[:, : self.taught.classes], job.teacher_hidden[chunk].to(targets.dtype))
        size = self._block_rows(count)
        if self.thinned is not None:
            self.thinned.begin()
        for start in range(0, count, size):
            inner = slice(start, min(start + size, count))
            outer = slice(chunk.start + inner.start, chunk.start + inner.stop)
            rows = RowBlock(
                _part(job.labels, outer),
                job.smoothing,
                self._slope(job.label_weight, outer),
                self._slope(job.divergence_weight, outer),
            )
            known: Tensor | TopKBlock | None = None if targets is None else targets[inner]
            if job.top_k is not None:
                known = TopKBlock(job.top_k.indices[outer], job.top_k.kept[outer])
            block = logits[inner]
            if job.compiled:
                yield compiled_sweep()(job.student, block, rows, job.kind, job.teacher, known)
            else:
                block = widened(block)
                known = widened(known) if isinstance(known, Tensor) else known
                yield sweep(job.student, block, rows, self._scratch(size), job.kind, job.teacher, known)
            if self.gradient:
                if self.of_bias is not None:
                    self.of_bias += block.sum(0, dtype=self.of_bias.dtype)
                if self.thinned is not None:
                    self.thinned.see(block)
                if block.dtype != logits.dtype:
                    logits[inner] = block

    def _fold(self, chunk: slice) -> None:
        """Add a chunk's share to the gradients."""
        gradient = self.logits[: chunk.stop - chunk.start]
        hidden = self.hidden[chunk].to(gradient.dtype)
        columns = None if self.thinned is None else self.thinned.kept(*self._weights(chunk))
        of_hidden = None if self.of_hidden is None else self.of_hidden[chunk]
        if self.thinned is not None and columns is not None:
            if chunk.start == 0 and self.of_weight is not None:
                self.of_weight.zero_()
            self.thinned.fold(columns, gradient, hidden, self.products, of_hidden, self.of_weight)
        else:
            if of_hidden is not None:
                self.products.hidden_into(of_hidden, gradient)
            if self.of_weight is not None:
                self.products.weight_gradient_into(self.of_weight, gradient, hidden, first=chunk.start == 0)
        for place in range(0, len(self.added), 2):
            inputs, weight = (tensor.to(gradient.dtype) for tensor in self.added[place : place + 2])
            of_inputs, of_weight = self.of_added[place : place + 2]
            if of_inputs is not None:
                torch.mm(gradient, weight, out=of_inputs[chunk])
            if of_weight is not None:
                of_weight.addmm_(gradient.t(), inputs[chunk])

    def _weights(self, chunk: slice) -> tuple[Tensor | None, Tensor | None]:
        """What a class's gradient is at most, of each term: the label's, and T times the divergence's weight."""
        of_label, of_divergence = (
            self._slope(weight, chunk) for weight in (self.job.label_weight, self.job.divergence_weight)
        )
        if of_divergence is not None and self.job.kind is not None:
            of_divergence = of_divergence * self.job.kind.temperature
        return of_label, of_divergence

    def _slope(self, weight: Tensor | None, chosen: slice) -> Tensor | None:
        """What multiplies the gradient of a term by the head's products."""
        return None if weight is None or not self.gradient else weight[chosen] * self.job.student.curve.scale

    def _block_rows(self, count: int) -> int:
        if self.job.compiled:
            blocks = -(-count * self.weight.shape[0] // ELEMENTS)
            return max(1, -(-count // max(1, blocks)))
        alone = self.hidden.device.type == "cpu" and torch.get_num_threads() == 1
        elements = BLOCK_ELEMENTS["cpu"] if alone else SHARED_BLOCK_ELEMENTS
        return max(1, min(count, elements // self.weight.shape[0]))

    def _scratch(self, rows: int) -> Scratch:
        if self._buffers is None:
            width = max(self.weight.shape[0], self.job.teacher_width)
            self._buffers = Scratch(BUFFERS, rows, width, self.hidden, widened(self.logits[:0]).dtype)
        return self._buffers

    _buffers: Scratch | None = None


def _part(rows: Tensor | None, chosen: slice) -> Tensor | None:
    return None if rows is None else rows[chosen]
