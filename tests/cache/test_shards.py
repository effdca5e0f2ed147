"""Files of a cache: whole or not at all, found by key, whoever wrote them."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfdistill import HfDistillError
from hfdistill.cache.shards import Index, Shard, ShardWriter, write_shard


def keys(*numbers: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A key a number; all of them begin alike."""
    return np.array([[7, number] for number in numbers], np.uint64)


def write(folder: Path, *numbers: int) -> Path:
    """A shard whose examples hold their number, once as it is and as often as it says."""
    ragged = np.concatenate([np.full((number, 2), number, np.float16) for number in numbers])
    arrays = {"whole": np.array(numbers, np.float32), "ragged": ragged, "counts.rows": np.array(numbers, np.int32)}
    return write_shard(folder, keys(*numbers), arrays)


def test_examples_are_found_in_whichever_shard(tmp_path: Path) -> None:
    """In any order, also where keys share their first half."""
    write(tmp_path, 3, 1)
    write(tmp_path, 2)
    index = Index(tmp_path)
    where = index.find(keys(2, 9, 3, 1))
    assert where[1].tolist() == [-1, -1]
    there = where[[0, 2, 3]]
    assert [float(each) for each in index.read(there, "whole", None)] == [2, 3, 1]
    assert [each.shape for each in index.read(there, "ragged", "rows")] == [(2, 2), (3, 2), (1, 2)]
    assert [float(each[0, 0]) for each in index.read(there, "ragged", "rows")] == [2, 3, 1]


def test_what_another_writer_has_written_is_found_after_a_refresh(tmp_path: Path) -> None:
    """Two writers do not overwrite each other, and an example that both wrote counts once."""
    index = Index(tmp_path)
    assert index.find(keys(1))[0, 0] == -1
    write(tmp_path, 1, 2)
    write(tmp_path, 2)
    assert index.refresh()
    assert not index.refresh()
    assert index.find(keys(1, 2)).min() >= 0
    assert len(index) == 2


@pytest.mark.parametrize("left", [-1, -100, 4, 0])
def test_a_shard_that_was_cut_off_is_refused_by_name(tmp_path: Path, left: int) -> None:
    """Whatever is left of it."""
    path = write(tmp_path, 1, 2)
    content = path.read_bytes()
    path.write_bytes(content[:left])
    with pytest.raises(HfDistillError, match=rf"{path.name} is no whole shard.*Delete this file"):
        Index(tmp_path)


def test_what_a_killed_writer_left_is_no_shard(tmp_path: Path) -> None:
    """It has a temporary name until it is whole."""
    path = write(tmp_path, 1)
    (tmp_path / f".{path.name}.123.incomplete").write_bytes(b"half of")
    assert len(Index(tmp_path)) == 1


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so."""
    write(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HfDistillError, match=r"No space left.*[Ff]ree some space"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert len(Index(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_makes_a_shard_of_every_so_many_bytes(tmp_path: Path) -> None:
    """And keeps each example once."""
    writer = ShardWriter(tmp_path, most_bytes=100)
    for number in (1, 2, 2, 3):
        writer.add(keys(number), {"whole": [np.full(10, number, np.float32)]}, {"whole": None})
    writer.flush()
    writer.flush()
    index = Index(tmp_path)
    assert len(index) == 3
    assert len(index.shards) == 1


def test_a_shard_travels_to_a_worker_without_its_content(tmp_path: Path) -> None:
    """Mapped files are opened there again."""
    shard = Shard(write(tmp_path, 1, 2))
    assert float(shard.array("whole")[1]) == 2
    there = pickle.loads(pickle.dumps(shard))
    assert there.arrays == {}
    assert float(there.array("whole")[1]) == 2
