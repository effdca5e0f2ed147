"""Which query of a student stands for which of its teacher: costs between two sets, and the cheapest assignment."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from hfdistill.losses import bernoulli_kl

# The weights that DETR (arXiv 2005.12872, A.4) gives the parts of a box, and Mask2Former (2112.01527) those of a mask.
L1_WEIGHT = 5.0
GIOU_WEIGHT = 2.0
PIXELS_WEIGHT = 5.0
DICE_WEIGHT = 5.0
# What a query without an object counts beside one with an object: the factor of DETR's own cross-entropy.
BACKGROUND_WEIGHT = 0.1


def probabilities(logits: torch.Tensor, no_object: bool) -> torch.Tensor:
    """Class probabilities: softmax where the last class means that there is no object, else a sigmoid a class."""
    return logits.float().softmax(-1) if no_object else logits.float().sigmoid()


def confidence(logits: torch.Tensor, no_object: bool) -> torch.Tensor:
    """The highest probability of any real class, `(..., classes)` to `(...)`: a detection's score in Transformers."""
    shares = probabilities(logits, no_object)
    return (shares[..., :-1] if no_object else shares).amax(-1)


def class_weight(confidence: torch.Tensor) -> torch.Tensor:
    """What a query's classes count for: its confidence c, and `BACKGROUND_WEIGHT` for the rest, c + b (1 - c)."""
    return confidence + BACKGROUND_WEIGHT * (1 - confidence)


def class_cost(student: torch.Tensor, teacher: torch.Tensor, no_object: bool) -> torch.Tensor:
    """Distance of class probabilities, logits `(batch, m, classes)`, `(batch, n, classes)` to `(batch, m, n)`.

    The sum of absolute differences, halved for softmax, so that an object against none costs 1 in either family.
    """
    distance = torch.cdist(probabilities(student, no_object), probabilities(teacher, no_object), p=1)
    return distance / 2 if no_object else distance


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes `(..., 4)` of centre, width and height as left, top, right, bottom."""
    x, y, width, height = boxes.unbind(-1)
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)


def generalised_iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Generalised intersection over union of boxes `(..., 4)` (centre, size), broadcast; from -1 to 1, 1 if equal.

    IoU - (hull - union) / hull, where the hull is the smallest box around both (Rezatofighi et al., arXiv 1902.09630).
    """
    one, other = corners(one), corners(other)
    shared = _area(torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:]))
    hull = _area(torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:]))
    union = _area(one[..., :2], one[..., 2:]) + _area(other[..., :2], other[..., 2:]) - shared
    tiny = torch.finfo(union.dtype).tiny
    return shared / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _area(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return (high - low).clamp(min=0).prod(-1)


def box_distance(
    one: torch.Tensor, other: torch.Tensor, l1: float = L1_WEIGHT, giou: float = GIOU_WEIGHT
) -> torch.Tensor:
    """`l1` times the sum of absolute differences and `giou` times 1 - GIoU, boxes `(..., 4)` to `(...)`, broadcast."""
    one, other = one.float(), other.float()
    return l1 * (one - other).abs().sum(-1) + giou * (1 - generalised_iou(one, other))


def mask_distance(
    student: torch.Tensor, teacher: torch.Tensor, pixels: float = PIXELS_WEIGHT, dice: float = DICE_WEIGHT
) -> torch.Tensor:
    """`pixels` times the mean Bernoulli KL of pixels and `dice` times the dice distance, logits `(..., n)` to `(...)`.

    Dice between probabilities p and q is 1 - 2 sum pq / (sum p^2 + sum q^2) (Milletari et al., arXiv 1606.04797), which
    unlike the form with plain sums is 0 for two equal soft masks.
    """
    flat = student.float().flatten(0, -2), teacher.float().flatten(0, -2)
    kl = bernoulli_kl(*flat).reshape(student.shape[:-1]) / student.shape[-1]
    p, q = student.float().sigmoid(), teacher.float().sigmoid()
    overlap = 2 * (p * q).sum(-1) / (p.square().sum(-1) + q.square().sum(-1))
    return pixels * kl + dice * (1 - overlap)


def mask_cost(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """`mask_distance` of every pair, logits `(batch, m, pixels)`, `(batch, n, pixels)` to `(batch, m, n)`."""
    student, teacher = student.float(), teacher.float()
    p, q = student.sigmoid(), teacher.sigmoid()
    size = student.shape[-1]
    # KL is cross-entropy less entropy, and the cross-entropy of logits z with shares q is softplus(z) - q z.
    crossed = functional.softplus(student).sum(-1)[:, :, None] - student @ q.transpose(1, 2)
    entropy = (functional.softplus(teacher) - q * teacher).sum(-1)[:, None, :]
    squares = p.square().sum(-1)[:, :, None] + q.square().sum(-1)[:, None, :]
    overlap = 2 * (p @ q.transpose(1, 2)) / squares
    return PIXELS_WEIGHT * (crossed - entropy).clamp(min=0) / size + DICE_WEIGHT * (1 - overlap)


def assignment(cost: torch.Tensor) -> torch.Tensor:
    """For each column of `(batch, m, n)`, m >= n, a row of its own, so that the sum of costs is least: `(batch, n)`.

    The Hungarian algorithm, on the host. A cost that is no number is taken for the highest.
    """
    highest = torch.finfo(torch.float32).max
    finite = cost.detach().float().nan_to_num(nan=highest, posinf=highest).cpu().numpy()
    rows = [linear_sum_assignment(each.T)[1] for each in finite]
    return torch.stack([torch.as_tensor(each, dtype=torch.long) for each in rows]).to(cost.device)


def taken(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The queries of `(batch, queries, ...)` at `index` `(batch, n)`: `(batch, n, ...)`."""
    return tensor[torch.arange(len(tensor), device=tensor.device)[:, None], index]
