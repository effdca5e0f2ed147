"""Images with boxes: formats, shares of the image, flips, padding, names, and objects that are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrConfig, ResNetConfig, RTDetrConfig, RTDetrResNetConfig, YolosConfig

from hfdistill import HfDistillError
from hfdistill.data import Examples
from hfdistill.data.changes import Changes
from hfdistill.data.images import colours
from hfdistill.data.kind import SourceRequest
from hfdistill.data.objects import DiskObjects, MemoryObjects, Objects, ObjectView
from hfdistill.data.processors import processor_of_kind
from hfdistill.recipe import DataSection, RecipeError, StudentSection

SIZES = ((40, 20), (20, 40), (30, 30), (40, 20))
BOXES: list[list[list[float]]] = [[[4, 2, 8, 6]], [[0, 0, 20, 40], [10, 30, 5, 5]], [], [[30, 10, 20, 4]]]
CATEGORIES = [[1], [0, 2], [], [1]]


def bar(items: Sequence[Any], title: str) -> Iterator[Any]:
    return iter(items)


def scenes(objects: Any = None, category: Any = None) -> datasets.Dataset:
    """Four images of different shapes; one without an object, one with a box that leads beyond its edge."""
    generator = np.random.default_rng(0)
    pixels = [generator.integers(1, 256, (height, width, 3), dtype=np.uint8) for width, height in SIZES]
    if objects is None:
        objects = [{"bbox": box, "category": each} for box, each in zip(BOXES, CATEGORIES, strict=True)]
    whole = datasets.ClassLabel(names=["cat", "dog", "owl"]) if category is None else category
    boxes = datasets.List(datasets.List(datasets.Value("float32")))
    features = datasets.Features(
        {"image": datasets.Image(), "objects": {"bbox": boxes, "category": datasets.List(whole)}}
    )
    images = [Image.fromarray(each) for each in pixels][: len(objects)]
    return datasets.Dataset.from_dict({"image": images, "objects": objects}, features=features)


def section(**changes: Any) -> DataSection:
    return DataSection("x", **{"task": "object_detection", "label_column": "objects", **changes})


def kind(rows: datasets.Dataset, known: Sequence[str] | None = None, **changes: Any) -> Objects:
    return Objects(rows, section(**changes), ("image",), known)


def view(**settings: Any) -> ObjectView:
    size = {"size": {"shortest_edge": 16, "longest_edge": 64}}
    return ObjectView(processor_of_kind(YolosConfig(), {**size, **settings}), "RGB")


def source(rows: datasets.Dataset, budget: int, how: ObjectView, **changes: Any) -> Any:
    return kind(rows, **changes).source(SourceRequest(rows, "train", {"student": how}, budget, bar))


@pytest.mark.parametrize("budget", [10**9, 10])
def test_boxes_are_shares_of_their_own_image_and_images_are_padded_as_the_processor_does(budget: int) -> None:
    how = view()
    found = source(scenes(), budget, how)
    assert isinstance(found, DiskObjects if budget == 10 else MemoryObjects) and len(found) == 4
    batch = found.batch(torch.tensor([0, 1, 2, 3]), "student", None)
    images = [each.convert("RGB") for each in scenes()["image"]]
    expected = how.processor(images, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["pixel_mask"], expected["pixel_mask"])
    labels = batch["labels"]
    # x 4 to 12 of 40, y 2 to 8 of 20: centre (8/40, 5/20), size (8/40, 6/20).
    torch.testing.assert_close(labels[0]["boxes"], torch.tensor([[0.2, 0.25, 0.2, 0.3]]))
    torch.testing.assert_close(labels[1]["boxes"][0], torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert labels[2]["boxes"].shape == (0, 4) and labels[2]["class_labels"].dtype == torch.int64
    # x 30 to 50 of 40 is cut off at 40.
    torch.testing.assert_close(labels[3]["boxes"], torch.tensor([[0.875, 0.6, 0.25, 0.2]]))
    assert [each["class_labels"].tolist() for each in labels] == CATEGORIES
    assert labels[1]["orig_size"].tolist() == [40, 20]


@pytest.mark.parametrize("budget", [10**9, 10])
def test_a_flip_mirrors_image_and_boxes(budget: int) -> None:
    found = source(scenes(), budget, view())
    rows = torch.tensor([0, 3] * 4)
    draws = Changes(("horizontal_flip",), seed=2).draws(rows)
    draws.flips[:2] = torch.tensor([True, False])
    batch, plain = found.batch(rows, "student", draws), found.batch(rows, "student", None)
    assert torch.equal(batch["pixel_values"][0], plain["pixel_values"][0].flip(-1))
    torch.testing.assert_close(batch["labels"][0]["boxes"], torch.tensor([[0.8, 0.25, 0.2, 0.3]]))
    torch.testing.assert_close(batch["labels"][1]["boxes"], plain["labels"][1]["boxes"])


def test_corners_lists_of_objects_and_crowds_are_read() -> None:
    rows = [
        [
            {"bbox": [4.0, 2.0, 12.0, 8.0], "category_id": 1, "iscrowd": 0},
            {"bbox": [0.0, 0.0, 4.0, 4.0], "category_id": 0, "iscrowd": 1},
        ]
    ]
    made = datasets.Dataset.from_dict({"image": [Image.new("RGB", (40, 20))], "objects": rows})
    made = made.cast_column("image", datasets.Image())
    found = source(made, 10**9, view(), box_format="pascal_voc")
    assert found.found[0].boxes.tolist() == [[4, 2, 12, 8], [0, 0, 4, 4]]
    assert found.found[0].crowds.tolist() == [False, True]
    # A crowd is nothing that a detector has to find.
    labels = found.batch(torch.tensor([0]), "student", None)["labels"][0]
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.2, 0.25, 0.2, 0.3]]))
    assert labels["class_labels"].tolist() == [1]


def test_names_come_from_the_data_the_recipe_or_the_teacher() -> None:
    numbers = scenes(category=datasets.Value("int64"))
    words = [{"bbox": [[0, 0, 4, 4]], "category": [each]} for each in ("owl", "cat")]
    assert kind(scenes()).reader.space.names == ("cat", "dog", "owl")
    assert kind(scenes(), class_names=["a", "b", "c"]).reader.space.names == ("a", "b", "c")
    assert kind(scenes(), class_names="teacher", known=["x", "y", "z"]).reader.space.names == ("x", "y", "z")
    with pytest.raises(RecipeError, match="2 names came for the 3 classes"):
        kind(scenes(), class_names=["a", "b"])
    assert kind(scenes(words, datasets.Value("string"))).reader.space.names == ("cat", "owl")
    assert kind(numbers, known=["N/A", "b", "c", "d"]).reader.space.names == ("N/A", "b", "c", "d")
    assert kind(numbers).reader.space.names == ("0", "1", "2")


def test_a_mark_changes_with_the_objects() -> None:
    marks = kind(scenes()).reader(scenes(), "train", allow_missing=True)
    moved = [{"bbox": [[4, 2, 8, 7]], "category": [1]}]
    other = kind(scenes()).reader(scenes(moved), "train", allow_missing=True)
    assert (marks >= 0).all() and marks[0] != other[0]


def test_a_made_processor_belongs_to_the_model_and_gives_one_size() -> None:
    detr = DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=ResNetConfig())
    for config, name in ((detr, "DetrImageProcessor"), (RTDetrConfig(), "RTDetrImageProcessor")):
        student = StudentSection(config={"model_type": config.model_type})
        made = kind(scenes(), image_size=16).view(student, config, scenes())
        assert type(made.processor).__name__.startswith(name)
        assert made([Image.new("RGB", (40, 20))]).shape == (1, 3, 16, 16)


def test_a_backbone_tells_the_colours() -> None:
    backbone = RTDetrResNetConfig(num_channels=1)
    assert colours(RTDetrConfig(backbone_config=backbone)) == "L" and colours(RTDetrConfig()) == "RGB"


def test_an_example_holds_its_own_objects() -> None:
    examples = Examples(source(scenes(), 10**9, view()), torch.ones(4), {"": "student"}, torch.arange(4))
    assert examples[1]["labels"]["class_labels"].tolist() == [0, 2]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[0, 0, 4]], "category": [1]}, r"Row 0 of the split 'train' in 'objects' has the box"),
        ({"bbox": [[0, 0, -4, 4]], "category": [1]}, "expected x, y, width, height in pixels"),
        ({"bbox": [[0, 0, 4, 4]], "category": []}, "has 1 boxes and 0 categories"),
        ({"bbox": [[38, 10, 80, 8]], "category": [1]}, "a box from .* in an image of 40 x 20"),
        (None, "has no objects in 'objects'"),
    ],
)
def test_objects_that_cannot_be_used_are_named_with_their_row(objects: Any, message: str) -> None:
    rows = scenes([objects])
    with pytest.raises(HfDistillError, match=message):
        source(rows, 10**9, view()).batch(torch.tensor([0]), "student", None)


def test_a_category_beyond_the_names_is_refused() -> None:
    numbers = scenes(category=datasets.Value("int64"))
    with pytest.raises(HfDistillError, match="the category 2 in 'objects'; expected one of a, b, or its number"):
        kind(numbers, class_names=["a", "b"]).reader(numbers, "train", allow_missing=True)


def test_keys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="expected objects"):
        kind(scenes().add_column("label", [1] * 4), label_column="label")
    with pytest.raises(RecipeError, match="a crop may cut objects away"):
        section(augment=["random_crop"])
    with pytest.raises(RecipeError, match="detector's own loss"):
        section(labelled=3)
    with pytest.raises(RecipeError, match="box_format"):
        DataSection("x", box_format="pascal_voc")
    with pytest.raises(HfDistillError, match="different shapes and does not pad"):
        source(scenes(), 10, view(do_pad=False)).batch(torch.arange(2), "student", None)
