"""Keys: what an example is known by in a cache, the hash of all that its teacher reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
"""`(examples, 2)`: 128 bits each."""
DECODER = "decoder_"


def input_keys(
    inputs: Mapping[str, Any],
    counted: torch.Tensor | None = None,
    *,
    padded: bool = False,
    causal: tuple[str, ...] = (),
) -> Keys:
    """The keys of a batch's examples, from the teacher's inputs `(examples, ...)`.

    Padding at the end is no part of an example, so that its key does not depend on the batch that it is in: places
    behind the last one of an `attention_mask` are left out, unless `padded` says that the teacher's outputs depend on
    them. `counted` `(examples, positions)` are the places whose outputs are kept, a part of the key; of inputs whose
    names begin with `causal`, and which have no mask, nothing behind the last of these can matter.
    Source: XXH3 of 128 bits (Collet, xxHash).
    """
    tensors = {name: value for name, value in sorted(inputs.items()) if isinstance(value, torch.Tensor) and value.dim()}
    if counted is not None:
        tensors["counted"] = counted
    arrays = {name: plain(value) for name, value in tensors.items()}
    lengths = {} if padded else _lengths(arrays, causal)
    examples = len(next(iter(arrays.values())))
    found = np.empty((examples, 2), np.uint64)
    for place in range(examples):
        digest = xxhash.xxh3_128()
        for name, array in arrays.items():
            row = array[place]
            if name in lengths:
                axis, ends = lengths[name]
                row = row[: ends[place]] if axis == 0 else row[:, : ends[place]]
            digest.update(f"{name} {array.dtype.str} {row.shape}".encode())
            digest.update(np.ascontiguousarray(row).data.cast("B") if row.size else b"")
        number = digest.intdigest()
        found[place] = number >> 64, number & (2**64 - 1)
    return found


def _lengths(arrays: Mapping[str, NDArray[Any]], causal: tuple[str, ...]) -> dict[str, tuple[int, NDArray[np.int64]]]:
    """The axis of an example's places in each array that has such, and how many are not padding at the end."""
    found = {}
    for mask, prefix in (("attention_mask", ""), (f"{DECODER}attention_mask", DECODER)):
        attended = arrays.get(mask)
        # Choices of a question have a mask each, and are padded together.
        if attended is not None and attended.ndim in (2, 3):
            for name, array in arrays.items():
                of_decoder = name.startswith(DECODER) or (name == "counted" and DECODER in causal)
                if of_decoder == bool(prefix) and array.shape[: attended.ndim] == attended.shape:
                    found[name] = attended.ndim - 2, _ends(attended)
    counted = arrays.get("counted")
    if counted is not None and causal:
        for name, array in arrays.items():
            if name not in found and name.startswith(("counted", *causal)) and array.shape[:2] == counted.shape:
                found[name] = 0, _ends(counted)
    return found


def _ends(mask: NDArray[Any]) -> NDArray[np.int64]:
    """The place behind the last one of each example that is not 0."""
    there = (mask != 0).reshape(len(mask), -1, mask.shape[-1]).any(1)
    last = there.shape[1] - there[:, ::-1].argmax(1)
    ends: NDArray[np.int64] = np.where(there.any(1), last, 0)
    return ends


def plain(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as an array of numpy's, which has no bfloat16: its bits then."""
    tensor = tensor.detach().cpu()
    array: NDArray[Any] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
