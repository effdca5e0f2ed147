"""Files of sound: read from wherever a data set keeps them, one channel, at the rate that a model hears."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from hfdistill.errors import HfDistillError
from hfdistill.metrics import missing_extra
from hfdistill.recipe import DataSection

Wave = NDArray[np.float32]

SHORTEST = 0.025
"""Seconds: one window of the usual features; of less nothing can be made."""


def is_sound(feature: Any) -> bool:
    """Whether a column holds recordings, or may: what `datasets` says so of, paths, bytes, or both."""
    if isinstance(feature, dict):
        return {"bytes", "path"} >= set(feature) and bool(feature)
    return isinstance(feature, datasets.Audio) or (
        isinstance(feature, datasets.Value) and ("string" in feature.dtype or "binary" in feature.dtype)
    )


def sounds_of(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """The column alone, its files as they are: decoding by `datasets` needs torchcodec and FFmpeg."""
    alone = dataset.with_format(None).select_columns([column])
    if isinstance(alone.features[column], datasets.Audio):
        return alone.cast_column(column, datasets.Audio(decode=False))
    return alone


def data_folder(section: DataSection) -> Path:
    """Where the paths of a data set of local files begin."""
    given = section.dataset
    if isinstance(given, dict):
        first = next(iter(given.values()))
        given = first[0] if isinstance(first, list) else first
    path = Path(given).expanduser()
    return path if path.is_dir() else path.parent


def read_wave(sounds: datasets.Dataset, column: str, row: int, rate: int, folder: Path) -> Wave:
    """The samples of a row, `(samples,)` in [-1, 1] at `rate` a second; the mean of several channels.

    A path that does not begin at the root is looked for where the run was started, then in `folder`.
    Errors: HfDistillError naming the row of what cannot be read, and where soundfile or soxr is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: there is no libsndfile
        raise missing_extra("soundfile", "speech", "Reading recordings") from error
    where = f"Row {row} of {column!r}"
    file = _file(sounds[row][column], where, folder)
    try:
        samples, own_rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise HfDistillError(f"{where} cannot be read as a recording ({reason}); mend or remove it.") from error
    wave: Wave = samples.mean(axis=1)
    if len(wave) < SHORTEST * own_rate:
        raise HfDistillError(
            f"{where} holds {len(wave) / own_rate:.3g} seconds of sound; expected at least {SHORTEST}. Remove the row."
        )
    return wave if own_rate == rate else _resampled(wave, own_rate, rate)


def _resampled(wave: Wave, own_rate: int, rate: int) -> Wave:
    try:
        import soxr
    except ImportError as error:
        raise missing_extra("soxr", "speech", f"Bringing recordings of {own_rate} Hz to {rate} Hz") from error
    resampled: Wave = soxr.resample(wave, own_rate, rate)
    return resampled


def _file(value: Any, where: str, folder: Path) -> io.BytesIO | Path:
    """What soundfile reads: bytes in memory, or a path that is there."""
    stored = value.get("bytes") if isinstance(value, dict) else value if isinstance(value, bytes) else None
    if stored is not None:
        return io.BytesIO(stored)
    path = value.get("path") if isinstance(value, dict) else value
    if not path:
        raise HfDistillError(f"{where} holds no recording; remove the row.")
    given = Path(path).expanduser()
    found = next((each for each in (given, folder / given) if each.is_file()), None)
    if found is None:
        raise HfDistillError(
            f"{where}: there is no file {str(path)!r}; expected one, given from the root, or from where the run is "
            f"started, or from {folder}."
        )
    return found
