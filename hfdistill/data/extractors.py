"""Feature extractors of the two models: loaded from beside a model, or made for one that is built from a config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    FEATURE_EXTRACTOR_MAPPING,
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    PreTrainedConfig,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from hfdistill.data.processors import loaded_processor, processor_name
from hfdistill.recipe import DataSection, RecipeError, StudentSection, TeacherSection

USUAL_RATE = 16_000
"""Samples a second of nearly all speech models."""
SIZED: tuple[Any, Any, Any] = (ASTFeatureExtractor, WhisperFeatureExtractor, Wav2Vec2FeatureExtractor)
"""Extractors that have to know something of their model."""
HOP = 160
"""Samples between two frames of Whisper's spectrogram; its encoder halves them."""


@dataclass(frozen=True)
class Extractor:
    """A feature extractor, by which each recording is heard alone, so that a row does not depend on its batch."""

    inner: Any

    @property
    def rate(self) -> int:
        """Samples a second."""
        return int(self.inner.sampling_rate)

    def heard(self, wave: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What a model hears of one recording: arrays without an axis of examples, such as `(samples,)`."""
        found: Mapping[str, Any] = self.inner(wave, sampling_rate=self.rate, return_tensors="np")
        arrays = {name: np.asarray(values)[0] for name, values in found.items()}
        # A mask takes a byte where int64 would take twice the memory of the samples.
        return {
            name: array.astype(np.float32 if array.dtype.kind == "f" else np.int8) for name, array in arrays.items()
        }

    def padded(self, recordings: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Tensor]:
        """A batch, padded at the end to its longest recording; masks are int64 and 0 there."""
        batch = {}
        for name in recordings[0]:
            arrays = [each[name] for each in recordings]
            mask = arrays[0].dtype.kind != "f"
            longest = max(len(array) for array in arrays)
            whole = np.full(
                (len(arrays), longest, *arrays[0].shape[1:]),
                0 if mask else self.inner.padding_value,
                np.int64 if mask else np.float32,
            )
            for place, array in enumerate(arrays):
                whole[place, : len(array)] = array
            batch[name] = torch.from_numpy(whole)
        return batch


def extractor_of(
    section: TeacherSection | StudentSection,
    config: PreTrainedConfig,
    data: DataSection,
    teacher: Extractor | None = None,
) -> Extractor:
    """The one beside a model, or else the teacher's where it is of the kind that the model needs, or one made for it.

    Errors: HfDistillError where none can be loaded, RecipeError where none can be made.
    """
    if processor_name(section) is not None:
        return Extractor(loaded_processor(AutoFeatureExtractor, section))
    made = _made(section, config, data)
    if teacher is not None and type(made) is type(teacher.inner) and _sizes(made) == _sizes(teacher.inner):
        return teacher
    return Extractor(made)


def _sizes(extractor: Any) -> list[Any]:
    """What a model's weights decide of its extractor."""
    settings = vars(extractor)
    return [settings.get(name) for name in ("feature_size", "num_mel_bins", "max_length", "n_samples")]


def _made(section: TeacherSection | StudentSection, config: PreTrainedConfig, data: DataSection) -> Any:
    settings = config.to_dict()
    rate = data.sampling_rate or USUAL_RATE
    kind: Any = FEATURE_EXTRACTOR_MAPPING.get(type(config), None)
    spectrogram, whisper, waves = SIZED
    if kind is None:
        raise RecipeError(
            f"{section.SECTION}.config.model_type: a {config.model_type} hears no recordings; expected one such as "
            "wav2vec2, hubert, audio-spectrogram-transformer or whisper."
        )
    if kind is spectrogram:
        return kind(sampling_rate=rate, num_mel_bins=settings["num_mel_bins"], max_length=settings["max_length"])
    if kind is whisper and "max_source_positions" in settings:
        samples = 2 * HOP * settings["max_source_positions"]
        if samples % rate:
            raise RecipeError(
                f"{section.SECTION}.config.max_source_positions: {settings['max_source_positions']} positions are "
                f"{samples / rate:.3g} seconds at {rate} samples a second; expected whole seconds, such as "
                f"{rate // (2 * HOP)} for one."
            )
        return kind(feature_size=settings["num_mel_bins"], sampling_rate=rate, chunk_length=samples // rate)
    if kind is waves:
        # As Transformers has it: models with group norm were trained on padding without a mask.
        return kind(sampling_rate=rate, return_attention_mask=settings.get("feat_extract_norm") == "layer")
    options = {"sampling_rate": rate, "feature_size": settings.get("input_feat_per_channel")}
    options["num_mel_bins"] = options["feature_size"]
    known = inspect.signature(kind.__init__).parameters
    return kind(**{name: value for name, value in options.items() if value is not None and name in known})
