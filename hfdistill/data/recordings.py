"""Recordings: decoded, cut, and turned into what a model hears, once where they fit into memory or as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import Tensor
from transformers import AutoModelForAudioClassification, PreTrainedConfig

from hfdistill.contract import processing_differences
from hfdistill.data.changes import Draws
from hfdistill.data.extractors import Extractor, extractor_of
from hfdistill.data.kind import Kind, SourceRequest
from hfdistill.data.sounds import Wave, data_folder, read_wave, sounds_of
from hfdistill.recipe import DataSection, RecipeError, StudentSection, TeacherSection

SAMPLE = 32
"""Recordings from which the memory that all of them take is estimated."""

Heard = dict[str, Any]
"""What a model hears of one recording: arrays without an axis of examples, by the names of its inputs."""


@dataclass(frozen=True)
class RecordingView:
    """How one model hears a recording: its feature extractor."""

    extractor: Extractor

    @property
    def processor(self) -> Any:
        """The feature extractor."""
        return self.extractor.inner

    def differences(self, other: RecordingView) -> list[str]:
        """In words what the other view does differently."""
        return processing_differences(self.extractor.inner, other.extractor.inner)


class RecordingKind(Kind):
    """What is heard through a feature extractor; with `data.max_seconds` training hears another cut in each epoch."""

    def __init__(
        self,
        train: datasets.Dataset,
        section: DataSection,
        columns: tuple[str, ...],
        known_names: Sequence[str] | None = None,
    ) -> None:
        if section.augment:
            raise RecipeError("data.augment: these change images, and the recipe reads recordings; set it to [].")
        super().__init__(train, section, columns, known_names)
        self.drawn = section.max_seconds is not None

    def recordings(self, request: SourceRequest) -> Recordings:
        """The recordings of a split for all views."""
        extractors = {name: view.extractor for name, view in request.views.items()}
        sounds = sounds_of(request.dataset, self.columns[0])
        cut = self.section.max_seconds
        files = Recordings(sounds, self.columns[0], data_folder(self.section), extractors, cut)
        return files.kept(request, changing=self.drawn and request.split == "train")


class SpokenClasses(RecordingKind):
    """Recordings with a label each."""

    name = "audio"
    auto_class = AutoModelForAudioClassification

    def view(
        self,
        section: TeacherSection | StudentSection,
        config: PreTrainedConfig,
        train: datasets.Dataset,
        teacher: RecordingView | None = None,
    ) -> RecordingView:
        """With the model's own feature extractor if it has one, or else the teacher's, or one made for it."""
        return RecordingView(extractor_of(section, config, self.section, teacher.extractor if teacher else None))

    def source(self, request: SourceRequest) -> Recordings:
        """In memory if they fit there, otherwise from disk."""
        return self.recordings(request)


@dataclass(frozen=True)
class Recordings:
    """The recordings of a split; what a view hears of them is kept in `heard`, or their waves by rate in `waves`."""

    sounds: datasets.Dataset
    column: str
    folder: Path
    extractors: Mapping[str, Extractor]
    seconds: float | None
    heard: Mapping[str, Sequence[Heard]] | None = None
    waves: Mapping[int, Sequence[Wave]] | None = None

    def __len__(self) -> int:
        return len(self.sounds)

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """One view of some rows, padded to the longest of them."""
        extractor = self.extractors[view]
        if self.heard is not None:
            return extractor.padded([self.heard[view][row] for row in rows.tolist()])
        starts = [0.5] * len(rows) if draws is None else draws.places[:, 0].tolist()
        return extractor.padded([self._heard(row, extractor, start) for row, start in _pairs(rows, starts)])

    def kept(self, request: SourceRequest, *, changing: bool) -> Recordings:
        """With all in memory that fits there: what is heard, or the waves alone where each epoch hears another cut."""
        sample = np.linspace(0, len(self) - 1, num=min(SAMPLE, len(self)), dtype=np.int64).tolist()
        rates = sorted({each.rate for each in self.extractors.values()})
        if changing:
            each_size = [sum(self._wave(row, rate).nbytes for rate in rates) for row in sample]
        else:
            each_size = [sum(_size(self._heard(row, each)) for each in self.extractors.values()) for row in sample]
        if np.mean(each_size) * len(self) > request.budget:
            return self
        rows = range(len(self))
        if changing:
            found = {rate: [self._wave(row, rate) for row in request.bar(rows, "Reading recordings")] for rate in rates}
            return self._with(waves=found)
        heard = {
            name: [self._heard(row, each) for row in request.bar(rows, "Reading recordings")]
            for name, each in self.extractors.items()
        }
        return self._with(heard=heard)

    def _with(self, **kept: Any) -> Recordings:
        return Recordings(self.sounds, self.column, self.folder, self.extractors, self.seconds, **kept)

    def _wave(self, row: int, rate: int) -> Wave:
        if self.waves is not None:
            return self.waves[rate][row]
        return read_wave(self.sounds, self.column, row, rate, self.folder)

    def _heard(self, row: int, extractor: Extractor, start: float = 0.5) -> Heard:
        return extractor.heard(self._cut(self._wave(row, extractor.rate), extractor.rate, start))

    def _cut(self, wave: Wave, rate: int, start: float) -> Wave:
        """At most so many seconds, from a share `start` of what there is to choose from."""
        if self.seconds is None or len(wave) <= (most := round(self.seconds * rate)):
            return wave
        first = int(start * (len(wave) - most + 1))
        return wave[first : first + most]


def _pairs(rows: Tensor, starts: Sequence[float]) -> zip[tuple[int, float]]:
    return zip(rows.tolist(), starts, strict=True)


def _size(heard: Heard) -> int:
    return sum(int(array.nbytes) for array in heard.values())
