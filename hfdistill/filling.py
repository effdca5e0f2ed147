"""Filling a cache: a teacher asked once for every example of some data, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from hfdistill.cache import StoredTeacher
from hfdistill.cache.collator import KEYS, MASK
from hfdistill.cache.contents import PLACES, ROWS
from hfdistill.errors import HfDistillError
from hfdistill.first_look import same_random_numbers
from hfdistill.views import STORED

SAMPLE, FEW = 32, 4
"""How many examples are looked up before a training, and how many at a time."""
FAR = 0.05
"""A stored number further from the live one than this, in shares of the largest, is another model's."""

Move = Callable[[Any], Any]
Inputs = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass
class Filled:
    """What came of filling: examples looked at, those that were new, bytes on the disk a new one, and seconds."""

    examples: int = 0
    new: int = 0
    example_bytes: float = 0.0
    seconds: float = 0.0


@dataclass
class Filling:
    """Asks a teacher for all that its cache lacks of some data.

    `move` brings a batch to the device, `inputs` takes the teacher's part of it, `say` tells how much there will be,
    once the first batch shows it.
    """

    teacher: StoredTeacher
    move: Move
    inputs: Inputs
    say: Callable[[str], None]
    filled: Filled = field(default_factory=Filled)
    total: int | None = None
    _started: float = field(default_factory=time.perf_counter)

    def __call__(self, batches: Iterator[Any] | DataLoader[Any]) -> None:
        """Go through the batches of a loader; what is asked for is written, also where this is interrupted."""
        try:
            for batch in batches:
                self._batch(batch)
        finally:
            self.teacher.flush()
            self.filled.seconds = time.perf_counter() - self._started

    def _batch(self, batch: Mapping[str, Any]) -> None:
        examples = len(next(value for value in batch.values() if isinstance(value, torch.Tensor)))
        first = self.filled.new == 0
        if KEYS in batch:
            where = self.teacher.store.find(batch[KEYS].numpy().view(np.uint64))
            begun = time.perf_counter()
            self.teacher(self.inputs(self.move(batch)))
            self.filled.new += int((where[:, 0] < 0).sum())
            if first:
                self._tell(batch, examples, time.perf_counter() - begun)
        self.filled.examples += examples

    def _tell(self, batch: Mapping[str, Any], examples: int, seconds: float) -> None:
        assert self.teacher.store.manifest is not None, "the first batch has made it"
        places = {kind: float(batch[MASK + kind].sum()) / examples for kind in (ROWS, PLACES) if MASK + kind in batch}
        self.filled.example_bytes = self.teacher.store.manifest.contents.bytes_of(places)
        size = f"about {readable(self.filled.example_bytes)} an example"
        if self.total is None:
            self.say(f"{size}.")
            return
        left = self.total - self.filled.examples
        whole = readable(self.filled.example_bytes * left)
        self.say(f"{left:,} examples, {size}, about {whole} and {seconds * left / examples:.0f} s in all.")


def readable(size: float) -> str:
    """A number of bytes in words."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def begin_view(dataset: Any, view: int) -> None:
    """Have a data set that replays its views show those of an epoch. Errors: HfDistillError for one that cannot."""
    methods = dir(type(dataset))
    if "set_epoch" in methods:
        dataset.set_epoch(view)
    elif view:
        raise HfDistillError(
            f"views={view + 1} came for a {type(dataset).__name__}, which shows each example in one way alone, or in "
            "ways of its own; expected a data set with set_epoch, such as ReplayedViews(dataset, ...)."
        )


def own_share(dataset: Any, process: int, processes: int) -> Any:
    """The examples that one of several processes fills in; a stream is cut by whoever made it."""
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or processes == 1:
        return dataset
    return Subset(dataset, range(process, len(dataset), processes))  # type: ignore[arg-type]


def sample_of(dataset: Any) -> Sequence[int]:
    """Places of a few examples, the same in every process."""
    drawn = np.random.default_rng(0)
    count = min(SAMPLE, len(dataset))
    places: list[int] = drawn.choice(len(dataset), size=count, replace=False).tolist()
    return places


def check_sample(
    teacher: StoredTeacher, dataset: Any, collator: Callable[[Any], Any], move: Move, inputs: Inputs
) -> None:
    """Look up a few random examples before training, and hold what is stored against the live teacher, if there is one.

    Errors: HfDistillError for data that the cache does not know, with the cause, and for another model.
    """
    if teacher.store.manifest is None or dataset is None or isinstance(dataset, IterableDataset):
        return
    if not isinstance(dataset, Sized) or not len(dataset):
        return
    with same_random_numbers():
        for batch in DataLoader(Subset(dataset, sample_of(dataset)), batch_size=FEW, collate_fn=collator):  # type: ignore[arg-type]
            if teacher.live is not None and KEYS not in batch:
                _check_live(teacher, inputs(move(batch)))
                return


def _check_live(teacher: StoredTeacher, given: Mapping[str, Any]) -> None:
    stored = teacher(given)
    fresh = teacher.fresh({name: value for name, value in given.items() if not name.startswith(STORED)}).logits
    ours = stored.logits
    if stored.kept is not None:
        fresh, ours = fresh.float().log_softmax(-1).gather(-1, stored.kept.indices.long()).exp(), ours.exp()
    # Places that do not count are 0 there.
    fresh = torch.where((ours != 0) & ours.isfinite(), fresh.float(), ours)
    largest, distance = float(fresh.abs().nan_to_num().max()), float((ours - fresh).abs().nan_to_num().max())
    if distance > FAR * (1 + largest):
        raise HfDistillError(
            f"{teacher.store.folder} holds other targets than the teacher gives now, for the same inputs: they differ "
            f"by {distance:.3g}, where the largest is {largest:.3g}. Was it filled in another precision, or by another "
            "version of the model's code? Give this teacher a folder of its own."
        )
