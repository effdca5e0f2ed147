"""Pre-processing of logits that any softmax loss can ask for with `standardized=True`."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.losses._checks import require_floating, require_standardizable, widened


def standardize(logits: Tensor) -> Tensor:
    """Logits with zero mean and unit spread in every row, so that only their order and shape are matched.

    z -> (z - mean_c z) / (std_c z + 1e-7), with the unbiased standard deviation over the classes.
    Shape (rows, classes) -> (rows, classes); no unit; float32 or wider.
    Domain: 3 classes or more. Logits of -inf (classes a model lacks) stay -inf and count neither in mean nor in spread.
    Errors: ValueError below 3 classes (two standardised logits are always +-0.7071); TypeError for integer logits.
    Source: Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427, Algorithm 1.
    """
    require_floating("logits", logits)
    require_standardizable(logits.shape[-1])
    logits = widened(logits)
    # Absent classes are computed with 0 and put back at the end: -inf would turn the student's gradient into NaN.
    absent = logits == -torch.inf
    count = (~absent).sum(-1, keepdim=True)
    filled = logits.masked_fill(absent, 0.0)
    centred = (filled - filled.sum(-1, keepdim=True) / count).masked_fill(absent, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    varies = variance > 0
    spread = torch.where(varies, variance, 1.0).sqrt() * varies
    return (centred / (spread + 1e-7)).masked_fill(absent, -torch.inf)
