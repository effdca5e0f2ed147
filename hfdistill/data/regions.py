"""Images with a class for each pixel: a second image that holds class indices."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig

from hfdistill.data.changes import CROP, FLIP, RESIZED_CROP, Draws
from hfdistill.data.images import ImageView, fitting_view, in_mode, read_image, reading
from hfdistill.data.kind import Kind, SourceRequest
from hfdistill.data.labels import UNLABELLED, LabelSpace, check_columns
from hfdistill.data.names import given_names
from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection, RecipeError, StudentSection, TeacherSection

TASK = "semantic_segmentation"
IGNORED = 255
"""The number of a pixel that does not count, in data sets and in most models."""
MODES = ("L", "P", "I", "I;16", "1")
"""Images with one number a pixel."""


class Regions(Kind):
    """Images, each with an image of class indices."""

    name = TASK
    auto_class = AutoModelForSemanticSegmentation
    reader: RegionReader

    def made_reader(self, train: datasets.Dataset, known_names: Sequence[str] | None) -> RegionReader:
        """Reads the maps."""
        return RegionReader(train, self.section, known_names)

    def view(
        self,
        section: TeacherSection | StudentSection,
        config: PreTrainedConfig,
        train: datasets.Dataset,
        teacher: ImageView | None = None,
    ) -> RegionView:
        """With the model's own processor if it has one, or else one of its kind that sees as the teacher's does."""
        seen = fitting_view(section, config, train, self.columns[0], self.section, teacher)
        return RegionView(seen.processor, seen.mode, ignored_label(config, len(self.reader.space.names)))

    def source(self, request: SourceRequest) -> MemoryRegions | DiskRegions:
        """In memory if images and maps fit there, otherwise from disk."""
        column, views = self.columns[0], request.views
        rows = request.dataset.select_columns([column, self.reader.column])
        shown = {name: view.size(read_image(rows, column, 0, view.mode)) for name, view in views.items()}
        disk = DiskRegions(rows, column, self.reader, views, shown)
        first = torch.tensor([0])
        sizes = [disk.tensors(first, name, None) for name in request.views]
        needed = sum(tensor.nbytes for pair in sizes for tensor in pair) * len(disk)
        if needed > request.budget or not {CROP, FLIP}.issuperset(request.augment):
            return disk
        return _in_memory(disk, request)


def ignored_label(config: PreTrainedConfig, classes: int) -> int:
    """What a model takes for a pixel that does not count: its own number, unless that is one of the classes."""
    settings = config.to_dict()
    ignored = int(settings.get("semantic_loss_ignore_index", settings.get("loss_ignore_index", IGNORED)))
    return UNLABELLED if 0 <= ignored < classes else ignored


@dataclass(frozen=True)
class RegionView(ImageView):
    """How one model sees an image and its map; `ignored` is the label of a pixel that does not count."""

    ignored: int = IGNORED

    def of_maps(self, maps: Sequence[Image.Image], **options: Any) -> Tensor:
        """Maps as `packed` makes them, resized and cut as images are, to the nearest pixel: (rows, height, width).

        They go through the processor as images without colours to change, so that any processor can show them.
        """
        changes = {"do_rescale": False, "do_normalize": False, "resample": Image.Resampling.NEAREST}
        channels = self(maps, **changes, **options).to(torch.int16)
        return 256 * channels[:, 0] + channels[:, 1]

    def differences(self, other: ImageView) -> list[str]:
        """In words what the other view does differently."""
        assert isinstance(other, RegionView), "views of one kind"
        differences = super().differences(other)
        channels = [view.processor.to_dict().get("do_flip_channel_order") or False for view in (self, other)]
        if channels[0] != channels[1]:
            differences.append(f"do_flip_channel_order {channels[0]} against {channels[1]}")
        if self.ignored != other.ignored:
            differences.append(f"{self.ignored} against {other.ignored} for pixels that do not count")
        return differences


def packed(numbers: NDArray[Any]) -> Image.Image:
    """Numbers below 65,536 as an image of their high and low bytes; the same in either order of colours."""
    high, low = (numbers >> 8).astype(np.uint8), (numbers & 255).astype(np.uint8)
    return Image.fromarray(np.stack([high, low, high], axis=-1))


class RegionReader:
    """Reads a column of maps, and knows the classes.

    Called on a split it gives one number an image, the checksum of its map's file, by which a run notices that its
    files have changed, or -100 for an image without a map. `known_names` are the classes of a teacher that is used as
    it is; `data.class_names` go before them.
    Errors: RecipeError for a column of another type; HfDistillError naming the row of a map that cannot be used.
    """

    def __init__(self, train: datasets.Dataset, section: DataSection, known_names: Sequence[str] | None) -> None:
        if not isinstance(section.label_column, str):
            raise RecipeError(f"data.label_column: got {section.label_column}, expected the one column of the maps.")
        self.column = section.label_column
        self.reduced = section.reduce_labels
        check_columns(train, [self.column], "data.label_column")
        if not isinstance(train.features[self.column], datasets.Image):
            raise RecipeError(
                f"data.label_column: {self.column!r} holds {train.features[self.column]}; expected images whose pixels "
                "are class indices."
            )
        given = known_names if section.class_names is None else given_names(section.class_names, known_names)
        self.ignores = given is None or len(given) <= IGNORED
        names = self._numbered(train) if given is None else tuple(given)
        self.ignores = len(names) <= IGNORED
        self.space = LabelSpace(TASK, names)
        if len(names) < 2:
            raise HfDistillError(
                f"The maps in {self.column!r} of the train split have {len(names)} class; expected at least two. Check "
                "data.label_column, data.class_names and data.reduce_labels."
            )

    def _numbered(self, train: datasets.Dataset) -> tuple[str, ...]:
        most = 0
        for row, entry in enumerate(train.with_format(None).select_columns([self.column])):
            if entry[self.column] is not None:
                most = max(most, int(self._counted(entry[self.column], row).max(initial=0)))
        return tuple(str(each) for each in range(most))

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """One number an image."""
        check_columns(dataset, [self.column], "data.label_column")
        files = dataset.with_format(None).select_columns([self.column])
        marks = []
        for row, entry in enumerate(files.cast_column(self.column, datasets.Image(decode=False))):
            file = entry[self.column]
            if file is None and not allow_missing:
                raise HfDistillError(
                    f"Row {row} of the split {split!r} has no map in {self.column!r}; expected one: only rows of the "
                    "train split may go without."
                )
            marks.append(UNLABELLED if file is None else zlib.crc32(_content(file)))
        return torch.tensor(marks)

    def numbers(self, found: Image.Image | None, row: int, size: tuple[int, int]) -> NDArray[np.int32]:
        """Of each pixel its class + 1, or 0 where it does not count: (height, width) for an image of `size`."""
        if found is None:
            return np.zeros(size[::-1], np.int32)
        if found.size != size:
            raise HfDistillError(
                f"Row {row} has a map of {found.width} x {found.height} pixels in {self.column!r} for an image of "
                f"{size[0]} x {size[1]}; expected a class for each pixel of the image."
            )
        numbers = self._counted(found, row)
        if numbers.max(initial=0) > len(self.space.names):
            raise HfDistillError(
                f"Row {row} has the class {numbers.max() - 1} in {self.column!r}; expected 0 to "
                f"{len(self.space.names) - 1}, or {IGNORED} where a pixel does not count. Check data.class_names, and "
                "data.reduce_labels, which is for maps whose class 1 is the first."
            )
        return numbers

    def _counted(self, found: Image.Image, row: int) -> NDArray[np.int32]:
        if found.mode not in MODES:
            raise HfDistillError(
                f"Row {row} has a map of mode {found.mode} in {self.column!r}; expected one number a pixel (a grey or "
                "palette PNG). Turn colours into class indices first."
            )
        values = np.asarray(found).astype(np.int32)
        counted = values >= 0
        if self.ignores:
            counted &= values != IGNORED
        return np.where(counted, values if self.reduced else values + 1, 0)


def _content(file: Mapping[str, Any]) -> bytes:
    """What a file holds, without decoding it; of one that is not here, its path."""
    if file["bytes"] is not None:
        return bytes(file["bytes"])
    path = Path(file["path"])
    return path.read_bytes() if path.is_file() else str(file["path"]).encode()


@dataclass(frozen=True)
class DiskRegions:
    """Images and maps that are read, changed and processed anew each time."""

    dataset: datasets.Dataset
    column: str
    reader: RegionReader
    views: Mapping[str, RegionView]
    sizes: Mapping[str, tuple[int, int]]

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """One view of some rows."""
        pixels, maps = self.tensors(rows, view, draws)
        return {"pixel_values": pixels, "labels": labels_of(maps, self.views[view].ignored)}

    def labels(self, rows: Tensor, view: str) -> Tensor:
        """The maps of some rows alone."""
        return labels_of(
            self.views[view].of_maps([self._read(int(row), "L")[1] for row in rows]), self.views[view].ignored
        )

    def tensors(self, rows: Tensor, view: str, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Images (rows, channels, height, width), and maps (rows, height, width) of classes + 1."""
        how = self.views[view]
        read = [self._read(int(row), how.mode) for row in rows]
        images, maps = [image for image, _ in read], [found for _, found in read]
        options: dict[str, Any] = {}
        if draws is not None:
            size = self.sizes[view]
            images = [draws.of_image(place, each, size) for place, each in enumerate(images)]
            maps = [draws.of_image(place, each, size, Image.Resampling.NEAREST) for place, each in enumerate(maps)]
            # A resized crop has its final size already; cutting its centre once more would change the crop.
            options = {"do_resize": False, "do_center_crop": False} if RESIZED_CROP in draws.kinds else {}
        try:
            return how(images, **options), how.of_maps(maps, **options)
        except ValueError as error:
            raise HfDistillError(
                f"The processor {type(how.processor).__name__} makes images of different sizes ({error}); expected one "
                "size, such as size: {height: 512, width: 512} in its preprocessor_config.json."
            ) from error

    def _read(self, row: int, mode: str) -> tuple[Image.Image, Image.Image]:
        with reading(row, self.column, self.reader.column):
            entry = self.dataset[row]
            image = in_mode(entry[self.column], self.column, row, mode)
        return image, packed(self.reader.numbers(entry[self.reader.column], row, image.size))


