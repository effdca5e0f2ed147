"""Pictures with random changes from all generators that a transform may use."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tests.trainer.trajectory import examples


class RandomPictures(Dataset[dict[str, Any]]):
    """Each of some pictures is moved, stretched and given noise, anew whenever it is fetched."""

    def __init__(self, rows: list[dict[str, torch.Tensor]] | None = None) -> None:
        self.rows = rows or examples("vit", "single_label_classification")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        moved = row["pixel_values"].roll(int(torch.randint(16, ())), -1) * (0.5 + random.random())
        noise = torch.from_numpy(np.random.normal(size=moved.shape)).to(moved.dtype)
        return {**row, "pixel_values": moved + 0.1 * noise}


class PlainPictures(Dataset[dict[str, Any]]):
    """Pictures of one value each, of two sizes, without changes: what has been mixed can be read off."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "pixel_values": torch.full((3, 10, 10), index + 1.0),
            "teacher_pixel_values": np.full((3, 20, 20), index + 1, np.float32),
            "labels": index,
        }
