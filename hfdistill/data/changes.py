"""Random changes of training images: drawn once a row, so that student and teacher see the same change.

Draws come from torch's global generator, which the Trainer seeds, restores on resume, and seeds apart in each worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

CROP, FLIP, RESIZED_CROP = "random_crop", "horizontal_flip", "random_resized_crop"
PADDING = 8
"""A crop pads by one eighth of each side: 4 pixels of 32, as is usual on CIFAR."""
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the area and ratio of the sides of a random resized crop, as is usual on ImageNet."""


@dataclass(frozen=True)
class Draws:
    """What to do to each row: `places` (rows, 2) in [0, 1) down and across, `areas` and `ratios`, `flips`."""

    kinds: tuple[str, ...]
    places: Tensor
    areas: Tensor
    ratios: Tensor
    flips: Tensor

    @classmethod
    def of(cls, rows: int, kinds: Sequence[str]) -> Draws:
        """Draw for so many rows."""
        low, high = (math.log(bound) for bound in RATIO)
        return cls(
            tuple(kinds),
            torch.rand(rows, 2),
            AREA[0] + (AREA[1] - AREA[0]) * torch.rand(rows),
            torch.exp(low + (high - low) * torch.rand(rows)),
            torch.rand(rows) < 0.5 if FLIP in kinds else torch.zeros(rows, dtype=torch.bool),
        )

    def of_tensors(self, images: Tensor, black: Tensor) -> Tensor:
        """Crop and flip processed images (rows, channels, height, width); `black` is a processed black pixel."""
        if CROP in self.kinds:
            images = self._cropped(images, black)
        return torch.where(self.flips[:, None, None, None], images.flip(-1), images) if FLIP in self.kinds else images

    def _cropped(self, images: Tensor, black: Tensor) -> Tensor:
        rows, _, height, width = images.shape
        down, across = height // PADDING, width // PADDING
        padded = black[None, :, None, None].repeat(rows, 1, height + 2 * down, width + 2 * across)
        padded[:, :, down : down + height, across : across + width] = images
        tops = (self.places[:, 0] * (2 * down + 1)).long().tolist()
        lefts = (self.places[:, 1] * (2 * across + 1)).long().tolist()
        corners = zip(tops, lefts, strict=True)
        return torch.stack(
            [padded[row, :, top : top + height, left : left + width] for row, (top, left) in enumerate(corners)]
        )

    def of_image(self, row: int, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Crop and flip one image; a resized crop comes out at `size` (width, height)."""
        if RESIZED_CROP in self.kinds:
            image = image.resize(size, Image.Resampling.BICUBIC, box=self._box(row, image))
        if CROP in self.kinds:
            down, across = image.height // PADDING, image.width // PADDING
            top = int(self.places[row, 0] * (2 * down + 1)) - down
            left = int(self.places[row, 1] * (2 * across + 1)) - across
            image = image.crop((left, top, left + image.width, top + image.height))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flips[row] else image

    def _box(self, row: int, image: Image.Image) -> tuple[float, float, float, float]:
        area = float(self.areas[row]) * image.width * image.height
        ratio = float(self.ratios[row])
        width = min(math.sqrt(area * ratio), image.width)
        height = min(math.sqrt(area / ratio), image.height)
        left = float(self.places[row, 1]) * (image.width - width)
        top = float(self.places[row, 0]) * (image.height - height)
        return left, top, left + width, top + height
