"""Images with a class for each pixel: changed alike, names of classes, and maps that are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, ViTImageProcessor

from hfdistill import HfDistillError
from hfdistill.data import Examples
from hfdistill.data.changes import Changes
from hfdistill.data.kind import SourceRequest
from hfdistill.data.names import given_names
from hfdistill.data.regions import DiskRegions, MemoryRegions, Regions, RegionView, ignored_label
from hfdistill.recipe import DataSection, RecipeError, StudentSection
from tests.scenes import need_segformer


def bar(items: Sequence[Any], title: str) -> Iterator[Any]:
    return iter(items)


def scenes(rows: int = 5, size: int = 16, classes: int = 3) -> datasets.Dataset:
    """Each pixel's grey tells its class; an edge of each map does not count."""
    generator = np.random.default_rng(0)
    maps = generator.integers(0, classes, (rows, size, size), dtype=np.uint8)
    greys = [Image.fromarray((40 + 60 * each).astype(np.uint8)) for each in maps]
    maps[:, 0] = 255
    columns = {"image": greys, "map": [Image.fromarray(each) for each in maps]}
    return datasets.Dataset.from_dict(
        columns, features=datasets.Features({"image": datasets.Image(), "map": datasets.Image()})
    )


def one_row(image: Image.Image, labels: Image.Image | None) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "map": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [image], "map": [labels]}, features=features)


def section(**changes: Any) -> DataSection:
    return DataSection("x", task="semantic_segmentation", label_column="map", **changes)