@dataclass(frozen=True)
class MemoryRegions:
    """All images and maps of a split, processed once for each view; maps hold classes + 1."""

    pixels: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]
    black: Mapping[str, Tensor]
    ignored: Mapping[str, int]

    def __len__(self) -> int:
        return len(next(iter(self.pixels.values())))

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """One view of some rows."""
        pixels, maps = self.pixels[view][rows], self.maps[view][rows]
        if draws is not None:
            pixels = draws.of_tensors(pixels, self.black[view])
            maps = draws.of_tensors(maps[:, None], torch.zeros(1, dtype=maps.dtype))[:, 0]
        return {"pixel_values": pixels, "labels": labels_of(maps, self.ignored[view])}

    def labels(self, rows: Tensor, view: str) -> Tensor:
        """The maps of some rows alone."""
        return labels_of(self.maps[view][rows], self.ignored[view])


def labels_of(maps: Tensor, ignored: int) -> Tensor:
    """Class indices from classes + 1, with `ignored` where there is none."""
    return torch.where(maps > 0, maps.long() - 1, ignored)


def _in_memory(disk: DiskRegions, request: SourceRequest, chunk: int = 64) -> MemoryRegions:
    pixels: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}
    for name in request.views:
        for start in request.bar(range(0, len(disk), chunk), "Reading images"):
            rows = torch.arange(start, min(start + chunk, len(disk)))
            for whole, part in zip((pixels, maps), disk.tensors(rows, name, None), strict=True):
                whole.setdefault(name, torch.empty((len(disk), *part.shape[1:]), dtype=part.dtype))[rows] = part
    sample = {name: read_image(disk.dataset, disk.column, 0, view.mode) for name, view in request.views.items()}
    black = {name: view.black(sample[name]) for name, view in request.views.items()}
    return MemoryRegions(pixels, maps, black, {name: view.ignored for name, view in request.views.items()})
