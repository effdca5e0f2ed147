"""CachedTeacher: a teacher that is paid for once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hfdistill.cache.manifest import Manifest, no_cache
from hfdistill.cache.store import SHARD_BYTES, Store
from hfdistill.cache.teacher import Settings
from hfdistill.errors import HfDistillError


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher whose targets lie in the folder `path`, for `DistillationTrainer(teacher_model=CachedTeacher(path))`.

    Each example is found by the hash of what its teacher reads, so that neither shuffling, nor batches, processes,
    filters or a resume can mix up rows: what has been changed is missing, and an error. With `teacher_model` (a module,
    a Hub id or a folder) the cache fills itself: what is missing is asked for and kept. Without, no teacher is in
    memory.
    The other arguments are of a cache that is new. `top_k` keeps the most likely classes of each row, and what all
    others weigh, for `forward_kl` alone; "auto": 64 of them from 2,048 classes on; None: all logits. `temperatures` are
    those at which the others' weight is kept. `dtype` is "float16" or "float32", `probabilities` that of the most
    likely ones, "float16" or "uint8"; `shard_bytes` the size of a file, which is what a killed process can lose.
    Errors: HfDistillError for a cache of another teacher, task or form.
    Sources: Shen and Xing (FKD), arXiv 2112.01528; Wu et al. (TinyViT), arXiv 2207.10666, for kept views and classes.
    """

    path: str | Path
    teacher_model: nn.Module | str | None = None
    top_k: int | str | None = "auto"
    temperatures: tuple[float, ...] = (1.0,)
    dtype: str = "float16"
    probabilities: str = "float16"
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise HfDistillError(f"dtype={self.dtype!r}; expected 'float16' or 'float32'.")
        if isinstance(self.top_k, str) and self.top_k != "auto":
            raise HfDistillError(f"top_k={self.top_k!r}; expected a number, 'auto', or None for all logits.")
        if self.teacher_model is not None and not isinstance(self.teacher_model, nn.Module | str):
            raise HfDistillError(
                f"CachedTeacher holds a {type(self.teacher_model).__name__}; expected one model: a module, a Hub id or "
                "a folder."
            )

    @property
    def folder(self) -> Path:
        """Where the cache lies."""
        return Path(self.path)

    def skeleton(self) -> nn.Module:
        """The teacher without weights, as the manifest describes it.

        Errors: HfDistillError where there is no cache.
        """
        manifest = Manifest.read(self.folder)
        if manifest is None:
            raise no_cache(self.folder)
        return manifest.teacher.skeleton()

    def store(self) -> Store:
        """The folder, open."""
        return Store(self.folder, self.shard_bytes)

    def settings(self, processing_class: Any) -> Settings:
        """In what form a new cache keeps outputs, and what made the inputs."""
        made_by = "" if processing_class is None else type(processing_class).__name__
        return Settings(self.top_k, self.dtype, self.probabilities, self.temperatures, made_by)
