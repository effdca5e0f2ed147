"""Where examples come from: the Hub, local files and folders, or the embedded digits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from hfdistill.data.sound_folder import sound_folder
from hfdistill.errors import HfDistillError, nearest
from hfdistill.recipe import DataSection, RecipeError

BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
DIGITS, DIGIT_SCENES, PYDOC_TOPICS = "digits", "digit_scenes", "pydoc_topics"
"""The embedded data sets."""


def load_splits(section: DataSection) -> dict[str, datasets.Dataset]:
    """The splits that the recipe names, as `datasets` loads them.

    Errors: RecipeError for a missing file or split; HfDistillError when the data cannot be read or reached.
    """
    splits = _all_splits(section)
    names = {"train_split": section.train_split}
    if section.validation_split is not None:
        names["validation_split"] = section.validation_split
    if section.test_split is not None:
        names["test_split"] = section.test_split
    for key, name in names.items():
        if name not in splits:
            raise RecipeError(_missing_split(section, key, name, splits))
        if len(splits[name]) == 0:
            raise HfDistillError(f"data.{key}: the split {name!r} of {_title(section)} is empty; expected examples.")
    return {name: splits[name] for name in dict.fromkeys(names.values())}


def _missing_split(section: DataSection, key: str, name: str, splits: Mapping[str, Any]) -> str:
    cure = {
        "test_split": " Set data.test_split to null and data.test_fraction to 0.2 to carve a test split from the "
        "train split.",
        "validation_split": " Set data.validation_split to null to carve one from the train split.",
        "train_split": "",
    }[key]
    return (
        f"data.{key}: {_title(section)} has no split {name!r}; it has {', '.join(splits)}{nearest(name, splits)}{cure}"
    )


def _title(section: DataSection) -> str:
    return str(section.dataset) if section.name is None else f"{section.dataset} ({section.name})"


def _all_splits(section: DataSection) -> Mapping[str, datasets.Dataset]:
    try:
        loaded = _loaded(section)
    except HfDistillError:
        raise
    except (DatasetsError, OSError, ValueError) as error:
        reason = _reason(error)
        if "corresponds to no data" in reason:
            raise HfDistillError(f"data.dataset: {_title(section)} is empty; expected examples.") from error
        raise HfDistillError(
            f"data.dataset: {_title(section)} cannot be read: {reason} Expected a Hub id that this machine can "
            "reach or has cached (data.name picks a configuration), whole local files (csv, json, parquet) with the "
            "same columns, a folder of images or recordings by class, or a save_to_disk folder."
        ) from error
    return loaded if isinstance(loaded, datasets.DatasetDict) else {section.train_split: loaded}


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ is not None else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if text.endswith(".") else f"{text}."


def _loaded(section: DataSection) -> datasets.DatasetDict | datasets.Dataset:
    if isinstance(section.dataset, dict):
        return _from_files(section.dataset)
    if section.dataset == DIGITS:
        from hfdistill.data.digits import digits

        return digits()
    if section.dataset == DIGIT_SCENES:
        from hfdistill.data.scenes import digit_scenes

        return digit_scenes()
    if section.dataset == PYDOC_TOPICS:
        from hfdistill.data.pydoc_topics import pydoc_topics

        return pydoc_topics()
    path = Path(section.dataset).expanduser()
    if path.is_file():
        return _from_files({section.train_split: str(path)})
    if path.is_dir():
        return _from_folder(path, section)
    if section.dataset.startswith((".", "/", "~")) or path.suffix in BUILDERS:
        raise RecipeError(f"data.dataset: there is no file or folder {section.dataset}; expected one, or a Hub id.")
    return datasets.load_dataset(section.dataset, section.name, revision=section.revision)


def _from_files(files: Mapping[str, Any]) -> datasets.DatasetDict:
    paths = {
        split: [str(Path(path).expanduser()) for path in (given if isinstance(given, list) else [given])]
        for split, given in files.items()
    }
    every = [Path(path) for entries in paths.values() for path in entries]
    for path in every:
        # A pattern such as data/*.csv is left to `datasets`.
        if not any(character in str(path) for character in "*?[") and not path.is_file():
            raise RecipeError(f"data.dataset: there is no file {path}.")
    kinds = {path.suffix.lower() for path in every}
    if len(kinds) != 1 or kinds.isdisjoint(BUILDERS):
        raise RecipeError(
            f"data.dataset: files of type {', '.join(sorted(kinds)) or 'unknown'} came; expected one type of "
            f"{', '.join(BUILDERS)}."
        )
    kind = kinds.pop()
    options: dict[str, Any] = {"sep": "\t"} if kind == ".tsv" else {}
    return datasets.load_dataset(BUILDERS[kind], data_files=paths, **options)


def _from_folder(path: Path, section: DataSection) -> datasets.DatasetDict | datasets.Dataset:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(path)
    return sound_folder(path, section) or datasets.load_dataset(str(path), section.name)
