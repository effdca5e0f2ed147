"""Losses on how a model relates the tokens of a sequence to each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hfdistill.losses._features import map_pair
from hfdistill.losses._vectors import products

# Scores computed at a time: few enough to stay in a processor's cache, or enough to keep an accelerator busy.
_SCORES_ON_CPU, _SCORES = 2**18, 2**22


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


def _relation(part: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """M M^T / sqrt(d) + padding, its softmax, and the logarithm of what the softmax divides by, (..., 1)."""
    rows, heads, positions, width = part.shape
    flat = part.reshape(rows * heads, positions, width)
    outside = padding.expand(rows, heads, 1, positions).flatten(0, 1)
    # Inside the trainer's autocast a product would fall to bfloat16, whose 8 bits are too few for relations.
    with torch.autocast(part.device.type, enabled=False):
        flat_scores = torch.baddbmm(outside, flat, flat.mT, alpha=width**-0.5)
    scores = flat_scores.view(rows, heads, positions, positions)
    shares = scores.softmax(-1)
    return scores, shares, scores.amax(-1, keepdim=True) - shares.amax(-1, keepdim=True).log()


class _RelationDivergence(torch.autograd.Function):
    """The divergence and, in the same sweep over blocks of heads, its gradient (A_s - A_t) M: nothing is kept of A."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, valid: Tensor, differentiable: bool) -> Tensor:
        rows, heads, positions, width = student.shape
        scores = _SCORES_ON_CPU if student.device.type == "cpu" else _SCORES
        block = max(1, scores // max(1, rows * positions**2))
        counted = valid.to(student.dtype)
        weight = (counted / (heads * counted.sum(1, keepdim=True).clamp(min=1)))[:, None, :, None]
        # Half of the lowest number, not -inf: a row of padding alone must stay finite.
        padding = torch.zeros_like(counted).masked_fill_(~valid, torch.finfo(counted.dtype).min / 2)[:, None, None, :]
        values = student.new_zeros(rows)
        gradients = []
        for part_s, part_t in zip(torch.split(student, block, 1), torch.split(teacher, block, 1), strict=True):
            scores_s, shares_s, log_s = _relation(part_s, padding)
            scores_t, shares_t, log_t = _relation(part_t, padding)
            further = scores_t.sub_(scores_s).mul_(shares_t).sum(-1, keepdim=True)
            values += ((further - log_t + log_s) * weight).sum((1, 2, 3))
            if differentiable:
                slope = shares_s.sub_(shares_t)
                # M is on both sides of M M^T.
                weighted = part_s * weight
                gradients.append((products(slope, part_s.mT) * weight + products(slope.mT, weighted.mT)) * width**-0.5)
        ctx.save_for_backward(*([torch.cat(gradients, 1)] if differentiable else []))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None, None, None]:
        gradient: Tensor = ctx.saved_tensors[0]
        return gradient * grad_values[:, None, None, None], None, None, None
