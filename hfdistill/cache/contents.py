"""Contents: which outputs of a teacher a cache keeps, and how they become arrays and tensors again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hfdistill.cache.top_k import TopK
from hfdistill.errors import HfDistillError
from hfdistill.views import STORED

ROWS, PLACES = "rows", "places"
"""Places of an example that have an entry of their own: those that count for the loss, or all that hold something."""
LOGITS = "logits"
SEEN = "seen."
"""Begins the names of what a teacher shows of its insides."""
DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Entry:
    """One output: its shape for each example, or for each place of a kind."""

    shape: tuple[int, ...]
    along: str | None = None


@dataclass(frozen=True)
class Contents:
    """The outputs that are kept, by name; logits whole, or the `top_k` of them.

    `dtype` is that of all others; `layers` says how many layers the teacher's parts have, where some of them are kept.
    """

    entries: Mapping[str, Entry]
    dtype: str = "float16"
    top_k: TopK | None = None
    layers: Mapping[str, int] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[str, str | None]:
        """The kind of places of each array on the disk; None where an example has one entry."""
        found: dict[str, str | None] = {}
        for name, entry in self.entries.items():
            names = self.top_k.names if name == LOGITS and self.top_k else [name]
            found |= {array_name(name, each): entry.along for each in names}
        return found

    def bytes_of(self, places: Mapping[str, float]) -> float:
        """Bytes an example on the disk, for so many places of each kind; 16 of them are its key."""
        total = 16.0
        for name, entry in self.entries.items():
            count = places[entry.along] if entry.along else 1.0
            if name == LOGITS and self.top_k:
                total += count * int(np.prod(entry.shape[:-1])) * self.top_k.row_bytes
            else:
                total += count * int(np.prod(entry.shape)) * DTYPES[self.dtype].itemsize
        return total

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        top_k = None if self.top_k is None else vars(self.top_k) | {"temperatures": list(self.top_k.temperatures)}
        entries = {name: {"shape": list(each.shape), "along": each.along} for name, each in self.entries.items()}
        return {"entries": entries, "dtype": self.dtype, "top_k": top_k, "layers": dict(self.layers)}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Contents:
        """From the manifest."""
        top_k = given["top_k"]
        if top_k is not None:
            top_k = TopK(**(top_k | {"temperatures": tuple(top_k["temperatures"])}))
        entries = {name: Entry(tuple(each["shape"]), each["along"]) for name, each in given["entries"].items()}
        return cls(entries, given["dtype"], top_k, given["layers"])

    def packed(self, outputs: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> Packed:
        """A batch's outputs as arrays, an entry for each example; `masks` are the places of each kind.

        Errors: HfDistillError for outputs of another shape than those before.
        """
        arrays: dict[str, Sequence[NDArray[Any]]] = {}
        for name, entry in self.entries.items():
            tensor = outputs[name].detach()
            shape = tuple(tensor.shape[1:] if entry.along is None else tensor.shape[2:])
            if shape != entry.shape:
                raise HfDistillError(
                    f"The teacher's {name} is {shape} an example here and was {entry.shape} in the cache; expected "
                    "one shape. Bring all examples to one size or length (padding='max_length', one image size)."
                )
            mask = None if entry.along is None else masks[entry.along].to(tensor.device)
            chosen = tensor if mask is None else tensor[mask]
            counts = None if mask is None else mask.sum(1).tolist()
            packed = self._arrays(name, chosen)
            for each, array in packed.items():
                arrays[array_name(name, each)] = (
                    list(array) if counts is None else np.split(array, np.cumsum(counts)[:-1])
                )
        return Packed(arrays, self.kinds)

    def _arrays(self, name: str, tensor: torch.Tensor) -> dict[str, NDArray[Any]]:
        if name == LOGITS and self.top_k:
            return self.top_k.packed(tensor)
        limit = torch.finfo(DTYPES[self.dtype]).max
        # -inf says that a class is impossible, and NaN that something is wrong: both stay.
        finite = torch.where(tensor.isfinite(), tensor.clamp(-limit, limit), tensor)
        return {name: finite.to(DTYPES[self.dtype]).cpu().numpy()}

    def unpacked(
        self, read: Callable[[str, str | None], Sequence[NDArray[Any]]], masks: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What is added to a batch: each kept output as a tensor `(examples, ...)`, 0 where nothing was kept.

        `read` gives the entries of an array by its name and kind.
        """
        batch: dict[str, torch.Tensor] = {}
        for name, entry in self.entries.items():
            names = self.top_k.names if name == LOGITS and self.top_k else [name]
            entries = {each: read(array_name(name, each), entry.along) for each in names}
            joined = {
                each: np.stack(found) if entry.along is None else np.concatenate(found)
                for each, found in entries.items()
            }
            if name == LOGITS and self.top_k:
                tensors = self.top_k.unpacked(joined)
            else:
                tensors = {name: torch.from_numpy(np.ascontiguousarray(joined[name]))}
            for each, tensor in tensors.items():
                if entry.along is not None:
                    mask = masks[entry.along]
                    spread = tensor.new_zeros(*mask.shape, *tensor.shape[1:])
                    spread[mask] = tensor
                    tensor = spread
                batch[STORED + each] = tensor
        return batch


@dataclass(frozen=True)
class Packed:
    """A batch's arrays by name, an entry for each example, and the kind of places of each."""

    arrays: Mapping[str, Sequence[NDArray[Any]]]
    kinds: Mapping[str, str | None]


def array_name(output: str, part: str) -> str:
    """The name of an array on the disk: that of the output, or of a part of it."""
    return output if part == output else f"{output}.{part}"
