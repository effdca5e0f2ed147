"""Folders of recordings: by class, or told by a metadata file, as `audiofolder` has them.

`datasets` reads such folders itself, but its encoding of a recording's path needs torchcodec and FFmpeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection

ENDINGS = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64"})
TABLES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow"})
METADATA = {"metadata.csv": "csv", "metadata.jsonl": "json", "metadata.parquet": "parquet"}
FILE_NAME = "file_name"


def sound_folder(folder: Path, section: DataSection) -> datasets.DatasetDict | None:
    """The splits of a folder that holds recordings and, beside metadata files, no tables; None for any other.

    `folder/SPLIT/CLASS/NAME.wav`, or `folder/CLASS/NAME.wav` for the train split alone; the classes of all splits
    together. A split with `metadata.csv` (or .jsonl, .parquet), whose column `file_name` is relative to it, has its
    columns instead. The column `audio` holds paths.
    Errors: HfDistillError for recordings that lie in no class, and for metadata without `file_name`.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    sounds = [path for path in files if path.suffix.lower() in ENDINGS]
    tables = [
        path for path in files if path.suffix.lower() in {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow"}
    ]
    told = {path.parent: path for path in tables if path.name in METADATA}
    if not sounds or len(told) < len(tables):
        return None
    if told:
        splits = {
            section.train_split if place == folder else place.relative_to(folder).as_posix(): _told(path)
            for place, path in told.items()
        }
        return datasets.DatasetDict(splits)
    parts = [path.relative_to(folder).parts for path in sounds]
    depths = {len(each) for each in parts}
    if depths not in ({2}, {3}):
        raise HfDistillError(
            f"data.dataset: the recordings of {folder}, such as {'/'.join(parts[0])}, lie {min(depths) - 1} to "
            f"{max(depths) - 1} folders deep; expected SPLIT/CLASS/NAME.wav or CLASS/NAME.wav for all, or a "
            "metadata.csv with a column file_name in each split."
        )
    names = sorted({each[-2] for each in parts})
    found: dict[str, list[tuple[str, str]]] = {}
    for path, each in zip(sounds, parts, strict=True):
        found.setdefault(each[0] if len(each) == 3 else section.train_split, []).append((str(path), each[-2]))
    return datasets.DatasetDict({split: _by_class(rows, names) for split, rows in found.items()})


def _by_class(rows: Sequence[tuple[str, str]], names: Sequence[str]) -> datasets.Dataset:
    labels = datasets.ClassLabel(names=list(names))
    columns = {"audio": [path for path, _ in rows], "label": [labels.str2int(name) for _, name in rows]}
    plain = datasets.Dataset.from_dict(columns).cast_column("label", labels)
    return plain.cast_column("audio", datasets.Audio(decode=False))


def _told(path: Path) -> datasets.Dataset:
    loaded: Any = datasets.load_dataset(METADATA[path.name], data_files=str(path), split="train")
    if FILE_NAME not in loaded.column_names:
        raise HfDistillError(
            f"data.dataset: {path} has the columns {', '.join(loaded.column_names)}; expected {FILE_NAME} among them."
        )
    paths = [str(path.parent / name) for name in loaded[FILE_NAME][:]]
    audio = datasets.Dataset.from_dict({"audio": paths}).cast_column("audio", datasets.Audio(decode=False))
    rest = loaded.remove_columns(FILE_NAME)
    if not rest.column_names:
        return audio
    together: datasets.Dataset = datasets.concatenate_datasets([audio, rest], axis=1)
    return together
