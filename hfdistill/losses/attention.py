"""Losses on how a model relates the tokens of a sequence to each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax

from hfdistill.losses._features import map_pair
from hfdistill.losses._softmax import kl_terms
from hfdistill.losses._vectors import products

# Scores computed at a time: enough to keep a device busy, few enough to stay in a processor's cache.
_SCORES = 2**20


def attention_relation(
    student: Tensor, teacher: Tensor, *, relation_heads: int = 48, attention_mask: Tensor | None = None
) -> Tensor:
    """MiniLMv2: divergence of the self-attention that queries, keys or values have with themselves.

    mean over relation heads and valid queries of KL(A_t || A_s), A = softmax(M M^T / sqrt(d)), where M is a head's
    share, of width d, of all heads' queries (or keys, or values) laid side by side. One of the three kinds; their sum
    is a sum of terms.
    `attention_mask` (rows, positions) is 1 or True for tokens and 0 for padding, which is outside the softmax and the
    mean; without it every position is a token. A row of padding alone gives 0.
    Shapes (rows, positions, width), widths may differ -> (rows,); nats.
    Domain: 2 positions or more; both widths are multiples of `relation_heads`. First derivatives only. Memory grows
    with positions^2, not with the heads.
    Errors: ValueError for shapes that do not fit; TypeError for integer features.
    Source: Wang et al., "MiniLMv2", arXiv 2012.15828, section 3.1.
    """
    student, teacher = map_pair("attention_relation", student, teacher)
    widths = student.shape[2], teacher.shape[2]
    if relation_heads < 1 or any(width % relation_heads for width in widths):
        raise ValueError(
            f"relation_heads got {relation_heads} for widths {widths[0]} and {widths[1]} of student and teacher, "
            "expected a number that divides both; their number of attention heads, or 1, does."
        )
    if attention_mask is None:
        attention_mask = torch.ones(student.shape[:2], device=student.device)
    if attention_mask.shape != student.shape[:2]:
        raise ValueError(
            f"attention_mask got shape {tuple(attention_mask.shape)}, expected {tuple(student.shape[:2])}, (rows, "
            "positions); pass the mask of the same batch."
        )
    differentiable = student.requires_grad and torch.is_grad_enabled()
    values: Tensor = _RelationDivergence.apply(  # type: ignore[no-untyped-call]
        _by_head(student, relation_heads), _by_head(teacher, relation_heads), attention_mask.bool(), differentiable
    )
    return values


def _by_head(features: Tensor, heads: int) -> Tensor:
    """(rows, positions, heads x d) -> (rows, heads, positions, d)."""
    rows, positions, width = features.shape
    return features.reshape(rows, positions, heads, width // heads).transpose(1, 2)


def _log_relation(part: Tensor, valid_key: Tensor) -> Tensor:
    """log softmax(M M^T / sqrt(d)) with keys of padding at probability 0."""
    scores = products(part, part) * part.shape[-1] ** -0.5
    # The lowest number, not -inf: a row of padding alone must stay finite.
    return log_softmax(scores.masked_fill_(~valid_key, torch.finfo(scores.dtype).min), -1)


class _RelationDivergence(torch.autograd.Function):
    """The divergence and, in the same sweep over blocks of heads, its gradient (A_s - A_t) M: nothing is kept of A."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, valid: Tensor, differentiable: bool) -> Tensor:
        rows, heads, positions, width = student.shape
        block = max(1, _SCORES // max(1, rows * positions**2))
        counted = valid.to(student.dtype)
        weight = (counted / (heads * counted.sum(1, keepdim=True).clamp(min=1)))[:, None, :, None]
        valid_key = valid[:, None, None, :]
        values = student.new_zeros(rows)
        gradients = []
        for part_s, part_t in zip(torch.split(student, block, 1), torch.split(teacher, block, 1), strict=True):
            log_s, log_t = _log_relation(part_s, valid_key), _log_relation(part_t, valid_key)
            values += (kl_terms(log_t, log_s).sum(-1, keepdim=True) * weight).sum((1, 2, 3))
            if differentiable:
                slope = log_s.exp_().sub_(log_t.exp_()).mul_(weight * width**-0.5)
                # M is on both sides of M M^T.
                gradients.append(products(slope + slope.mT, part_s.mT))
        ctx.save_for_backward(*([torch.cat(gradients, 1)] if differentiable else []))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None, None, None]:
        gradient: Tensor = ctx.saved_tensors[0]
        return gradient * grad_values[:, None, None, None], None, None, None
