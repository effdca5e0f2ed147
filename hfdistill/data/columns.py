"""Which columns of the data a run reads: those that the recipe names, or else the only ones of their type."""

from __future__ import annotations

from typing import Any

import datasets

from hfdistill.data.labels import check_columns
from hfdistill.data.sounds import is_sound
from hfdistill.recipe import DataSection, RecipeError

IMAGE, TEXT, AUDIO = "image", "text", "audio"


def input_columns(dataset: datasets.Dataset, section: DataSection) -> tuple[str, tuple[str, ...]]:
    """Images, texts or recordings, and in which columns.

    Errors: RecipeError for a wrong column, and where the choice is open.
    """
    for key, name, fits, modality, what in (
        ("image_column", section.image_column, is_image, IMAGE, "images"),
        ("audio_column", section.audio_column, is_sound, AUDIO, "recordings (audio, or paths of files)"),
    ):
        if name is not None:
            check_columns(dataset, [name], f"data.{key}")
            if not fits(dataset.features[name]):
                raise RecipeError(f"data.{key}: {name!r} holds {dataset.features[name]}; expected {what}.")
            return modality, (name,)
    if section.text_columns is not None:
        columns = tuple(section.text_columns)
        check_columns(dataset, columns, "data.text_columns")
        for column in columns:
            if not _is_text(dataset.features[column]):
                raise RecipeError(f"data.text_columns: {column!r} holds {dataset.features[column]}; expected texts.")
        return TEXT, columns
    labels = {section.label_column} if isinstance(section.label_column, str) else set(section.label_column)
    inputs = {name: feature for name, feature in dataset.features.items() if name not in labels}
    images = [name for name, feature in inputs.items() if isinstance(feature, datasets.Image)]
    sounds = [name for name, feature in inputs.items() if isinstance(feature, datasets.Audio)]
    texts = [name for name, feature in inputs.items() if _is_text(feature)]
    if len(images) + len(sounds) == 1:
        return (IMAGE, (images[0],)) if images else (AUDIO, (sounds[0],))
    if not images and not sounds and len(texts) == 1:
        return TEXT, (texts[0],)
    raise RecipeError(
        f"data: which columns to read is not clear; the data has {', '.join(dataset.column_names)}. Name "
        "data.image_column, data.audio_column, or data.text_columns (two for pairs)."
    )


def is_image(feature: Any) -> bool:
    """Whether a column holds images."""
    return isinstance(feature, datasets.Image)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and "string" in feature.dtype
