"""Shards: the files of a cache. Plain arrays, mapped into memory; written whole or not at all; found by key."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hfdistill._atomic import replacement
from hfdistill.cache.keys import Keys
from hfdistill.errors import HfDistillError

KEYS = "keys"
COUNTS = "counts."
"""Begins the names of the arrays that say how many places of a kind (rows, tokens) each example has."""
SUFFIX = ".safetensors"
DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "U64": "u8", "U32": "u4"}
DTYPES |= {"U16": "u2", "U8": "u1", "I8": "i1"}

Arrays = Mapping[str, NDArray[Any]]


def write_shard(folder: Path, keys: Keys, arrays: Arrays, name: str | None = None) -> Path:
    """Write the examples of one shard under a name that no other writer takes, or a given one; returns the file.

    Errors: HfDistillError for a full disk; then nothing of this shard is there.
    """
    path = folder / f"{name or f'shard-{uuid.uuid4().hex}'}{SUFFIX}"
    with replacement(path) as temporary:
        save_file({KEYS: keys, **{name: np.ascontiguousarray(each) for name, each in arrays.items()}}, temporary)
    return path


class Shard:
    """One file: its arrays by name, mapped when they are first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, self.start = _header(path)
        self.keys: Keys = np.array(self._mapped(KEYS))
        self.starts: dict[str, NDArray[np.int64]] = {}
        for name in self.header:
            if name.startswith(COUNTS):
                self.starts[name.removeprefix(COUNTS)] = np.concatenate(
                    [np.zeros(1, np.int64), np.cumsum(self._mapped(name), dtype=np.int64)]
                )
        self.arrays: dict[str, NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would travel to a worker process as a copy of the whole file.
        return {**vars(self), "arrays": {}}

    def array(self, name: str) -> NDArray[Any]:
        """All of one array."""
        if name not in self.arrays:
            self.arrays[name] = self._mapped(name)
        return self.arrays[name]

    def _mapped(self, name: str) -> NDArray[Any]:
        entry = self.header[name]
        shape, dtype = tuple(entry["shape"]), np.dtype(DTYPES[entry["dtype"]])
        if 0 in shape:
            return np.zeros(shape, dtype)
        offset = self.start + entry["data_offsets"][0]
        return np.memmap(self.path, dtype, "r", offset, shape)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its arrays, and where they begin.

    Errors: HfDistillError for a file that is cut off or none of these.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length < size else {}
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
    except (ValueError, TypeError, KeyError, AttributeError):
        ends, header, length = [], {}, 0
    if KEYS not in header or 8 + length + max(ends) != size:
        raise HfDistillError(
            f"{path} is no whole shard of a cache: it has {size} bytes, and its header does not speak of as many. It "
            "was cut off or changed after it was written. Delete this file and fill the cache again: what the other "
            "shards hold stays."
        )
    return header, 8 + length


class Index:
    """All keys of a cache's shards; new shards, of this process or another, are taken in by `refresh`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[Shard] = []
        self._names: set[str] = set()
        self._first: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._second: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._where: NDArray[np.int64] = np.empty((0, 2), np.int64)
        self.refresh()

    def __len__(self) -> int:
        """How many different examples there are."""
        if not len(self._first):
            return 0
        new = (self._first[1:] != self._first[:-1]) | (self._second[1:] != self._second[:-1])
        return 1 + int(new.sum())

    def refresh(self) -> bool:
        """Take in what is new on the disk; returns whether there was anything."""
        names = sorted(path.name for path in self.folder.glob(f"[!.]*{SUFFIX}"))
        new = [name for name in names if name not in self._names]
        if not new:
            return False
        for name in new:
            self.shards.append(Shard(self.folder / name))
            self._names.add(name)
        keys = np.concatenate([shard.keys for shard in self.shards])
        where = np.concatenate(
            [
                np.stack([np.full(len(shard.keys), number), np.arange(len(shard.keys))], 1)
                for number, shard in enumerate(self.shards)
            ]
        )
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._first, self._second, self._where = keys[order, 0], keys[order, 1], where[order]
        return True

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Shard and row of each key, `(keys, 2)`; -1 where it is not there."""
        if not len(self._first):
            return np.full((len(keys), 2), -1)
        places = np.searchsorted(self._first, keys[:, 0])
        found = np.full((len(keys), 2), -1)
        for number, place in enumerate(places):
            # Two keys that share their first half are next to each other.
            while place < len(self._first) and self._first[place] == keys[number, 0]:
                if self._second[place] == keys[number, 1]:
                    found[number] = self._where[place]
                    break
                place += 1
        return found

    def read(self, where: NDArray[np.int64], name: str, kind: str | None) -> list[NDArray[Any]]:
        """One array's entries for some examples; `kind` names the places that its rows stand for, if any."""
        entries = []
        for number, row in where:
            shard = self.shards[number]
            array = shard.array(name)
            if kind is None:
                entries.append(array[row])
            else:
                starts = shard.starts[kind]
                entries.append(array[starts[row] : starts[row + 1]])
        return entries


class ShardWriter:
    """Collects examples and writes a shard whenever there are enough bytes."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._keys: list[Keys] = []
        self._arrays: dict[str, list[NDArray[Any]]] = {}
        self._known: set[bytes] = set()
        self.bytes = 0

    def add(self, keys: Keys, arrays: Mapping[str, Sequence[NDArray[Any]]], ragged: Mapping[str, str | None]) -> None:
        """Take in examples, one entry of each array for each key; those that are waiting already are left out."""
        new = [place for place, key in enumerate(keys) if key.tobytes() not in self._known]
        if not new:
            return
        self._known.update(keys[place].tobytes() for place in new)
        self._keys.append(keys[new])
        counted: dict[str, list[int]] = {}
        for name, entries in arrays.items():
            chosen = [entries[place] for place in new]
            kind = ragged[name]
            if kind is not None and kind not in counted:
                counted[kind] = [len(entry) for entry in chosen]
            joined = np.stack(chosen) if kind is None else np.concatenate(chosen)
            self._arrays.setdefault(name, []).append(joined)
            self.bytes += joined.nbytes
        for kind, lengths in counted.items():
            self._arrays.setdefault(COUNTS + kind, []).append(np.array(lengths, np.int32))
        if self.bytes >= self.most_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as a shard, if anything is."""
        if not self._keys:
            return
        write_shard(
            self.folder,
            np.concatenate(self._keys),
            {name: np.concatenate(parts) for name, parts in self._arrays.items()},
        )
        self._keys, self._arrays, self.bytes = [], {}, 0
        self._known = set()
