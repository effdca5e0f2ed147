"""Random changes of training images: a row's change follows from seed, epoch and row alone.

So student and teacher see the same change, and neither workers, nor the cut of batches, nor an interruption alters it:
draws from torch's global generator would differ after a resume, because batches are fetched ahead of the checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CROP, FLIP, RESIZED_CROP = "random_crop", "horizontal_flip", "random_resized_crop"
PADDING = 8
"""A crop pads by one eighth of each side: 4 pixels of 32, as is usual on CIFAR."""
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the area and ratio of the sides of a random resized crop, as is usual on ImageNet."""


def _shared_zero() -> Tensor:
    epoch: Tensor = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    return epoch


@dataclass(frozen=True)
class Changes:
    """Which changes to make, and what they are drawn from; the epoch lies in shared memory, where workers see it.

    With `views` there are changes of so many epochs, which repeat.
    """

    kinds: tuple[str, ...]
    seed: int = 0
    epoch: Tensor = field(default_factory=_shared_zero)
    views: int | None = None

    def draws(self, rows: Tensor) -> Draws:
        """What to do to each of some rows in this epoch."""
        top, left, area, ratio, flip = (torch.from_numpy(column) for column in self._uniform(rows.numpy(), 5))
        low, high = (math.log(bound) for bound in RATIO)
        return Draws(
            self.kinds,
            torch.stack([top, left], dim=1),
            AREA[0] + (AREA[1] - AREA[0]) * area,
            torch.exp(low + (high - low) * ratio),
            (flip < 0.5) & (FLIP in self.kinds),
            self._keys(rows.numpy()),
        )

    def _uniform(self, rows: NDArray[np.int64], count: int) -> list[NDArray[np.float64]]:
        """`count` numbers in [0, 1) a row: SplitMix64 (Steele et al. 2014) of seed, epoch, row and place."""
        return _between_0_and_1(self._keys(rows), count)

    def _keys(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        mixed = _mixed(np.uint64(self.seed) + np.zeros(len(rows), np.uint64))
        mixed = _mixed(mixed ^ np.uint64(int(self.epoch)))
        return _mixed(mixed ^ rows.astype(np.uint64))


def _between_0_and_1(keys: NDArray[np.uint64], count: int) -> list[NDArray[np.float64]]:
    return [(_mixed(keys ^ np.uint64(place)) >> np.uint64(11)) / 2.0**53 for place in range(count)]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class Draws:
    """What to do to each row: `places` (rows, 2) in [0, 1) down and across, `areas` and `ratios`, `flips`.

    `keys` (rows,) are what all of it was drawn from, for those who need more numbers.
    """

    kinds: tuple[str, ...]
    places: Tensor
    areas: Tensor
    ratios: Tensor
    flips: Tensor
    keys: NDArray[np.uint64]

    def by_place(self, places: int, count: int) -> list[Tensor]:
        """`count` tensors (rows, places) of numbers in [0, 1), such as one for each token."""
        keys = _mixed(self.keys[:, None] ^ np.arange(1, places + 1, dtype=np.uint64)[None])
        return [torch.from_numpy(numbers) for numbers in _between_0_and_1(keys, count)]

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

    def of_image(
        self,
        row: int,
        image: Image.Image,
        size: tuple[int, int],
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Image.Image:
        """Crop and flip one image; a resized crop comes out at `size` (width, height)."""
        if RESIZED_CROP in self.kinds:
            image = image.resize(size, resampling, box=self._box(row, image))
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
