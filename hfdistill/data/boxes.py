"""Boxes of objects: from the formats of data sets to pixels, and to the shares of an image that detectors learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hfdistill.errors import HfDistillError

COCO = "coco"
"""x, y, width, height; the other format is the x, y of two corners."""


def check_box(box: Sequence[float], box_format: str, where: str) -> None:
    """Refuse what is no box. Errors: HfDistillError."""
    usable = len(box) == 4 and bool(np.isfinite(box).all())
    if usable and box_format == COCO:
        usable = min(box[2:]) >= 0
    elif usable:
        usable = box[2] >= box[0] and box[3] >= box[1]
    if not usable:
        expected = "x, y, width, height" if box_format == COCO else "left, top, right, bottom"
        raise HfDistillError(
            f"{where} has the box {list(box)}; expected {expected} in pixels. Check data.box_format ({box_format})."
        )


def corners(boxes: Sequence[Sequence[float]], box_format: str) -> NDArray[np.float64]:
    """Boxes (n, 4) as left, top, right, bottom."""
    found = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1) if box_format == COCO else found


def in_shares(
    boxes: NDArray[np.float64], size: tuple[int, int], row: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Corners as centre, width and height in shares of an image of `size`, and which boxes show anything.

    What lies beyond the image is cut off. Errors: HfDistillError for a box whose centre lies there, which is a sign
    of another format.
    """
    scaled = boxes / np.array([*size, *size], np.float64)
    centres = (scaled[:, :2] + scaled[:, 2:]) / 2
    outside = ~((centres >= 0) & (centres <= 1)).all(axis=1)
    if outside.any():
        first = boxes[outside][0].tolist()
        raise HfDistillError(
            f"Row {row} has a box from {first[:2]} to {first[2:]} in an image of {size[0]} x {size[1]} pixels; "
            "expected one inside. Check data.box_format, and that boxes are in pixels."
        )
    cut = scaled.clip(0, 1)
    sides = cut[:, 2:] - cut[:, :2]
    return np.concatenate([(cut[:, :2] + cut[:, 2:]) / 2, sides], axis=1), (sides > 0).all(axis=1)


def mirrored(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes as centre and size of an image that is flipped left to right."""
    return np.concatenate([1 - boxes[:, :1], boxes[:, 1:]], axis=1)
