"""Processes that are killed while they fill a cache: what was written stays, what was not is asked for again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hfdistill import CachedTeacher
from hfdistill.cache.shards import Index
from tests.cache import runs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def killed_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose process is no more at the so-manieth call."""
    calls = []

    def deadly(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return deadly


def fill(cache: Path, folder: Path, teacher: Any) -> int:
    """Fill a cache, four examples a batch and a file; returns how many were new."""
    given = CachedTeacher(cache, teacher, dtype="float32", shard_bytes=40)
    trainer = runs.trainer_of("vit", given, folder, per_device_eval_batch_size=4)
    return trainer.fill_cache(bar=lambda batches, title: batches).new


@pytest.mark.parametrize(
    ("phase", "call", "kept"),
    [("teacher", 3, 8), ("manifest", 1, 0), ("file", 2, 0), ("file", 4, 8), ("name", 3, 4)],
    ids=["asking", "the manifest in place", "writing the first file", "writing a later one", "naming a file"],
)
def test_a_killed_filling_goes_on(phase: str, call: int, kept: int, tmp_path: Path) -> None:
    """Nothing but the open file is lost, and the training from the cache is the live one's."""
    cache = tmp_path / "cache"
    teacher = runs.teacher("vit")
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            if phase == "teacher":
                teacher.forward = killed_at(call, teacher.forward)  # type: ignore[method-assign]
            elif phase == "manifest":
                os.link = killed_at(call, os.link)
            elif phase == "file":
                os.fsync = killed_at(call, os.fsync)
            else:
                Path.replace = killed_at(call, Path.replace)  # type: ignore[method-assign]
            fill(cache, tmp_path / "out", teacher)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(Index(cache)) == kept
    assert fill(cache, tmp_path / "out", runs.teacher("vit")) == 24 - kept
    live = runs.trained("vit", runs.teacher("vit"), tmp_path / "out")
    for name, value in runs.trained("vit", CachedTeacher(cache), tmp_path / "out").items():
        assert torch.equal(value, live[name]), name