def view(size: int = 16, ignored: int = 255) -> RegionView:
    processor = ViTImageProcessor(size={"height": size, "width": size}, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    return RegionView(processor, "RGB", ignored)


def kind(rows: datasets.Dataset, **changes: Any) -> Regions:
    return Regions(rows, section(**changes), ("image",), None)


def source(rows: datasets.Dataset, budget: int, views: dict[str, RegionView], *augment: str) -> Any:
    return kind(rows).source(SourceRequest(rows, "train", views, budget, bar, augment))


def grey_of(labels: torch.Tensor) -> torch.Tensor:
    return (40 + 60 * labels) / 255


@pytest.mark.parametrize("budget", [10**9, 10])
@pytest.mark.parametrize("augment", [[], ["random_crop"], ["horizontal_flip"], ["random_crop", "horizontal_flip"]])
def test_a_map_changes_as_its_image_does(augment: list[str], budget: int) -> None:
    rows = torch.tensor([4, 0, 3])
    found = source(scenes(), budget, {"student": view()}, *augment)
    assert isinstance(found, DiskRegions if budget == 10 else MemoryRegions)
    batch = found.batch(rows, "student", Changes(tuple(augment), seed=1).draws(rows) if augment else None)
    labels, pixels = batch["labels"], batch["pixel_values"]
    assert labels.dtype == torch.int64 and labels.shape == (3, 16, 16)
    counted = labels != 255
    assert 0.3 < counted.float().mean() < 1
    torch.testing.assert_close(pixels[:, 0][counted], grey_of(labels)[counted])
    plain = found.batch(rows, "student", None)["labels"]
    assert torch.equal(plain, labels) == (not augment)
    # Beyond the edge of a cropped image it is black, and nothing there counts.
    assert "random_crop" not in augment or bool(((pixels[:, 0] == 0) & ~counted).any())


def test_a_resized_crop_shows_the_same_part_of_image_and_map() -> None:
    halves = np.zeros((20, 20), np.uint8)
    halves[:, 10:] = 1
    rows = one_row(Image.fromarray(200 * halves), Image.fromarray(halves))
    found = source(rows, 10, {"student": view()}, "random_resized_crop")
    for seed in range(6):
        row = torch.tensor([0])
        batch = found.batch(row, "student", Changes(("random_resized_crop",), seed).draws(row))
        guessed = (batch["pixel_values"][0, 0] > 100 / 255).long()
        assert (guessed == batch["labels"][0]).float().mean() > 0.9


def test_maps_are_resized_to_the_nearest_class_and_more_than_255_are_kept() -> None:
    numbers = np.repeat(np.repeat(np.array([[0, 299], [150, 7]], np.int32), 4, 0), 4, 1)
    rows = one_row(Image.new("RGB", (8, 8)), Image.fromarray(numbers))
    found = source(rows, 10**9, {"student": view(4), "teacher": view(16)})
    small, large = (found.batch(torch.tensor([0]), name, None)["labels"][0] for name in ("student", "teacher"))
    assert small.tolist() == [[0, 0, 299, 299]] * 2 + [[150, 150, 7, 7]] * 2
    assert large.shape == (16, 16) and set(large.unique().tolist()) == {0, 7, 150, 299}


def test_reduced_labels_begin_at_1_and_0_does_not_count() -> None:
    found = np.array([[0, 1], [2, 255]], np.uint8)
    rows = one_row(Image.new("RGB", (2, 2)), Image.fromarray(found))
    reader = kind(rows, reduce_labels=True, class_names=["wall", "sky"]).reader
    assert reader.numbers(rows[0]["map"], 0, (2, 2)).tolist() == [[0, 1], [2, 0]]
    plain = kind(rows).reader
    assert plain.space.names == ("0", "1", "2")
    assert plain.numbers(rows[0]["map"], 0, (2, 2)).tolist() == [[1, 2], [3, 0]]


def test_labels_are_those_of_the_students_view_and_ignored_pixels_are_the_models() -> None:
    rows = scenes()
    views = {"student": view(8, ignored=-100), "teacher": view(16)}
    found = source(rows, 10**9, views)
    examples = Examples(
        found, torch.tensor([1, -100, 1, 1, 1]), {"": "student", "teacher_": "teacher"}, torch.arange(5)
    )
    batch = examples.__getitems__([0, 1])
    assert set(batch) == {"pixel_values", "labels", "teacher_pixel_values"}
    assert batch["teacher_pixel_values"].shape[-1] == 16 and batch["labels"].shape[-1] == 8
    assert (batch["labels"][1] == -100).all() and bool((batch["labels"][0] >= 0).any())
    assert ignored_label(SegformerConfig(), 150) == 255 and ignored_label(SegformerConfig(), 300) == -100


def test_a_student_from_a_config_gets_a_processor_of_its_own_kind() -> None:
    need_segformer()
    made = kind(scenes()).view(StudentSection(config={"model_type": "segformer"}), SegformerConfig(), scenes())
    assert type(made.processor).__name__.startswith("SegformerImageProcessor")
    assert made.size(scenes()[0]["image"]) == (16, 16)


def test_class_names_come_from_a_list_a_file_or_the_teacher(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(["a", "b"]))
    (tmp_path / "mapping.json").write_text(json.dumps({"1": "b", "0": "a"}))
    (tmp_path / "holes.json").write_text(json.dumps({"1": "b"}))
    assert given_names(["a", "b"], None) == ("a", "b")
    assert given_names(str(tmp_path / "list.json"), None) == ("a", "b")
    assert given_names(str(tmp_path / "mapping.json"), None) == ("a", "b")
    known = Regions(scenes(), section(), ("image",), ["x", "y", "z"]).reader
    assert known.space.names == ("x", "y", "z")
    assert given_names("teacher", ["x", "y"]) == ("x", "y")
    with pytest.raises(RecipeError, match="take a teacher without"):
        given_names("teacher", None)
    with pytest.raises(RecipeError, match="mapping from 0, 1, 2"):
        given_names(str(tmp_path / "holes.json"), None)
    with pytest.raises(RecipeError, match="there is no file"):
        given_names(str(tmp_path / "missing.json"), None)


def test_a_changed_map_changes_its_mark_and_a_missing_one_is_only_for_training() -> None:
    rows = scenes(3)
    reader = kind(rows).reader
    marks = reader(rows, "train", allow_missing=True)
    assert (marks >= 0).all() and len(set(marks.tolist())) == 3
    empty = one_row(Image.new("RGB", (4, 4)), None)
    assert reader(empty, "train", allow_missing=True).tolist() == [-100]
    with pytest.raises(HfDistillError, match="has no map in 'map'"):
        reader(empty, "test", allow_missing=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Image.new("L", (8, 8), 3), "Row 0 has the class 3 in 'map'; expected 0 to 2"),
        (Image.new("L", (8, 4)), "a map of 8 x 4 pixels in 'map' for an image of 8 x 8"),
        (Image.new("RGB", (8, 8)), "a map of mode RGB"),
    ],
)
def test_a_map_that_does_not_fit_is_named_with_its_row(labels: Image.Image, message: str) -> None:
    rows = one_row(Image.new("RGB", (8, 8)), labels)
    made = kind(rows, class_names=["a", "b", "c"])
    with pytest.raises(HfDistillError, match=message):
        made.source(SourceRequest(rows, "train", {"student": view()}, 10**9, bar))


def test_keys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="expected images whose pixels"):
        Regions(scenes().add_column("label", [1] * 5), DataSection("x"), ("image",), None)
    with pytest.raises(RecipeError, match="reduce_labels"):
        DataSection("x", reduce_labels=True)
    with pytest.raises(RecipeError, match="there is no column"):
        Regions(scenes(), DataSection("x", label_column="label"), ("image",), None)
    with pytest.raises(HfDistillError, match="have 1 class"):
        kind(one_row(Image.new("RGB", (4, 4)), Image.new("L", (4, 4))))
