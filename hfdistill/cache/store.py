"""The store: a cache's folder, open for reading and for filling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hfdistill.cache.contents import Packed
from hfdistill.cache.keys import Keys
from hfdistill.cache.manifest import Manifest
from hfdistill.cache.shards import Index, ShardWriter
from hfdistill.errors import HfDistillError

SHARD_BYTES = 64 * 2**20


@dataclass
class Store:
    """What is in the folder, found by key, and what is waiting to be written there."""

    folder: Path
    shard_bytes: int = SHARD_BYTES
    manifest: Manifest | None = field(init=False)
    index: Index = field(init=False)
    writer: ShardWriter = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HfDistillError(f"{self.folder} cannot be a cache: {error.strerror}.") from error
        self.manifest = Manifest.read(self.folder)
        self.index = Index(self.folder)
        self.writer = ShardWriter(self.folder, self.shard_bytes)
        if self.manifest is None and len(self.index):
            raise HfDistillError(
                f"{self.folder} holds shards and no cache.json that says whose they are; expected a whole cache or an "
                "empty folder."
            )

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Shard and row of each key, also in shards that others have written since; -1 where it is not there."""
        where = self.index.find(keys)
        if len(where) and where.min() < 0 and self.index.refresh():
            where = self.index.find(keys)
        return where

    def read(self, where: NDArray[np.int64], masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is added to a batch whose examples are at these places."""
        assert self.manifest is not None, "there are shards only beside a manifest"
        return self.manifest.contents.unpacked(lambda name, kind: self.index.read(where, name, kind), masks)

    def add(self, keys: Keys, packed: Packed) -> None:
        """Keep what is new of a batch. Errors: HfDistillError where the disk is full."""
        missing = self.index.find(keys)[:, 0] < 0
        places = np.flatnonzero(missing).tolist()
        if places:
            arrays = {name: [entries[place] for place in places] for name, entries in packed.arrays.items()}
            self.writer.add(keys[places], arrays, packed.kinds)

    def flush(self) -> None:
        """Write what is waiting, and find it from now on."""
        self.writer.flush()
        self.index.refresh()


def of_packed(packed: Packed) -> Any:
    """A reader of a batch's arrays that were packed just now, for `Contents.unpacked`."""
    return lambda name, kind: packed.arrays[name]
