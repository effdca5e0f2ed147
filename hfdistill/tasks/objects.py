"""Labels of pictures with any number of objects: checked, put into batches, and padded for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hfdistill.errors import HfDistillError
from hfdistill.tasks.layouts import UNLABELLED

# Boxes are shares of the picture; rounding may lead a little beyond it.
BOX_SLACK = 1e-3
# Columns of which each picture has its own number of entries.
LISTED = ("labels", "mask_labels", "class_labels")


def objects(labels: Any, size: int, masks: bool) -> list[torch.Tensor]:
    """The class labels of a list of dicts, one a picture, checked with their boxes; with `masks`, they have these too.

    Errors: HfDistillError for anything else, and for boxes that are no shares of the picture.
    """
    needed = ("class_labels", "boxes", "masks") if masks else ("class_labels", "boxes")
    if not isinstance(labels, Sequence) or len(labels) != size or not all(isinstance(e, Mapping) for e in labels):
        raise HfDistillError(
            f"Labels of type {type(labels).__name__} came for {size} pictures; expected a list with a dict for each "
            f"({', '.join(needed)}), as the model's image processor makes them from annotations."
        )
    for place, each in enumerate(labels):
        missing = [name for name in needed if name not in each]
        if missing:
            raise HfDistillError(
                f"The labels of picture {place} of a batch have no {missing[0]!r} (they have {', '.join(each)}); "
                f"expected {', '.join(needed)}."
            )
        if each["boxes"].shape != (len(each["class_labels"]), 4):
            raise HfDistillError(
                f"Picture {place} of a batch has {len(each['class_labels'])} class_labels and boxes of shape "
                f"{tuple(each['boxes'].shape)}; expected (objects, 4), also where there is no object."
            )
    _check_boxes(torch.cat([each["boxes"] for each in labels]))
    return [each["class_labels"] for each in labels]


def _check_boxes(boxes: torch.Tensor) -> None:
    if boxes.numel() and not ((boxes >= -BOX_SLACK) & (boxes <= 1 + BOX_SLACK)).all():
        worst = boxes.flatten()[(boxes - 0.5).abs().flatten().argmax()]
        raise HfDistillError(
            f"A box with the coordinate {worst.item():g} came; expected centre x, centre y, width and height in shares "
            "of the picture, from 0 to 1. The model's image processor makes them from COCO annotations; or divide "
            "pixels by the picture's width and height."
        )


def masked_objects(given: Sequence[Any], size: int) -> list[torch.Tensor]:
    """The class labels of `mask_labels` and `class_labels`, lists with a tensor for each picture, checked."""
    masks, classes = given
    if not all(isinstance(each, Sequence) and len(each) == size for each in given):
        raise HfDistillError(
            f"mask_labels of type {type(masks).__name__} and class_labels of type {type(classes).__name__} came for "
            f"{size} pictures; expected two lists with a tensor for each: masks (objects, height, width) and class "
            "indices (objects), as the model's image processor makes them."
        )
    for place, (mask, label) in enumerate(zip(masks, classes, strict=True)):
        if mask.dim() != 3 or len(mask) != len(label):
            raise HfDistillError(
                f"Picture {place} of a batch has mask_labels of shape {tuple(mask.shape)} and {len(label)} "
                "class_labels; expected a mask (height, width) for each."
            )
    return list(classes)


def check_classes(labels: Sequence[torch.Tensor], classes: int | None) -> None:
    """Refuse class indices beyond the head's, which the model's own loss would stumble over."""
    every = torch.cat([each.flatten() for each in labels])
    if classes is None or not every.numel():
        return
    low, high = every.min().item(), every.max().item()
    if low < 0 or high >= classes:
        raise HfDistillError(
            f"There are class_labels from {low} to {high}; expected class indices from 0 to {classes - 1}. Check the "
            "labels and the student's num_labels, in which no-object does not count."
        )


def collated(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One batch of single examples: tensors stacked; labels, of which each picture has its own number, as lists.

    Errors: HfDistillError for pictures of different sizes.
    """
    batch: dict[str, Any] = {}
    for name, first in examples[0].items():
        values = [example[name] for example in examples]
        if isinstance(first, Mapping):
            batch[name] = [{key: torch.as_tensor(entry) for key, entry in value.items()} for value in values]
        elif name in LISTED:
            batch[name] = [torch.as_tensor(value) for value in values]
        else:
            batch[name] = _stacked(name, [torch.as_tensor(value) for value in values])
    # Trainer takes the first tensor that it meets for one with a row for each example.
    return dict(sorted(batch.items(), key=lambda entry: isinstance(entry[1], list)))


def _stacked(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    other = next((tensor for tensor in tensors if tensor.shape != tensors[0].shape), None)
    if other is not None:
        raise HfDistillError(
            f"The examples have {name} of shapes {tuple(tensors[0].shape)} and {tuple(other.shape)}; expected one "
            "size. Have the image processor pad or resize them, or pass a data_collator that pads."
        )
    return torch.stack(list(tensors))


def padded(labels: Any) -> tuple[torch.Tensor, ...]:
    """Labels of one batch as tensors that evaluation can put together, padded with -100 to the most objects.

    A list of dicts gives `class_labels` `(examples, objects)` and `boxes` `(examples, objects, 4)`; a tuple of lists
    gives a tensor for each of them.
    """
    if isinstance(labels, tuple):
        return tuple(_filled(each) for each in labels)
    names = [name for name in ("class_labels", "boxes", "masks") if name in labels[0]]
    return tuple(_filled([each[name] for each in labels]) for name in names)


def _filled(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    shape = [max(tensor.shape[axis] for tensor in tensors) for axis in range(tensors[0].dim())]
    # Masks are made of 0 and 1, and there are many pixels.
    kind = torch.int8 if len(shape) > 2 else tensors[0].dtype
    result = torch.full((len(tensors), *shape), UNLABELLED, dtype=kind, device=tensors[0].device)
    for place, tensor in enumerate(tensors):
        result[place][tuple(slice(length) for length in tensor.shape)] = tensor.to(kind)
    return result
