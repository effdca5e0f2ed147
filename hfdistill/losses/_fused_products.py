"""The four products of a fused head, with buffers of their own where a device multiplies a dtype slowly."""

from __future__ import annotations

import torch
from torch import Tensor

TILE_BYTES = 2 * 2**20
"""A piece of a head's weight in another dtype: it stays in a processor's cache while it is multiplied."""


def multiplied_natively(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has instructions for such products; without, they take ten to a hundred times those of float32.

    Seen with torch 2.13 on x86 without AVX-512: bfloat16 at a tenth of float32's speed, its transposed product at 1 %.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    operators = torch.ops.mkldnn
    supported = (
        operators._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else operators._is_mkldnn_fp16_supported()
    )
    return bool(supported)


class Products:
    """What is multiplied with one head's weight, `(classes, width)`, all of it in `dtype`.

    Where the weight has another dtype it is converted: piece by piece on a processor, at once on other devices, where
    sums over pieces would be rounded.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.classes, self.dtype = weight.shape[0], dtype
        whole = weight.dtype == dtype or weight.device.type != "cpu"
        self.weight = weight.to(dtype) if whole else weight
        width = max(1, weight.shape[1])
        rows = self.classes if whole else max(64, TILE_BYTES // (width * dtype.itemsize))
        self.cuts = [(start, min(start + rows, self.classes)) for start in range(0, self.classes, max(1, rows))]
        self.piece = None if whole else weight.new_empty(min(rows, self.classes), weight.shape[1], dtype=dtype)

    def _converted(self, start: int, end: int) -> Tensor:
        return self.weight if self.piece is None else self.piece[: end - start].copy_(self.weight[start:end])

    def logits_into(self, out: Tensor, hidden: Tensor) -> None:
        """`out = hidden W^T`."""
        for start, end in self.cuts:
            torch.mm(hidden, self._converted(start, end).t(), out=out[:, start:end])

    def hidden_into(self, out: Tensor, gradient: Tensor) -> None:
        """`out = gradient W`."""
        for place, (start, end) in enumerate(self.cuts):
            torch.addmm(out, gradient[:, start:end], self._converted(start, end), beta=1 if place else 0, out=out)

    def picked(self, classes: Tensor) -> Tensor:
        """The weight's rows of some classes."""
        return self.weight.index_select(0, classes).to(self.dtype)

    def weight_gradient_into(self, total: Tensor, gradient: Tensor, hidden: Tensor, *, first: bool) -> None:
        """`total += gradient^T hidden`; the `first` time `total` holds nothing yet."""
        if total.dtype == gradient.dtype:
            torch.addmm(total, gradient.t(), hidden, beta=0 if first else 1, out=total)
            return
        rows = max(64, TILE_BYTES // (hidden.shape[1] * gradient.dtype.itemsize))
        piece = gradient.new_empty(min(rows, self.classes), hidden.shape[1])
        for start in range(0, self.classes, rows):
            part = total[start : start + rows]
            product = torch.mm(gradient[:, start : start + rows].t(), hidden, out=piece[: len(part)])
            part.copy_(product) if first else part.add_(product)
