"""A collator that adds to each batch what the cache knows of its examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfdistill.cache.contents import PLACES, ROWS, SEEN
from hfdistill.cache.keys import DECODER, Keys, input_keys
from hfdistill.cache.manifest import Manifest, input_description
from hfdistill.cache.store import Store
from hfdistill.errors import HfDistillError
from hfdistill.tasks import Task, Tokens
from hfdistill.tasks.embeddings import PooledTokens
from hfdistill.tasks.layouts import Examples, Spans, first_tensor
from hfdistill.views import PACKING, STORED, TEACHER_PREFIX, Views

KEYS, MASK = STORED + "keys", STORED + "mask_"
"""In a batch of which something is missing in the cache: the keys of all its examples, as int64; and what begins the
names of the masks of its places."""


class MissingTargetsError(HfDistillError):
    """Examples that a cache without a teacher does not hold."""


def masks_of(batch: Mapping[str, Any], inputs: Mapping[str, Any], task: Task) -> dict[str, torch.Tensor]:
    """The places of a batch's examples: those whose logits count, of tokens, and those that hold something."""
    found = {}
    mask = inputs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        found[PLACES] = mask.bool()
    if isinstance(task.layout, Tokens):
        every = task.rows(batch).every
        assert every.index is not None, "tokens that count are picked"
        examples = len(first_tensor(inputs))
        counted = torch.zeros(every.size, dtype=torch.bool)
        counted[every.index.cpu()] = True
        found[ROWS] = counted.reshape(examples, -1)
    return found


def keys_of(batch: Mapping[str, Any], inputs: Mapping[str, Any], task: Task) -> tuple[Keys, dict[str, torch.Tensor]]:
    """The keys of a batch's examples, and the masks of their places.

    Errors: HfDistillError for sequences that are packed into one, which are no examples of their own.
    """
    packed = [name for name in PACKING if name in inputs]
    if packed:
        raise HfDistillError(
            f"The batch holds packed sequences ({packed[0]}), whose neighbours change with the order; expected an "
            "example in each row. Take a collator that pads, or packs made once before training."
        )
    masks, layout = masks_of(batch, inputs, task), task.layout
    # Frames and maps depend on how far their batch was padded.
    padded = not isinstance(layout, Examples | Tokens | Spans | PooledTokens)
    causal = ("",) if isinstance(layout, Tokens) and layout.shift else ()
    if isinstance(layout, Tokens) and layout.decoder:
        causal = (DECODER,)
    return input_keys(inputs, masks.get(ROWS), padded=padded, causal=causal), masks


@dataclass(frozen=True)
class CachingCollator:
    """Puts the stored targets of a batch beside it, or the keys of its examples where some are missing.

    With `complete` there is no teacher to ask, and a missing example is an error.
    """

    collator: Callable[[Any], Mapping[str, Any]]
    store: Store
    views: Views
    task: Task
    complete: bool

    def __call__(self, examples: Any) -> dict[str, Any]:
        """A batch with its targets."""
        batch = dict(self.collator(examples))
        inputs = self.views.teacher(batch)
        keys, masks = keys_of(batch, inputs, self.task)
        where = self.store.find(keys)
        missing = int((where[:, 0] < 0).sum())
        if not missing:
            batch.update(self.store.read(where, masks))
            if any(key.startswith(STORED + SEEN) for key in batch):
                return batch  # which positions hidden states have is told by the inputs
            # The teacher's own pictures have done their service, and need not travel to the device.
            return {key: value for key, value in batch.items() if not _is_picture(key, value)}
        if self.complete:
            raise MissingTargetsError(why_missing(missing, len(keys), self.store, inputs))
        batch[KEYS] = torch.from_numpy(keys.astype(np.uint64).view(np.int64))
        return batch | {MASK + kind: mask for kind, mask in masks.items()}


def _is_picture(key: str, value: Any) -> bool:
    return key.startswith(TEACHER_PREFIX) and isinstance(value, torch.Tensor) and value.is_floating_point()


def why_missing(missing: int, examples: int, store: Store, inputs: Mapping[str, Any]) -> str:
    """What to say where examples are not in the cache, with the cause where it can be told."""
    start = f"{missing} of {examples} examples of a batch are not in the cache {store.folder}"
    remedy = (
        "Fill the cache with the same data, processor and settings, or pass the teacher too, which then fills in what "
        "is missing: CachedTeacher(path, teacher_model=...)."
    )
    if store.manifest is None:
        return f"{start}, which is empty. {remedy}"
    difference = input_difference(store.manifest, inputs)
    if difference:
        return f"{start}: {difference}. {remedy}"
    if missing < examples:
        return (
            f"{start}, though others are: it was not filled to its end, or the data set has been changed or added to "
            f"since. {remedy}"
        )
    return (
        f"{start}. The inputs have the same form, so that what is in them is new: another data set, another processor "
        f"or tokenizer, or random changes that were not replayed (see ReplayedViews). {remedy}"
    )


def input_difference(manifest: Manifest, inputs: Mapping[str, Any]) -> str:
    """How these inputs differ in form from those that the cache was made from; empty where they do not."""
    own = input_description(inputs)
    for name in sorted({*own, *manifest.inputs}):
        here, there = own.get(name), manifest.inputs.get(name)
        if here != there:
            return f"the teacher reads {name} {here or 'not at all'}, and it was {there or 'not there'} in the cache"
    return ""
