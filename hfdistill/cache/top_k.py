"""The k most likely classes of a row, packed: 18 bits an index of a large vocabulary, 16 or 8 a log-probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hfdistill.errors import HfDistillError

LOW, HIGH, LOGS, SCALE, REST = "indices", "indices_high", "log_probabilities", "scale", "rest"
LOW_BITS = 16
LEVELS = 255
FLOAT16, UINT8 = "float16", "uint8"


@dataclass(frozen=True)
class TopK:
    """How the k most likely of `classes` are kept, with the mass of all others at each of some temperatures.

    `store` is the type of the log-probabilities: "float16", or "uint8", whose steps are 1/255 of the row's range.
    Domain: 1 <= k < classes <= 2^24, temperatures above 0. Errors: HfDistillError outside of it.
    """

    k: int
    classes: int
    temperatures: tuple[float, ...] = (1.0,)
    store: str = FLOAT16

    def __post_init__(self) -> None:
        if not 1 <= self.k < self.classes <= 2**24:
            raise HfDistillError(f"top_k={self.k} of {self.classes} classes; expected from 1 to one below the classes.")
        if self.store not in (FLOAT16, UINT8):
            raise HfDistillError(f"probabilities={self.store!r}; expected {FLOAT16!r} or {UINT8!r}.")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise HfDistillError(f"temperatures={self.temperatures!r}; expected at least one, and all above 0.")

    @property
    def high_bits(self) -> int:
        """Bits of an index beyond the lower 16: 0, 2, 4 or 8."""
        needed = (self.classes - 1).bit_length() - LOW_BITS
        return next(bits for bits in (0, 2, 4, 8) if needed <= bits)

    @property
    def row_bytes(self) -> int:
        """Bytes a row."""
        logs = 2 * self.k if self.store == FLOAT16 else self.k + 2
        return 2 * self.k + -(-self.k * self.high_bits // 8) + logs + 2 * len(self.temperatures)

    def packed(self, logits: torch.Tensor) -> dict[str, NDArray[Any]]:
        """The arrays of some rows of logits `(..., classes)`."""
        logs = logits.float().log_softmax(-1)
        kept, indices = logs.topk(self.k, dim=-1)
        others = logs.scatter(-1, indices, -torch.inf)
        rest = [(others / each).logsumexp(-1) for each in self.temperatures]
        numbers = indices.cpu().numpy()
        arrays: dict[str, NDArray[Any]] = {LOW: (numbers & (2**LOW_BITS - 1)).astype(np.uint16)}
        if self.high_bits:
            arrays[HIGH] = _packed_bits((numbers >> LOW_BITS).astype(np.uint8), self.high_bits)
        least = torch.finfo(torch.float16).min
        if self.store == FLOAT16:
            arrays[LOGS] = kept.clamp(min=least).to(torch.float16).cpu().numpy()
        else:
            scale = (-kept.amin(-1, keepdim=True).clamp(min=least) / LEVELS).to(torch.float16).float()
            scale = scale.clamp(min=2.0**-24)
            arrays[LOGS] = (-kept / scale).round().clamp(0, LEVELS).to(torch.uint8).cpu().numpy()
            arrays[SCALE] = scale.to(torch.float16).cpu().numpy()
        arrays[REST] = torch.stack(rest, -1).clamp(min=least).to(torch.float16).cpu().numpy()
        return arrays

    @property
    def names(self) -> Sequence[str]:
        """The names of the arrays."""
        return [LOW, *([HIGH] if self.high_bits else []), LOGS, *([SCALE] if self.store == UINT8 else []), REST]

    def unpacked(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        """Indices (int32), log-probabilities (float16, or float32 from 8 bits) and the rest, `(..., k or T)`."""
        numbers = arrays[LOW].astype(np.int32)
        if self.high_bits:
            numbers |= _unpacked_bits(arrays[HIGH], self.high_bits, self.k).astype(np.int32) << LOW_BITS
        logs = arrays[LOGS]
        if self.store == UINT8:
            logs = -logs.astype(np.float32) * arrays[SCALE].astype(np.float32)
        found = {LOW: numbers, LOGS: logs, REST: arrays[REST]}
        return {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in found.items()}


def _packed_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Numbers of a few bits, several to a byte along the last axis."""
    if bits == 8:
        return values
    each = 8 // bits
    short = -values.shape[-1] % each
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, short)])
    parts = padded.reshape(*values.shape[:-1], -1, each)
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts << shifts, axis=-1)
    return packed


def _unpacked_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    parts = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    values: NDArray[np.uint8] = parts.reshape(*packed.shape[:-1], -1)[..., :count]
    return values
