"""Data as users have it: files, folders, labels of every form, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hfdistill import HfDistillError
from hfdistill.data.labels import LabelReader
from hfdistill.data.sampling import stratified
from hfdistill.data.sources import load_splits
from hfdistill.data.splits import read_data
from hfdistill.recipe import DataSection, RecipeError

ROWS = {"text": [f"text {row}" for row in range(20)], "label": [row % 2 for row in range(20)]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns or ROWS)


def write(kind: str, folder: Path) -> Any:
    """The same rows as users keep them; returns data.dataset."""
    data = table()
    if kind == "save_to_disk":
        datasets.DatasetDict({"train": data, "test": data}).save_to_disk(folder / "saved")
        return str(folder / "saved")
    if kind == "folder":
        (folder / "plain").mkdir()
        for split in ("train", "test"):
            data.to_parquet(folder / "plain" / f"{split}.parquet")
        return str(folder / "plain")
    getattr(data, f"to_{'json' if kind == 'jsonl' else kind}")(folder / f"rows.{kind}")
    return {split: str(folder / f"rows.{kind}") for split in ("train", "test")}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder", "save_to_disk"])
def test_local_data_is_recognised_by_its_path(kind: str, tmp_path: Path) -> None:
    splits = load_splits(DataSection(dataset=write(kind, tmp_path)))
    assert {name: split["text"][:] for name, split in splits.items()} == {"train": ROWS["text"], "test": ROWS["text"]}


def test_a_folder_of_images_by_class_gives_names(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(10):
            file = tmp_path / "pets" / split / ("cat", "dog")[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    data = read_data(DataSection(dataset=str(tmp_path / "pets"), validation_fraction=0.2))
    assert (data.kind.name, data.kind.columns, data.space.names) == ("image", ("image",), ("cat", "dog"))
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 10)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dataset": "./absent.csv"}, RecipeError, "there is no file or folder"),
        ({"dataset": {"train": "absent.csv"}}, RecipeError, "there is no file absent.csv"),
        ({"dataset": "nobody/nothing"}, HfDistillError, "cannot be read.*Expected a Hub id"),
        ({"dataset": "FILE"}, RecipeError, "no split 'test'; it has train.*data.test_fraction"),
        (
            {"dataset": "FILE", "test_split": None, "label_column": "lable"},
            RecipeError,
            "no column 'lable'; .* text, label",
        ),
        ({"dataset": "FILE", "test_split": None, "text_columns": "txt"}, RecipeError, "no column 'txt'"),
        ({"dataset": "FILE", "test_split": None, "image_column": "text"}, RecipeError, "expected images"),
        ({"dataset": "FILE", "test_split": None, "labelled": 19}, RecipeError, r"expected 2 .one a class. to 18"),
        ({"dataset": "EMPTY", "test_split": None}, HfDistillError, "is empty; expected examples"),
        ({"dataset": "CORRUPT", "test_split": None}, HfDistillError, "cannot be read"),
    ],
)
def test_data_that_cannot_be_used_is_named(settings: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.csv" for name in ("FILE", "EMPTY")} | {"CORRUPT": tmp_path / "CORRUPT.parquet"}
    table().to_csv(files["FILE"])
    files["EMPTY"].write_text("text,label\n")
    files["CORRUPT"].write_bytes(b"PAR1 this is no parquet")
    if str(settings["dataset"]) in files:
        settings = settings | {"dataset": str(files[settings["dataset"]])}
    with pytest.raises(error, match=message):
        read_data(DataSection(**settings))


def labels_of(values: list[Any], feature: Any = None, names: list[str] | None = None, **settings: Any) -> Any:
    rows = datasets.Dataset.from_dict({"y": values})
    if feature is not None:
        rows = rows.cast_column("y", feature)
    reader = LabelReader(rows, DataSection(dataset="mine", label_column="y", **settings), names)
    return reader.space, reader(rows, "train", allow_missing=True)


CLASS = datasets.ClassLabel(names=["no", "yes"])
SINGLE, MULTI, REAL = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("values", "feature", "problem_type", "names", "encoded"),
    [
        ([1, 0, None], CLASS, SINGLE, ("no", "yes"), [1, 0, -100]),
        ([0, 2, -100], None, SINGLE, ("0", "1", "2"), [0, 2, -100]),
        (["b", "a", None], None, SINGLE, ("a", "b"), [1, 0, -100]),
        ([True, False], None, SINGLE, ("0", "1"), [1, 0]),
        ([0.5, -2.0], None, REAL, ("score",), [0.5, -2.0]),
        ([[1], [0, 1], []], datasets.List(CLASS), MULTI, ("no", "yes"), [[0, 1], [1, 1], [0, 0]]),
        ([[1, 0, 0], [1, 1, 0]], None, MULTI, ("0", "1", "2"), [[1, 0, 0], [1, 1, 0]]),
        ([[1.0, 0.0], [1.0, 1.0]], None, MULTI, ("0", "1"), [[1, 0], [1, 1]]),
        ([[0.5, 2.0], [1.0, 1.0]], None, REAL, ("score_0", "score_1"), [[0.5, 2], [1, 1]]),
        ([["x", "y"], ["y"]], None, MULTI, ("x", "y"), [[1, 1], [0, 1]]),
    ],
)
def test_labels_of_every_form_become_one_tensor(
    values: list[Any], feature: Any, problem_type: str, names: tuple[str, ...], encoded: list[Any]
) -> None:
    space, labels = labels_of(values, feature)
    assert (space.problem_type, space.names) == (problem_type, names)
    assert labels.tolist() == encoded
    assert labels.dtype == (torch.int64 if problem_type == SINGLE else torch.float32)


def test_bare_numbers_take_the_names_of_a_finished_teacher() -> None:
    assert labels_of([0, 1], names=["sad", "fine", "glad"])[0].names == ("sad", "fine", "glad")
    assert labels_of([0, 3], names=["sad", "fine", "glad"])[0].names == ("0", "1", "2", "3")


def test_several_columns_are_several_labels() -> None:
    rows = table(text=["a", "b"], rude=[1, 0], funny=[1, 1])
    reader = LabelReader(rows, DataSection(dataset="mine", label_column=["rude", "funny"]))
    assert reader.space.names == ("rude", "funny")
    assert reader(rows, "test", allow_missing=False).tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 1], [0, 7], "Row 1 of the split 'test' holds 7 in 'y'; expected a class index from 0 to 1"),
        ([0, 1, 1], [-1, -1], "Row 0 .* holds -1 .*hidden labels"),
        (["a", "b"], ["a", "c"], "Row 1 .* holds 'c' .*a, b"),
        ([0, 1], [0, None], "Row 1 .* holds None .*only rows of the train split"),
        ([[1, 0], [0, 1]], [[1, 0], [1, 2]], r"Row 1 .* holds \[1, 2\] .* 0 or 1"),
        ([[1, 0], [0, 1]], [[1]], r"Row 0 .* holds \[1\] .* 2 numbers"),
        ([0.5, 1.5], [float("inf")], "Row 0 .* holds inf .* finite number"),
        ([1, 1], [1], None),
        (["a", "a"], ["a"], "has 1 class; expected at least two"),
    ],
)
def test_a_label_out_of_range_is_named_with_its_row(train: list[Any], test: list[Any], message: str | None) -> None:
    section = DataSection(dataset="mine", label_column="y")
    if message is None:
        assert LabelReader(table(y=train), section).space.names == ("0", "1")
        return
    with pytest.raises(HfDistillError, match=message):
        LabelReader(table(y=train), section)(table(y=test), "test", allow_missing=False)


def test_few_labels_are_stratified_and_the_rest_has_none(tmp_path: Path) -> None:
    rows = {"text": [f"text {row}" for row in range(100)], "label": [int(row % 4 == 0) for row in range(100)]}
    table(**rows).to_csv(tmp_path / "rows.csv")
    settings = {"dataset": str(tmp_path / "rows.csv"), "test_split": None, "test_fraction": 0.2, "labelled": 8}
    data = read_data(DataSection(**settings))
    assert (len(data.train), len(data.validation), len(data.test)) == (72, 8, 20)
    used = data.train.labels[data.labelled]
    assert used.tolist().count(1) == 2 and len(used) == 8
    assert (data.masked_labels() == -100).sum() == 64
    assert "8 labelled rows; the other 64" in data.notices[1]
    dropped = read_data(DataSection(**settings, unlabelled="drop"))
    assert len(dropped.train) == 8 and torch.equal(dropped.train.labels, used)
    texts = [set(split.dataset["text"]) for split in (data.train, data.validation, data.test)]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_without_a_test_split_the_run_says_so(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "rows.csv")
    data = read_data(DataSection(dataset=str(tmp_path / "rows.csv"), test_split=None))
    assert data.test is data.validation
    assert "there is no test split" in data.notices[0]


def test_every_class_keeps_its_share() -> None:
    classes = np.repeat([0, 1, 2], [70, 25, 5])
    rows = stratified(classes, 20, seed=0)
    assert np.bincount(classes[rows]).tolist() == [14, 5, 1]
    assert np.array_equal(rows, stratified(classes, 20, seed=0)) and len(set(rows)) == 20
    assert np.bincount(classes[stratified(classes, 3, seed=1)]).tolist() == [1, 1, 1]


def test_the_embedded_digits_are_split_without_overlap() -> None:
    data = read_data(DataSection(dataset="digits", validation_split="validation"))
    assert (len(data.train), len(data.validation), len(data.test)) == (1257, 180, 360)
    assert data.space.names[0] == "zero"
    counts = torch.bincount(data.test.labels)
    assert counts.min() >= 34 and counts.max() <= 38
    seen = {np.asarray(image).tobytes() for image in data.train.dataset["image"]}
    # A handful of digits are drawn alike, pixel for pixel; a leak would be hundreds.
    assert sum(np.asarray(image).tobytes() in seen for image in data.test.dataset["image"]) < 5
