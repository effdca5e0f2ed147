"""What a cached teacher shows of its insides: the hidden states and outputs of modules that terms have read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hfdistill.cache.contents import SEEN
from hfdistill.errors import HfDistillError
from hfdistill.sight import Seen

MODULE = "module"


class Layers(Sequence[torch.Tensor]):
    """The states of `count` layers, each given by `at` when it is asked for."""

    def __init__(self, count: int, at: Callable[[int], torch.Tensor]) -> None:
        self.layers = count
        self.at = at

    def __len__(self) -> int:
        return self.layers

    def __getitem__(self, place: int) -> torch.Tensor:  # type: ignore[override]
        if not -self.layers <= place < self.layers:
            raise IndexError(place)
        return self.at(place % self.layers)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[place] for place in range(self.layers))


@dataclass
class Shown:
    """What is kept of a teacher's insides: the names of its tensors, and how many layers each of its parts has."""

    names: list[str] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)

    def noting(self, seen: Seen) -> Seen:
        """The same as `seen`; what is read of it is noted here."""
        return _Noting(seen.inputs, seen.outputs, seen.modules, seen.projected, seen.calls, shown=self)

    def tensors(self, seen: Seen) -> dict[str, torch.Tensor]:
        """The noted tensors of a forward, by name."""
        found = {}
        for name in self.names:
            what, _, rest = name.removeprefix(SEEN).partition(".")
            if what == MODULE:
                found[name] = seen.output_of(rest)
            else:
                part, _, place = rest.rpartition(".")
                found[name] = seen.layers(what, part or None)[int(place)]
        return found

    def stored(self, inputs: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> Seen:
        """What is seen of a batch whose tensors were stored."""
        return _Stored(inputs, shown=self, tensors=tensors)

    def part(self, what: str, part: str | None) -> str:
        """The part that is meant where none is named."""
        parts = [name.partition(".")[2] for name in self.layers if name.partition(".")[0] == what]
        if part is None and len(parts) == 1:
            return parts[0]
        return part or ""

    def _note(self, name: str) -> None:
        if name not in self.names:
            self.names.append(name)


@dataclass
class _Noting(Seen):
    shown: Shown = field(default_factory=Shown)

    def layers(self, what: str, part: str | None) -> Sequence[torch.Tensor]:  # type: ignore[override]
        """The layers, which note what is taken of them."""
        found = super().layers(what, part)
        key = f"{what}.{part or ''}"
        self.shown.layers[key] = len(found)

        def at(place: int) -> torch.Tensor:
            self.shown._note(f"{SEEN}{key}.{place}")
            return found[place]

        return Layers(len(found), at)

    def output_of(self, name: str) -> torch.Tensor:
        """The output of a named module, noted."""
        found = super().output_of(name)
        self.shown._note(f"{SEEN}{MODULE}.{name}")
        return found


@dataclass
class _Stored(Seen):
    shown: Shown = field(default_factory=Shown)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def layers(self, what: str, part: str | None) -> Sequence[torch.Tensor]:  # type: ignore[override]
        """The layers, of which those that were kept can be taken."""
        key = f"{what}.{self.shown.part(what, part)}"
        return Layers(self.shown.layers.get(key, 0), lambda place: self._tensor(f"{SEEN}{key}.{place}"))

    def output_of(self, name: str) -> torch.Tensor:
        """The output of a module that was kept."""
        return self._tensor(f"{SEEN}{MODULE}.{name}")

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            kept = ", ".join(each.removeprefix(SEEN) for each in self.tensors) or "none"
            raise HfDistillError(
                f"The cache does not hold {name.removeprefix(SEEN)} of its teacher; it holds: {kept}. Build a cache "
                "for this objective."
            )
        return self.tensors[name]
