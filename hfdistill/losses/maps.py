"""Losses on where tokens look."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.losses._checks import require_floating, widened


def attention_map_kl(student: Tensor, teacher: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
    """Divergence of the attention distributions.

    mean over heads and valid queries of KL(A_t || A_s), over the valid keys; where the numbers of heads differ, of the
    means over heads. Probability on padding is taken away on both sides, and the rest divided by its sum.
    `attention_mask` (rows, positions) is 1 or True for tokens and 0 for padding, which is neither query nor key;
    without it every position is a token. A row of padding alone gives 0.
    Shapes (rows, heads, positions, positions) -> (rows,); nats.
    Domain: distributions over the last axis; equal positions on both sides. Probabilities of the student below 1e-9
    count as that, so that a key on which it has none stays finite.
    Errors: ValueError for shapes that do not fit; TypeError for integer maps.
    Source: Wang et al., "MiniLM", arXiv 2002.10957, section 3.1.
    """
    ours, theirs = _by_head("attention_map_kl", "maps", student, teacher)
    rows, _, queries, keys = ours.shape
    if attention_mask is None:
        attention_mask = torch.ones(rows, keys, device=ours.device)
    if attention_mask.shape != (rows, keys) or queries != keys:
        raise ValueError(
            f"attention_mask got shape {tuple(attention_mask.shape)} for maps {tuple(student.shape)}, expected (rows, "
            "positions); pass the mask of the same batch."
        )
    valid = attention_mask.bool()
    ours, theirs = _over_tokens(ours, valid), _over_tokens(theirs, valid)
    terms = torch.where(theirs > 0, theirs * (theirs.clamp(min=LEAST).log() - ours.clamp(min=LEAST).log()), 0.0)
    each = terms.sum(-1).mean(1)
    return torch.where(valid, each, 0.0).sum(1) / valid.sum(1).clamp(min=1)


def attention_score_mse(student: Tensor, teacher: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the attention scores, which are what the softmax is taken of.

    mean over heads and valid pairs of a query and a key of (S_s - S_t)^2, S = Q K^T / sqrt(d); where the numbers of
    heads differ, of the means over heads (ours; the source has equal numbers).
    `attention_mask` (rows, positions) is 1 or True for tokens and 0 for padding, which is neither query nor key;
    (rows, positions, positions) names the pairs themselves, queries first; without it every pair is valid. A row
    without a valid pair gives 0.
    Shapes (rows, heads, positions, positions) -> (rows,); squared scores.
    Domain: finite scores in valid pairs; equal positions on both sides.
    Errors: ValueError for shapes that do not fit; TypeError for integer scores.
    Source: Jiao et al., "TinyBERT", arXiv 1909.10351, section 3.1.
    """
    ours, theirs = _by_head("attention_score_mse", "scores", student, teacher)
    rows, heads, queries, keys = ours.shape
    if attention_mask is None:
        attention_mask = torch.ones(rows, queries, keys, device=ours.device)
    elif attention_mask.shape == (rows, keys) and queries == keys:
        valid = attention_mask.bool()
        attention_mask = valid[:, :, None] & valid[:, None, :]
    if attention_mask.shape != (rows, queries, keys):
        raise ValueError(
            f"attention_mask got shape {tuple(attention_mask.shape)} for scores {tuple(student.shape)}, expected "
            "(rows, positions) or (rows, positions, positions); pass the mask of the same batch."
        )
    pairs = attention_mask.bool()
    # Before the square: what is masked may be as low as a number goes.
    difference = (ours - theirs).masked_fill(~pairs[:, None], 0.0)
    return difference.square().sum((1, 2, 3)) / (heads * pairs.sum((1, 2))).clamp(min=1)


LEAST = 1e-9


def _by_head(loss: str, what: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked and in float32 or wider; their means over heads where the numbers of heads differ."""
    same_tokens = student.shape[::2] == teacher.shape[::2] and student.shape[2:] == teacher.shape[2:]
    if student.ndim != 4 or teacher.ndim != 4 or not same_tokens:
        raise ValueError(
            f"{loss} got student {what} {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}, "
            "expected (rows, heads, positions, positions) with equal rows and positions: the same tokens in both."
        )
    require_floating(f"student {what}", student)
    require_floating(f"teacher {what}", teacher)
    ours, theirs = widened(student), widened(teacher.detach())
    if ours.shape[1] != theirs.shape[1]:
        ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
    return ours, theirs


def _over_tokens(maps: Tensor, valid: Tensor) -> Tensor:
    kept = maps.masked_fill(~valid[:, None, None, :], 0.0)
    return kept / kept.sum(-1, keepdim=True).clamp(min=LEAST)
