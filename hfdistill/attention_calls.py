"""Queries and keys as they meet in a model's attention, whichever kernel goes on with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

EAGER = "eager"


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function of the module `name`.

    `query` and `key` (rows, heads, positions, width) have their rotation and normalisation behind them. `mask` is what
    the function gets: of keys (rows, keys), or of pairs, True where a query may look, or else numbers that are added to
    the scores; `bias` is added too, and `cap` bounds them. With `causal` the kernel hides later keys itself.
    """

    name: str
    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    mask: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    cap: float | None = None
    causal: bool = False

    def scores(self) -> torch.Tensor:
        """What the softmax is taken of, (rows, heads, queries, keys), in float32 or wider; masks are left out."""
        groups = self.query.shape[1] // self.key.shape[1]
        query, key = (each if each.dtype == torch.float64 else each.float() for each in (self.query, self.key))
        # Inside the trainer's autocast a product would fall to bfloat16.
        with torch.autocast(query.device.type, enabled=False):
            scores = query @ key.repeat_interleave(groups, 1).mT * self.scaling
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        if self.bias is not None:
            scores = scores + self.bias
        if self.mask is not None and self.mask.is_floating_point() and self.mask.dim() == 4:
            scores = scores + torch.where(_open(self.mask), self.mask, 0.0)
        return scores

    def pairs(self) -> torch.Tensor:
        """Which query may look at which key in every head, (rows, queries, keys)."""
        rows, _, queries, _ = self.query.shape
        keys = self.key.shape[2]
        allowed = torch.ones(rows, queries, keys, dtype=torch.bool, device=self.query.device)
        if self.causal:
            allowed = allowed.tril(keys - queries)
        if self.mask is None:
            return allowed
        if self.mask.dim() == 2:
            return allowed & self.mask.bool()[:, None, :]
        return allowed & _open(self.mask).all(1)


def shared_pairs(student: AttentionCall, teacher: AttentionCall) -> torch.Tensor | None:
    """The pairs of tokens that both models may see, (rows, positions, positions); None where their tokens differ.

    A key that no query may look at is padding, and no query either.
    """
    ours, theirs = student.pairs(), teacher.pairs()
    if ours.shape != theirs.shape:
        return None
    both = ours & theirs
    return both & both.any(1)[:, :, None] if both.shape[1] == both.shape[2] else both


def _open(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask of pairs lets look: it holds True there, or a number that is not the least of its kind."""
    if not mask.is_floating_point():
        return mask.bool()
    return mask > torch.finfo(mask.dtype).min / 2


@contextmanager
def calls_noted(model: nn.Module, calls: list[AttentionCall]) -> Iterator[None]:
    """Note each call of the attention functions of a model while the block runs.

    Transformers' models fetch the function by AttentionInterface.get_interface in every forward; inside the block they
    get the same one with a note taken before it. Models whose attention is their own code give no notes.
    """
    names = {module: name for name, module in model.named_modules()}
    fetched = AttentionInterface.get_interface

    def noting(interface: AttentionInterface, implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = fetched(interface, implementation, default)

        def noted(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: Any = None,
            *others: Any,
            **options: Any,
        ) -> Any:
            if module in names:
                calls.append(_call(names[module], module, query, key, attention_mask, options, implementation))
            return function(module, query, key, value, attention_mask, *others, **options)

        return noted

    AttentionInterface.get_interface = noting  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        AttentionInterface.get_interface = fetched  # type: ignore[method-assign]


def _call(
    name: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: Any,
    options: dict[str, Any],
    implementation: str,
) -> AttentionCall:
    given = mask if isinstance(mask, torch.Tensor) else None
    scaling = options.get("scaling")
    causal = options.get("is_causal")
    if causal is None:
        # What Transformers' kernels ask where the call does not say.
        causal = getattr(module, "is_causal", True)
    return AttentionCall(
        name,
        query,
        key,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        given,
        options.get("position_bias"),
        options.get("softcap"),
        # A mask of pairs says all; eager attention knows no other.
        bool(causal) and implementation != EAGER and (given is None or given.dim() == 2),
    )
