"""Image inputs: processed once and kept in memory where they fit, or processed as they are read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig

from hfdistill.contract import processing_differences
from hfdistill.data.changes import CROP, FLIP, RESIZED_CROP, Draws
from hfdistill.data.examples import Progress
from hfdistill.data.kind import Kind, SourceRequest
from hfdistill.data.processors import fitting_processor, loaded_processor, processor_name
from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection, StudentSection, TeacherSection

MEMORY = 2 * 2**30
"""Bytes of processed images that a run keeps, all splits and views together."""
SAMPLE = 1000
"""Train images from which mean and standard deviation of the pixels are taken."""


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

    def differences(self, other: ImageView) -> list[str]:
        """In words what the other view does differently."""
        modes = [f"{self.mode} against {other.mode} images"] if self.mode != other.mode else []
        return modes + processing_differences(self.processor, other.processor)

    def black(self, image: Image.Image) -> Tensor:
        """A black pixel as the model sees it, (channels,)."""
        return self([Image.new(self.mode, image.size)])[0, :, 0, 0]


class Images(Kind):
    """Images with a label each."""

    name = "image"
    auto_class = AutoModelForImageClassification

    def view(
        self,
        section: TeacherSection | StudentSection,
        config: PreTrainedConfig,
        train: datasets.Dataset,
        teacher: ImageView | None = None,
    ) -> ImageView:
        """With the model's own processor if it has one, or else the teacher's, or one made for the data."""
        return image_view(section, config, train, self.columns[0], self.section, teacher)

    def source(self, request: SourceRequest) -> MemoryImages | DiskImages:
        """In memory if they fit there, otherwise from disk."""
        views: Mapping[str, ImageView] = request.views
        return image_source(request.dataset, self.columns[0], views, request.budget, request.augment, request.bar)


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
    with reading(row, column):
        return in_mode(dataset[row][column], column, row, mode)


@contextmanager
def reading(row: int, *columns: str) -> Iterator[None]:
    """Turns what a file that is no image raises into an error that names the row."""
    try:
        yield
    except (UnidentifiedImageError, OSError) as error:
        raise HfDistillError(
            f"Row {row} of {' and '.join(map(repr, columns))} cannot be read as an image ({error}); mend or remove it."
        ) from error


def in_mode(image: Image.Image | None, column: str, row: int, mode: str) -> Image.Image:
    """An image in a colour mode. Errors: HfDistillError naming the row where there is none."""
    if image is None:
        raise HfDistillError(f"Row {row} has no image in {column!r}; remove the row.")
    return image.convert(mode)


def shrunk(processor: Any, size: tuple[int, int]) -> Any:
    """A copy of an image processor that gives (height, width) exactly, without cutting a centre."""
    changed = copy.deepcopy(processor)
    changed.size = type(processor.size)(height=size[0], width=size[1])
    changed.do_center_crop = False
    changed.do_resize = True
    return changed


def image_view(
    section: TeacherSection | StudentSection,
    config: PreTrainedConfig,
    train: datasets.Dataset,
    column: str,
    data: DataSection,
    teacher: ImageView | None = None,
) -> ImageView:
    """How a model sees an image: by the processor beside it, or else as its teacher does, or by one made for it."""
    mode = colours(config)
    if processor_name(section) is not None:
        return ImageView(loaded_processor(AutoImageProcessor, section), mode)
    if teacher is None:
        return ImageView(made_processor(config, train, column, data), mode)
    own = section.config if isinstance(section, StudentSection) else None
    wanted = (own or {}).get("image_size") or data.image_size
    if mode != teacher.mode:
        first = read_image(train, column, 0, teacher.mode)
        return ImageView(made_processor(config, train, column, data, wanted or teacher.size(first)[::-1]), mode)
    return ImageView(shrunk(teacher.processor, _pair(wanted)) if wanted else teacher.processor, teacher.mode)


def fitting_view(
    section: TeacherSection | StudentSection,
    config: PreTrainedConfig,
    train: datasets.Dataset,
    column: str,
    data: DataSection,
    teacher: ImageView | None = None,
) -> ImageView:
    """The same for heads with a processor of their own kind: one of that kind, where the model brings none."""
    seen = image_view(section, config, train, column, data, teacher)
    own = processor_name(section) is not None
    return seen if own else ImageView(fitting_processor(seen.processor, config), seen.mode)


def colours(config: PreTrainedConfig) -> str:
    """The colour mode that a model reads."""
    settings = config.to_dict()
    # Detectors and segmenters have a backbone with a config of its own, which is what reads the image.
    settings |= settings.get("backbone_config") or {}
    return "L" if settings.get("num_channels") == 1 else "RGB"


def made_processor(
    config: PreTrainedConfig, train: datasets.Dataset, column: str, section: DataSection, size: Any = None
) -> Any:
    """A processor for a model that has none: a size given, the model's or the data's; the data's mean and deviation."""
    mode = colours(config)
    first = read_image(train, column, 0, mode)
    size = size or section.image_size or config.to_dict().get("image_size") or (first.height, first.width)
    mean, std = section.image_mean, section.image_std
    if mean is None or std is None:
        rows = np.linspace(0, len(train) - 1, num=min(SAMPLE, len(train)), dtype=np.int64)
        images = [np.asarray(read_image(train, column, int(row), mode), np.float64) for row in rows]
        pixels = np.concatenate([image.reshape(-1, len(mode)) for image in images]) / 255
        mean, std = mean or pixels.mean(0).round(4).tolist(), std or pixels.std(0).clip(min=1e-3).round(4).tolist()
    # Imported here: without torchvision its import warns, and few runs need it.
    from transformers import ViTImageProcessor

    height, width = _pair(size)
    return ViTImageProcessor(size={"height": height, "width": width}, image_mean=mean, image_std=std)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
