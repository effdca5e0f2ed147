"""The teacher a micro-batch ahead: it is asked about the next while the student learns from the present one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from hfdistill.teachers.portions import insides
from hfdistill.teachers.targets import Targets

Batch = Mapping[str, Any]


class Asked(NamedTuple):
    """A micro-batch, and what the teacher says of it as soon as `ready` has come."""

    batch: Batch
    targets: Targets | None
    ready: torch.cuda.Event | None


class Ahead:
    """Asks for targets before they are needed; on CUDA on a stream of its own, beside the student's work.

    `ask` gives the targets of a micro-batch as the loader gives it. Elsewhere than on CUDA they come in the same order,
    one after the other. A batch and its targets more lie in memory.
    """

    def __init__(self, ask: Callable[[Batch], Targets | None], device: torch.device) -> None:
        self._ask = ask
        self._stream = _stream(device)
        self._source: Iterator[Batch] | None = None
        self._coming: list[Batch] = []
        self._drawn: list[Batch] = []
        self._asked: list[Asked] = []
        self._present: Asked | None = None

    def batches(self, source: Iterator[Batch], count: int) -> list[Batch]:
        """The next micro-batches of an epoch; the one after them is drawn too, and kept for the next call."""
        kept = self._drawn if source is self._source else []
        self._source, self._coming = source, list(islice(chain(kept, source), count + 1))
        self._drawn = self._coming[count:]
        return self._coming[:count]

    @contextmanager
    def of(self, batch: Batch) -> Iterator[None]:
        """Within the block the targets of this micro-batch are the `present` ones, and the next are on their way."""
        while self._asked and self._asked[0].batch is not batch:
            self._asked.pop(0)
        present = self._asked.pop(0) if self._asked else self._asking(batch)
        places = [place for place, each in enumerate(self._coming) if each is batch]
        following = self._coming[places[0] + 1 : places[0] + 2] if places else []
        self._asked.extend(self._asking(each) for each in following)
        self._present = present
        try:
            yield
        finally:
            self._present = None

    def present(self) -> Asked | None:
        """The present micro-batch's targets, awaited; None outside of such a block."""
        if self._present is not None and self._present.ready is not None:
            here = torch.cuda.current_stream(self._stream.device if self._stream is not None else None)
            here.wait_event(self._present.ready)
            for tensor in tensors_of(self._present.targets):
                if tensor.is_cuda:
                    tensor.record_stream(here)
        return self._present

    def _asking(self, batch: Batch) -> Asked:
        if self._stream is None:
            return Asked(batch, self._ask(batch), None)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            targets = self._ask(batch)
            return Asked(batch, targets, self._stream.record_event())


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def tensors_of(targets: Targets | None) -> Iterator[torch.Tensor]:
    """All tensors of targets, once each or more often."""
    if targets is None:
        return
    yield from _within((targets.logits, targets.fields, vars(targets.kept) if targets.kept else None))
    yield from _within([said.logits for said in targets.said])
    if targets.mixture is not None:
        yield from _within(vars(targets.mixture))
    if targets.seen is not None:
        seen = targets.seen
        yield from _within((insides(seen.outputs), seen.modules, [vars(call) for call in seen.calls]))


def _within(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _within(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _within(each)
