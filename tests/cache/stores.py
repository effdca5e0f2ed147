"""Caches made by hand: every form in which outputs are kept, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hfdistill.cache import Manifest, Store, TeacherIdentity
from hfdistill.cache.contents import PLACES, ROWS, Contents, Entry
from hfdistill.cache.top_k import TopK

IDENTITY = TeacherIdentity(
    "ViTForImageClassification", "0123456789abcdef", "float32", "/home/me/teacher", config={"model_type": "vit"}
)
FORMS = {
    "dense": Contents({"logits": Entry((3,)), "scores": Entry(())}, "float32"),
    "maps": Contents({"logits": Entry((2, 3, 4))}),
    "top-k": Contents({"logits": Entry((70_000,), ROWS)}, top_k=TopK(5, 70_000, (1.0, 2.0))),
    "8 bits": Contents({"logits": Entry((70_000,))}, top_k=TopK(5, 70_000, store="uint8")),
    "hidden states": Contents(
        {"logits": Entry((7,), ROWS), "seen.hidden_states.vit.3": Entry((4,), PLACES)}, layers={"hidden_states.vit": 5}
    ),
}


def store(folder: Path, form: str, shards: int = 3, examples: int = 4) -> Store:
    """A cache of a few shards, with lengths that differ, none among them, and numbers that are none."""
    contents = FORMS[form]
    made = Manifest(IDENTITY, "single_label_classification", {"pixel_values": "float32 (3, 8, 8)"}, contents, views=2)
    made.write(folder)
    found = Store(folder)
    numbers = torch.Generator().manual_seed(0)
    for shard in range(shards):
        masks = {
            kind: torch.arange(6)[None] < torch.arange(examples)[:, None] + shift
            for shift, kind in enumerate((ROWS, PLACES))
        }
        outputs = {
            name: torch.randn((examples, *([6] if entry.along else []), *entry.shape), generator=numbers)
            for name, entry in contents.entries.items()
        }
        for tensor in outputs.values():
            tensor.view(-1)[:3] = torch.tensor([float("nan"), -float("inf"), -0.0])
        keys = np.random.default_rng(shard).integers(0, 2**64, (examples, 2), np.uint64)
        found.add(keys, contents.packed(outputs, masks))
        found.flush()
    return found
