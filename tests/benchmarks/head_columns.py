"""The ways to distil through two language-model heads that are compared; each a function that makes the gradients.

What they compute is not quite the same: TRL's have no cross-entropy, and its fused one gives entropies beside.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hfdistill.losses import LOSSES
from hfdistill.losses._fused_products import multiplied_natively
from hfdistill.losses.fused_linear import Divergence, Head, Taught, fused_linear

FLOOR = "floor"
UNLABELLED = -100
BETAS = {"forward_kl": 0.0, "jensen_shannon": 0.5, "reverse_kl": 1.0}
"""The divergences, and what TRL and Liger call them."""


@dataclass(frozen=True)
class Workload:
    """One row of the table; `masked` is the share of rows without a label."""

    classes: int
    width: int
    dtype: str
    divergence: str
    masked: float
    rows: int
    device: str = "cpu"
    chunk_bytes: int | None = None
    compiled: bool = False

    def __str__(self) -> str:
        masked = f", {self.masked:.0%} masked" if self.masked else ""
        return f"V {self.classes:,} H {self.width} {self.dtype} {self.divergence}{masked}"

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


class Inputs:
    """Hidden states and heads of student and teacher, logits with a spread of 3, and labels."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.generator = torch.Generator(workload.device).manual_seed(0)
        rows, classes, width = workload.rows, workload.classes, workload.width
        self.hidden = self._normal(rows, width, spread=1.0).requires_grad_()
        self.weight = self._normal(classes, width, spread=3 * width**-0.5).requires_grad_()
        self.teacher_hidden = self._normal(rows, width, spread=1.0)
        self.teacher_weight = self._normal(classes, width, spread=3 * width**-0.5)
        self.labels = torch.randint(classes, (rows,), generator=self.generator, device=workload.device)
        self.labels[: round(workload.masked * rows)] = UNLABELLED
        self.labels = self.labels[torch.randperm(rows, generator=self.generator, device=workload.device)]
        self.counted = self.labels != UNLABELLED

    def _normal(self, *shape: int, spread: float) -> Tensor:
        empty = torch.empty(*shape, dtype=getattr(torch, self.workload.dtype), device=self.workload.device)
        return empty.normal_(0, spread, generator=self.generator)

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        """What gets gradients."""
        return self.hidden, self.weight

    def forget(self) -> None:
        """Drop the gradients."""
        self.hidden.grad = self.weight.grad = None


Run = Callable[[], Any]


def floor(inputs: Inputs) -> Run:
    """The four products that no exact dense method avoids; in float32 where the dtype is not multiplied natively."""
    own = inputs.hidden.dtype
    dtype = own if multiplied_natively(own, inputs.hidden.device) else torch.float32
    hidden, weight, teacher_hidden, teacher_weight = (
        tensor.detach().to(dtype)
        for tensor in (inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight)
    )

    def run() -> None:
        chosen = hidden[inputs.counted]
        logits = chosen @ weight.t()
        teacher_hidden[inputs.counted] @ teacher_weight.t()
        logits @ weight
        logits.t() @ chosen

    return run


def ours(inputs: Inputs) -> Run:
    """fused_linear: divergence and cross-entropy."""
    workload = inputs.workload
    weight = 0.5 / inputs.counted.sum()

    def run() -> Tensor:
        loss = fused_linear(
            inputs.hidden,
            Head(inputs.weight),
            labels=inputs.labels,
            label_weight=weight,
            teacher=Taught(inputs.teacher_hidden, Head(inputs.teacher_weight)),
            divergence=Divergence(workload.divergence),
            divergence_weight=weight,
            rows=inputs.counted,
            chunk_bytes=workload.chunk_bytes,
            compiled=workload.compiled,
        )
        loss.total.backward()
        return loss.total

    return run


def naive(inputs: Inputs) -> Run:
    """Both logits, the plain losses in float32, autograd: divergence and cross-entropy."""

    def run() -> Tensor:
        logits = inputs.hidden @ inputs.weight.t()
        with torch.no_grad():
            teacher = inputs.teacher_hidden @ inputs.teacher_weight.t()
        values = LOSSES[inputs.workload.divergence](logits, teacher, temperature=1.0)
        divergence = torch.where(inputs.counted, values, 0.0).sum() / inputs.counted.sum()
        total = 0.5 * divergence + 0.5 * cross_entropy(logits.float(), inputs.labels)
        total.backward()
        return total

    return run


def trl_gkd(inputs: Inputs) -> Run:
    """TRL's `GKDTrainer.generalized_jsd_loss` on both logits: divergence alone."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    def run() -> Tensor:
        logits = inputs.hidden @ inputs.weight.t()
        with torch.no_grad():
            teacher = inputs.teacher_hidden @ inputs.teacher_weight.t()
        total: Tensor = GKDTrainer.generalized_jsd_loss(
            logits[None], teacher[None], inputs.labels[None], beta=BETAS[inputs.workload.divergence]
        )
        total.backward()
        return total

    return run


def trl_chunked(inputs: Inputs) -> Run:
    """TRL's fused divergence of its `DistillationTrainer`: divergence alone."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def run() -> Tensor:
        total: Tensor = _chunked_divergence_loss(
            inputs.hidden[None],
            inputs.teacher_hidden[None],
            inputs.weight,
            inputs.teacher_weight,
            inputs.counted[None],
            beta=BETAS[inputs.workload.divergence],
        )[0]
        total.backward()
        return total

    return run


def liger(inputs: Inputs) -> Run:
    """Liger's fused linear JSD: divergence and cross-entropy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    # Its compiled blocks are for a GPU; on a processor it asks for a compiler.
    loss = LigerFusedLinearJSDLoss(
        beta=BETAS[inputs.workload.divergence], compiled=inputs.workload.device != "cpu", chunk_size=1024
    )

    def run() -> Tensor:
        total: Tensor = loss(inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight, inputs.labels)
        total.backward()
        return total

    return run


COLUMNS: dict[str, Callable[[Inputs], Run]] = {
    FLOOR: floor,
    "hfdistill": ours,
    "naive": naive,
    "TRL GKD": trl_gkd,
    "TRL chunked": trl_chunked,
    "Liger": liger,
}


@functools.cache
def missing(name: str) -> str | None:
    """Why a column is not there; None where it is."""
    tiny = Workload(8, 4, "float32", "forward_kl", 0.0, 2)
    try:
        COLUMNS[name](Inputs(tiny))
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    return None


def available(names: list[str]) -> Iterator[str]:
    """The columns that can run here."""
    return (name for name in names if missing(name) is None)
