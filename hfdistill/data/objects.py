"""Images with objects in boxes."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForObjectDetection, PreTrainedConfig

from hfdistill.data.boxes import check_box, corners, in_shares, mirrored
from hfdistill.data.changes import Draws
from hfdistill.data.images import ImageView, fitting_view, in_mode, read_image, reading
from hfdistill.data.kind import Kind, SourceRequest
from hfdistill.data.labels import LabelSpace, check_columns
from hfdistill.data.names import given_names
from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection, RecipeError, StudentSection, TeacherSection

TASK = "object_detection"
BOXES = ("bbox", "boxes", "bboxes")
CATEGORIES = ("category", "categories", "category_id", "category_ids", "label", "labels")
CROWDS = ("iscrowd", "is_crowd")
"""What data sets call the parts of their objects."""


class Objects(Kind):
    """Images with boxes and what is in them."""

    name = TASK
    auto_class = AutoModelForObjectDetection
    reader: ObjectReader

    def made_reader(self, train: datasets.Dataset, known_names: Sequence[str] | None) -> ObjectReader:
        """Reads the boxes."""
        return ObjectReader(train, self.section, known_names)

    def view(
        self,
        section: TeacherSection | StudentSection,
        config: PreTrainedConfig,
        train: datasets.Dataset,
        teacher: ImageView | None = None,
    ) -> ObjectView:
        """With the model's own processor if it has one, or else one of its kind that sees as the teacher's does."""
        seen = fitting_view(section, config, train, self.columns[0], self.section, teacher)
        return ObjectView(seen.processor, seen.mode)

    def source(self, request: SourceRequest) -> MemoryObjects | DiskObjects:
        """In memory if the images fit there, otherwise from disk."""
        column, views = self.columns[0], request.views
        rows = request.dataset.select_columns([column])
        disk = DiskObjects(rows, column, views, self.reader.objects(request.dataset, request.split))
        sample = {name: view.of_each([read_image(rows, column, 0, view.mode)])[0] for name, view in views.items()}
        if sum(tensor.nbytes for tensor in sample.values()) * len(disk) > request.budget:
            return disk
        return _in_memory(disk, request)


@dataclass(frozen=True)
class ObjectView(ImageView):
    """How one model sees an image: images of different shapes are padded to those of their batch."""

    def of_each(self, images: Sequence[Any]) -> list[Tensor]:
        """Each image (channels, height, width) in a shape of its own."""
        return [self([image], do_pad=False)[0] for image in images]

    @property
    def pads(self) -> bool:
        """Whether the processor pads, and the model can be told where an image ends."""
        return bool(self.processor.to_dict().get("do_pad"))

    def together(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """One batch, padded at the right and the bottom as the processor does, with a mask of what is image.

        Errors: HfDistillError for images of different shapes where the processor does not pad.
        """
        fixed = self.processor.to_dict().get("pad_size") or {}
        height, width = (
            max(fixed.get(name) or 0, *(image.shape[axis] for image in images))
            for name, axis in (("height", 1), ("width", 2))
        )
        if not self.pads:
            if any(image.shape[1:] != (height, width) for image in images):
                raise HfDistillError(
                    f"The processor {type(self.processor).__name__} makes images of different shapes and does not pad "
                    "them; expected do_pad: true, or one size, in its preprocessor_config.json."
                )
            return {"pixel_values": torch.stack(list(images))}
        mask = torch.zeros(len(images), height, width, dtype=torch.int64)
        for place, image in enumerate(images):
            mask[place, : image.shape[1], : image.shape[2]] = 1
        grown = [functional.pad(each, (0, width - each.shape[2], 0, height - each.shape[1])) for each in images]
        return {"pixel_values": torch.stack(grown), "pixel_mask": mask}

    def differences(self, other: ImageView) -> list[str]:
        """In words what the other view does differently."""
        assert isinstance(other, ObjectView), "views of one kind"
        pads = [f"do_pad {self.pads} against {other.pads}"] if self.pads != other.pads else []
        return super().differences(other) + pads


@dataclass(frozen=True)
class Found:
    """The objects of an image: boxes (n, 4) as left, top, right, bottom in pixels, classes (n,), crowds (n,)."""

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    crowds: NDArray[np.bool_]


class ObjectReader:
    """Reads a column of objects: lists of boxes and categories, or a list of objects with a box and a category each.

    Called on a split it gives one number an image, the checksum of its objects. Categories are names or indices;
    `known_names` are the classes of a teacher that is used as it is; `data.class_names` go before all others.
    Errors: RecipeError for a column of another type; HfDistillError naming the row of an object that cannot be used.
    """

    def __init__(self, train: datasets.Dataset, section: DataSection, known_names: Sequence[str] | None) -> None:
        if not isinstance(section.label_column, str):
            raise RecipeError(f"data.label_column: got {section.label_column}, expected the one column of the objects.")
        self.column = section.label_column
        self.format = section.box_format
        check_columns(train, [self.column], "data.label_column")
        feature = train.features[self.column]
        listed = isinstance(feature, (datasets.List, datasets.LargeList))
        parts = feature.feature if listed else feature
        if not isinstance(parts, dict):
            raise RecipeError(
                f"data.label_column: {self.column!r} holds {feature}; expected objects: "
                "{bbox: [[x, y, width, height], ...], category: [...]}."
            )
        self.box, self.category = self._part(parts, BOXES), self._part(parts, CATEGORIES)
        self.crowd = next((name for name in CROWDS if name in parts), None)
        category = parts[self.category] if listed else _member(parts[self.category])
        names = self._names(train, category)
        if section.class_names is not None:
            given = given_names(section.class_names, known_names)
            if isinstance(category, datasets.ClassLabel) and len(category.names) != len(given):
                raise RecipeError(
                    f"data.class_names: {len(given)} names came for the {len(category.names)} classes of "
                    f"{self.column!r} ({', '.join(category.names[:3])}, ...); expected a name for each, in their order."
                )
            names = given
        self.space = LabelSpace(TASK, self._numbers(train, known_names) if names is None else names)
        self._places = {name: place for place, name in enumerate(self.space.names)}

    def _part(self, parts: Mapping[str, Any], known: Sequence[str]) -> str:
        for name in known:
            if name in parts:
                return name
        raise RecipeError(
            f"data.label_column: {self.column!r} has {', '.join(parts)}; expected one of {', '.join(known)} among them."
        )

    def _names(self, train: datasets.Dataset, feature: Any) -> tuple[str, ...] | None:
        if isinstance(feature, datasets.ClassLabel):
            return tuple(feature.names)
        if isinstance(feature, datasets.Value) and "string" in feature.dtype:
            return tuple(sorted({name for names in self._categories(train) for name in names}))
        return None

    def _numbers(self, train: datasets.Dataset, known: Sequence[str] | None) -> tuple[str, ...]:
        count = 1 + max((int(each) for row in self._categories(train) for each in row), default=-1)
        if known is not None and len(known) >= count:
            return tuple(known)
        return tuple(str(each) for each in range(count))

    def _categories(self, dataset: datasets.Dataset) -> Iterable[Sequence[Any]]:
        for row in dataset.with_format(None)[self.column][:]:
            yield self._of_all(row or {}, self.category)

    def _of_all(self, row: Any, name: str) -> Sequence[Any]:
        """One part of all objects of an image."""
        return [each[name] for each in row] if isinstance(row, list) else row.get(name) or []

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """One number an image."""
        check_columns(dataset, [self.column], "data.label_column")
        found = self.objects(dataset, split)
        return torch.tensor([zlib.crc32(each.boxes.tobytes() + each.classes.tobytes()) for each in found])

    def objects(self, dataset: datasets.Dataset, split: str) -> list[Found]:
        """The objects of each image."""
        rows = dataset.with_format(None)[self.column][:]
        return [self._found(entry, row, split) for row, entry in enumerate(rows)]

    def _found(self, entry: Any, row: int, split: str) -> Found:
        where = f"Row {row} of the split {split!r}"
        if entry is None:
            raise HfDistillError(
                f"{where} has no objects in {self.column!r}; expected a list, empty where there are none."
            )
        boxes, categories = (self._of_all(entry, name) for name in (self.box, self.category))
        if len(boxes) != len(categories):
            raise HfDistillError(
                f"{where} has {len(boxes)} boxes and {len(categories)} categories in {self.column!r}; expected a "
                "category for each box."
            )
        for box in boxes:
            check_box(box, self.format, f"{where} in {self.column!r}")
        crowds = self._of_all(entry, self.crowd) if self.crowd is not None else []
        return Found(
            corners(boxes, self.format),
            np.array([self._class(each, where) for each in categories], np.int64),
            np.array([bool(each) for each in crowds] or [False] * len(boxes), np.bool_),
        )

    def _class(self, category: Any, where: str) -> int:
        index = (
            self._places.get(category, -1) if isinstance(category, str) else -1 if category is None else int(category)
        )
        if not 0 <= index < len(self.space.names):
            raise HfDistillError(
                f"{where} holds the category {category!r} in {self.column!r}; expected one of "
                f"{', '.join(self.space.names[:5])}{', ...' if len(self.space.names) > 5 else ''}, or its number from "
                f"0 to {len(self.space.names) - 1}. Check data.class_names."
            )
        return index


def _member(feature: Any) -> Any:
    """What a list holds."""
    return feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else feature


@dataclass(frozen=True)
class DiskObjects:
    """Images that are read and processed anew each time, with their objects."""

    dataset: datasets.Dataset
    column: str
    views: Mapping[str, ObjectView]
    found: Sequence[Found]

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Any]:
        """One view of some rows; `labels` is a list with a dict for each."""
        shown = [self.tensor(int(row), view) for row in rows]
        return _batch(self.views[view], shown, [self.found[int(row)] for row in rows], rows, draws)

    def tensor(self, row: int, view: str) -> tuple[Tensor, tuple[int, int]]:
        """An image as a model sees it, and its own (width, height)."""
        how = self.views[view]
        with reading(row, self.column):
            image = in_mode(self.dataset[row][self.column], self.column, row, how.mode)
        return how.of_each([image])[0], image.size


@dataclass(frozen=True)
class MemoryObjects:
    """All images of a split, processed once for each view, each with its own (width, height), and their objects."""

    images: Mapping[str, Sequence[tuple[Tensor, tuple[int, int]]]]
    views: Mapping[str, ObjectView]
    found: Sequence[Found]

    def __len__(self) -> int:
        return len(self.found)

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Any]:
        """One view of some rows; `labels` is a list with a dict for each."""
        shown = [self.images[view][int(row)] for row in rows]
        return _batch(self.views[view], shown, [self.found[int(row)] for row in rows], rows, draws)


def _batch(
    view: ObjectView,
    shown: Sequence[tuple[Tensor, tuple[int, int]]],
    found: Sequence[Found],
    rows: Tensor,
    draws: Draws | None,
) -> dict[str, Any]:
    """Boxes are shares of the image without its padding, whatever the batch: as detectors are trained."""
    flips = [False] * len(shown) if draws is None else draws.flips.tolist()
    images, labels = [], []
    for (image, size), objects, flip, row in zip(shown, found, flips, rows.tolist(), strict=True):
        boxes, kept = in_shares(objects.boxes, size, row)
        kept &= ~objects.crowds
        boxes, classes = boxes[kept], objects.classes[kept]
        images.append(image.flip(-1) if flip else image)
        labels.append(
            {
                "class_labels": torch.from_numpy(classes),
                "boxes": torch.from_numpy(mirrored(boxes) if flip else boxes).float(),
                "orig_size": torch.tensor(size[::-1]),
            }
        )
    return {**view.together(images), "labels": labels}


def _in_memory(disk: DiskObjects, request: SourceRequest) -> MemoryObjects:
    rows = range(len(disk))
    images = {name: [disk.tensor(row, name) for row in request.bar(rows, "Reading images")] for name in request.views}
    return MemoryObjects(images, disk.views, disk.found)
