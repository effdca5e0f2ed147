"""An embedded data set with parts: pictures composed of scikit-learn's handwritten digits, with maps and boxes.

The digits are real (see `digits`), and so are their shapes in the maps; where they lie, how large and how bright they
are is drawn. No digit of one split is in a picture of another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hfdistill.data.digits import NAMES, digits

SIDE = 64
"""Pixels along a picture's edge."""
LEAST, MOST = 1, 4
"""Digits in a picture."""
SMALLEST, LARGEST = 20, 36
"""Pixels along the edge of a digit with its margin."""
INK = 0.4
"""Share of a digit's brightest pixel from which on a pixel is part of it."""
OVERLAP = 0.15
"""Share of its box that a digit may lie over another."""
TRIES = 20
"""Places that are tried for a digit before it is left out."""
PICTURES = {"train": 2000, "validation": 300, "test": 500}


def digit_scenes() -> datasets.DatasetDict:
    """Columns image, map (0 background, 1 zero, ..., 10 nine) and objects (boxes as in COCO, categories by name)."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "map": datasets.Image(),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=list(NAMES))),
            },
        }
    )
    splits = {}
    for seed, (name, split) in enumerate(digits().items()):
        shapes = [np.asarray(image, np.float32) / np.float32(255) for image in split["image"]]
        labels = np.asarray(split["label"])
        generator = np.random.default_rng(seed)
        scenes = [_scene(shapes, labels, generator) for _ in range(PICTURES[name])]
        columns = {
            "image": [scene.image() for scene in scenes],
            "map": [Image.fromarray(scene.classes) for scene in scenes],
            "objects": [{"bbox": scene.boxes, "category": scene.categories} for scene in scenes],
        }
        splits[name] = datasets.Dataset.from_dict(columns, features=features)
    return datasets.DatasetDict(splits)


@dataclass
class Scene:
    """A picture in the making: brightness from 0 to 1, the class of each pixel, and what lies where."""

    light: NDArray[np.float32]
    classes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((SIDE, SIDE), np.uint8))
    boxes: list[list[float]] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)

    def image(self) -> Image.Image:
        """The picture in grey."""
        return Image.fromarray(np.round(self.light.clip(0, 1) * 255).astype(np.uint8))

    def add(self, digit: NDArray[np.float32], category: int, top: int, left: int) -> bool:
        """Lay a digit there, unless it would cover another."""
        ink = digit >= INK * digit.max()
        down, across = np.nonzero(ink)
        box = [left + across.min(), top + down.min(), np.ptp(across) + 1, np.ptp(down) + 1]
        if any(_shared(box, other) > OVERLAP * min(box[2] * box[3], other[2] * other[3]) for other in self.boxes):
            return False
        place = np.s_[top : top + len(digit), left : left + len(digit)]
        self.light[place] = np.maximum(self.light[place], digit)
        self.classes[place][ink] = category + 1
        self.boxes.append([float(each) for each in box])
        self.categories.append(int(category))
        return True


def _scene(shapes: list[NDArray[np.float32]], labels: NDArray[np.int64], generator: np.random.Generator) -> Scene:
    ramp = np.linspace(0, 1, SIDE, dtype=np.float32)
    slopes = generator.uniform(-0.2, 0.2, 2)
    shade = 0.15 + slopes[0] * ramp[:, None] + slopes[1] * ramp[None]
    scene = Scene((shade + generator.normal(0, 0.06, (SIDE, SIDE))).astype(np.float32))
    for _ in range(generator.integers(LEAST, MOST + 1)):
        chosen = generator.integers(len(labels))
        side = int(generator.integers(SMALLEST, LARGEST + 1))
        grown = Image.fromarray(shapes[chosen]).resize((side, side), Image.Resampling.BICUBIC)
        digit = np.asarray(grown) * generator.uniform(0.5, 1.0)
        for _ in range(TRIES):
            top, left = generator.integers(0, SIDE - side + 1, 2)
            if scene.add(digit.astype(np.float32), int(labels[chosen]), int(top), int(left)):
                break
    return scene


def _shared(one: list[float], other: list[float]) -> float:
    """Pixels that two boxes (x, y, width, height) have in common."""
    sides = [
        min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1)
    ]
    return max(sides[0], 0) * max(sides[1], 0)
