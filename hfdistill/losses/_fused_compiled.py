"""The sweep as one compiled function: on an accelerator each of its lines would be a pass over memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdistill.losses._checks import widened
from hfdistill.losses._fused_blocks import Kind, NoScratch, RowBlock, Student, Teacher, TopKBlock
from hfdistill.losses._fused_sweep import sweep

logger = logging.getLogger(__name__)

Values = tuple[Tensor | None, Tensor | None]
Sweep = Callable[[Student, Tensor, RowBlock, Kind | None, Teacher | None, Tensor | TopKBlock | None], Values]

ELEMENTS = 2**26
"""What is swept at a time: what the compiler cannot keep in registers is four bytes for each."""


def swept(
    student: Student,
    logits: Tensor,
    rows: RowBlock,
    kind: Kind | None,
    teacher: Teacher | None,
    targets: Tensor | TopKBlock | None,
) -> Values:
    """`sweep` of logits of any dtype, computed in float32 or wider and written back as gradients."""
    block = widened(logits)
    known = widened(targets) if isinstance(targets, Tensor) else targets
    values = sweep(student, block, rows, NoScratch(), kind, teacher, known)
    if block.dtype != logits.dtype:
        logits.copy_(block)
    return values


@functools.cache
def compiled_sweep() -> Sweep:
    """`swept`, compiled when it is first called; as it is where there is no compiler, which is said once."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # large, and asked for by few

    # One graph, so that what fails does so before anything has been written.
    compiled: Sweep = torch.compile(swept, fullgraph=True)
    failed: list[str] = []

    def run(*arguments: Any) -> Values:
        if not failed:
            try:
                return compiled(*arguments)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                failed.append(str(error))
                logger.warning("The fused head is not compiled from here on: %s", failed[0].strip().splitlines()[0])
        return swept(*arguments)

    return run
