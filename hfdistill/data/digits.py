"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8x8 grey, written by 43 people (UCI, CC BY 4.0)."""

from __future__ import annotations

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from hfdistill.data.sampling import stratified

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST, VALIDATION = 360, 180
SPLIT_SEED = 0


def digits() -> datasets.DatasetDict:
    """Columns image and label; the same stratified split of 1,257 / 180 / 360 rows on every machine."""
    source = load_digits()
    pixels = np.round(source.images * (255 / 16)).astype(np.uint8)
    labels = source.target.astype(np.int64)
    held_out = stratified(labels, TEST + VALIDATION, SPLIT_SEED)
    of_test = stratified(labels[held_out], TEST, SPLIT_SEED)
    test, validation = held_out[of_test], np.delete(held_out, of_test)
    train = np.delete(np.arange(len(labels)), held_out)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})

    def split(rows: np.ndarray) -> datasets.Dataset:
        columns = {"image": [Image.fromarray(pixels[row]) for row in rows], "label": labels[rows].tolist()}
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict({"train": split(train), "validation": split(validation), "test": split(test)})
