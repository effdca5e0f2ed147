"""Image inputs: processed once and kept in memory where they fit, or processed as they are read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hfdistill.data.changes import CROP, FLIP, RESIZED_CROP, Draws
from hfdistill.errors import HfDistillError

MEMORY = 2 * 2**30
"""Bytes of processed images that a run keeps, all splits and views together."""

Progress = Callable[[Sequence[Any], str], Iterator[Any]]


@dataclass(frozen=True)
class ImageView:
    """How one model sees an image: its processor and whether it reads colours ("RGB") or grey ("L")."""

    processor: Any
    mode: str

    def __call__(self, images: Sequence[Image.Image], **options: Any) -> Tensor:
        """(rows, channels, height, width), float32."""
        pixels: Tensor = self.processor(list(images), return_tensors="pt", **options)["pixel_values"]
        return pixels

    def size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) of what the model sees."""
        _, _, height, width = self([image.convert(self.mode)]).shape
        return width, height

    def black(self, image: Image.Image) -> Tensor:
        """A black pixel as the model sees it, (channels,)."""
        return self([Image.new(self.mode, image.size)])[0, :, 0, 0]


@dataclass(frozen=True)
class MemoryImages:
    """All images of a split, processed once for each view."""

    pixels: Mapping[str, Tensor]
    black: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.pixels.values())))

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """One view of some rows."""
        chosen = self.pixels[view][rows]
        return {"pixel_values": chosen if draws is None else draws.of_tensors(chosen, self.black[view])}


@dataclass(frozen=True)
class DiskImages:
    """Images that are read, changed and processed anew each time."""

    dataset: datasets.Dataset
    column: str
    views: Mapping[str, ImageView]
    sizes: Mapping[str, tuple[int, int]]

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """One view of some rows."""
        how = self.views[view]
        images = [read_image(self.dataset, self.column, int(row), how.mode) for row in rows]
        if draws is None:
            return {"pixel_values": how(images)}
        images = [draws.of_image(place, image, self.sizes[view]) for place, image in enumerate(images)]
        # A resized crop has its final size already; cutting its centre once more would change the crop.
        options = {"do_resize": False, "do_center_crop": False} if RESIZED_CROP in draws.kinds else {}
        return {"pixel_values": how(images, **options)}


def image_source(
    dataset: datasets.Dataset,
    column: str,
    views: Mapping[str, ImageView],
    budget: int,
    augment: Sequence[str],
    bar: Progress,
) -> MemoryImages | DiskImages:
    """In memory if all views fit into `budget` bytes and every change can be made there, otherwise from disk."""
    sample = {name: read_image(dataset, column, 0, view.mode) for name, view in views.items()}
    size = sum(view([sample[name]]).nbytes for name, view in views.items()) * len(dataset)
    if size > budget or not {CROP, FLIP}.issuperset(augment):
        sizes = {name: view.size(sample[name]) for name, view in views.items()}
        return DiskImages(dataset, column, views, sizes)
    pixels = {name: _processed(dataset, column, view, bar) for name, view in views.items()}
    return MemoryImages(pixels, {name: view.black(sample[name]) for name, view in views.items()})


def _processed(dataset: datasets.Dataset, column: str, view: ImageView, bar: Progress, chunk: int = 256) -> Tensor:
    whole: Tensor | None = None
    for start in bar(range(0, len(dataset), chunk), "Reading images"):
        rows = range(start, min(start + chunk, len(dataset)))
        pixels = view([read_image(dataset, column, row, view.mode) for row in rows])
        if whole is None:
            whole = torch.empty((len(dataset), *pixels.shape[1:]), dtype=pixels.dtype)
        whole[start : start + len(rows)] = pixels
    if whole is None:
        raise HfDistillError("A split without images came; expected at least one.")
    return whole


def read_image(dataset: datasets.Dataset, column: str, row: int, mode: str) -> Image.Image:
    """The image of a row in a colour mode. Errors: HfDistillError naming the row of a file that is no image."""
    try:
        image = dataset[row][column]
        if image is None:
            raise HfDistillError(f"Row {row} has no image in {column!r}; remove the row.")
        converted: Image.Image = image.convert(mode)
    except (UnidentifiedImageError, OSError) as error:
        raise HfDistillError(
            f"Row {row} of {column!r} cannot be read as an image ({error}); mend or remove it."
        ) from error
    return converted


def shrunk(processor: Any, size: tuple[int, int]) -> Any:
    """A copy of an image processor that gives (height, width) exactly, without cutting a centre."""
    changed = copy.deepcopy(processor)
    changed.size = type(processor.size)(height=size[0], width=size[1])
    changed.do_center_crop = False
    changed.do_resize = True
    return changed
