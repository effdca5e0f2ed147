"""A loss on where tokens look."""

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
    if (
        student.ndim != 4
        or teacher.ndim != 4
        or student.shape[::2] != teacher.shape[::2]
        or (student.shape[2:] != teacher.shape[2:])
    ):
        raise ValueError(
            f"attention_map_kl got student maps {tuple(student.shape)} and teacher maps {tuple(teacher.shape)}, "
            "expected (rows, heads, positions, positions) with equal rows and positions: the same tokens in both."
        )
    require_floating("student maps", student)
    require_floating("teacher maps", teacher)
    ours, theirs = widened(student), widened(teacher.detach())
    if ours.shape[1] != theirs.shape[1]:
        ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
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


LEAST = 1e-9


def _over_tokens(maps: Tensor, valid: Tensor) -> Tensor:
    kept = maps.masked_fill(~valid[:, None, None, :], 0.0)
    return kept / kept.sum(-1, keepdim=True).clamp(min=LEAST)
