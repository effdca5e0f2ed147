"""What the models read: processed once, padded right, and the same change for both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import AutoConfig, PreTrainedTokenizerFast, ViTImageProcessor

from hfdistill import HfDistillError
from hfdistill.data import images, prepare, read_data, whole_batch
from hfdistill.data.changes import Changes, Draws
from hfdistill.data.examples import Examples
from hfdistill.data.images import DiskImages, ImageView, MemoryImages, image_source
from hfdistill.data.texts import TextView, text_source
from hfdistill.recipe import DataSection, RecipeError, StudentSection, TeacherSection


def bar(items: Sequence[Any], title: str) -> Iterator[Any]:
    return iter(items)


def pictures(rows: int = 6, size: int = 16) -> datasets.Dataset:
    pixels = np.random.default_rng(0).integers(1, 256, (rows, size, size, 3), dtype=np.uint8)
    columns = {"image": [Image.fromarray(each) for each in pixels], "label": [row % 2 for row in range(rows)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict(columns, features=features)


def processor(size: int = 16, mean: float = 0.5) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=[mean] * 3, image_std=[0.5] * 3)


def both_sources(views: dict[str, ImageView], *augment: str) -> tuple[MemoryImages, DiskImages]:
    memory = image_source(pictures(), "image", views, 10**9, augment, bar)
    disk = image_source(pictures(), "image", views, 10, augment, bar)
    assert isinstance(memory, MemoryImages) and isinstance(disk, DiskImages)
    return memory, disk


@pytest.mark.parametrize("augment", [[], ["random_crop"], ["horizontal_flip"], ["random_crop", "horizontal_flip"]])
def test_images_in_memory_and_from_disk_are_the_same(augment: list[str]) -> None:
    memory, disk = both_sources({"student": ImageView(processor(), "RGB")}, *augment)
    rows = torch.tensor([4, 0, 5, 1])
    draws = Changes(tuple(augment), seed=1).draws(rows) if augment else None
    ours, theirs = (source.batch(rows, "student", draws)["pixel_values"] for source in (memory, disk))
    torch.testing.assert_close(ours, theirs)
    plain = memory.batch(rows, "student", None)["pixel_values"]
    assert torch.equal(ours, plain) == (not augment)


def test_a_crop_moves_the_image_over_black_by_at_most_an_eighth() -> None:
    image = torch.arange(64.0).reshape(1, 1, 8, 8) + 1
    places, flips, keys = torch.tensor([[0.0, 0.999]]), torch.zeros(1).bool(), np.zeros(1, np.uint64)
    draws = Draws(("random_crop",), places, torch.ones(1), torch.ones(1), flips, keys)
    moved = draws.of_tensors(image, torch.tensor([-7.0]))[0, 0]
    assert (moved[0] == -7).all() and (moved[:, -1] == -7).all()
    assert torch.equal(moved[1:, :-1], image[0, 0, :-1, 1:])


def test_both_models_see_the_same_change() -> None:
    views = {"student": ImageView(processor(16), "RGB"), "teacher": ImageView(processor(32, mean=0.0), "RGB")}
    memory, _ = both_sources(views, "horizontal_flip")
    draws = Changes(("horizontal_flip",)).draws(torch.arange(6))
    flipped = torch.where(draws.flips)[0]
    assert 0 < len(flipped) < 6
    for view in views:
        plain = memory.batch(torch.arange(6), view, None)["pixel_values"]
        changed = memory.batch(torch.arange(6), view, draws)["pixel_values"]
        assert [row for row in range(6) if not torch.equal(plain[row], changed[row])] == flipped.tolist()


def test_a_teacher_may_see_each_picture_as_it_is() -> None:
    memory, _ = both_sources({"student": ImageView(processor(), "RGB")}, "horizontal_flip")
    rows, changes = torch.arange(6), Changes(("horizontal_flip",))
    views = {"": "student", "teacher_": "student"}
    plain = memory.batch(rows, "student", None)["pixel_values"]
    batch = Examples(memory, None, views, rows, changes, unchanged=("teacher_",)).__getitems__(range(6))
    assert torch.equal(batch["teacher_pixel_values"], plain)
    assert not torch.equal(batch["pixel_values"], plain)
    both = Examples(memory, None, views, rows, changes).__getitems__(range(6))
    assert torch.equal(both["teacher_pixel_values"], both["pixel_values"])


def test_a_change_follows_from_seed_epoch_and_row_alone() -> None:
    changes, rows = Changes(("horizontal_flip",), seed=3), torch.arange(4000)
    first = changes.draws(rows)
    assert torch.equal(changes.draws(rows[7:9]).places, first.places[7:9])
    assert abs(first.places.mean() - 0.5) < 0.02 and abs(first.flips.double().mean() - 0.5) < 0.03
    assert abs(torch.corrcoef(torch.stack([first.places[:, 0], first.places[:, 1]]))[0, 1]) < 0.05
    changes.epoch[0] = 1
    second = changes.draws(rows)
    assert (first.places != second.places).all()
    assert abs(torch.corrcoef(torch.stack([first.places[:, 0], second.places[:, 0]]))[0, 1]) < 0.05


def test_a_resized_crop_has_the_size_of_the_model_and_a_share_of_the_area() -> None:
    source = image_source(
        pictures(2, size=40), "image", {"student": ImageView(processor(), "RGB")}, 10**9, ["random_resized_crop"], bar
    )
    batch = source.batch(torch.tensor([0, 1]), "student", Changes(("random_resized_crop",)).draws(torch.tensor([0, 1])))
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    draws = Changes(("random_resized_crop",)).draws(torch.arange(500))
    boxes = torch.tensor([draws._box(row, Image.new("RGB", (60, 40))) for row in range(500)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 2400
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 60 and boxes[:, 3].max() <= 40
    assert areas.min() >= 0.079 and areas.max() <= 1.0 and 0.4 < areas.mean() < 0.6


def test_a_broken_image_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "broken.png")]}).cast_column("image", datasets.Image())
    with pytest.raises(HfDistillError, match="Row 0 of 'image' cannot be read as an image"):
        images.read_image(rows, "image", 0, "RGB")


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", *"abcdefgh"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", model_input_names=names, **options
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("columns", [["first"], ["first", "second"]])
def test_batches_of_text_are_what_the_tokenizer_pads(columns: list[str], side: str) -> None:
    rows = datasets.Dataset.from_dict({"first": ["a b c d e", "b", "c d"], "second": ["e", "f g h a", ""]})
    view = TextView(tokenizer(padding_side=side), max_length=6)
    source = text_source(rows, columns, {"student": view}, bar)
    chosen = [2, 0, 1]
    texts = [[rows[row][column] for row in chosen] for column in columns]
    wanted = view.tokenizer(*texts, truncation=True, max_length=6, padding=True, return_tensors="pt")
    batch = source.batch(torch.tensor(chosen), "student", None)
    assert set(batch) == set(wanted)
    for name, value in batch.items():
        assert torch.equal(value, wanted[name]), name


def test_a_text_that_is_none_is_named_with_its_row() -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", None]})
    with pytest.raises(HfDistillError, match="Row 1 holds None in the text column 'text'"):
        text_source(rows, ["text"], {"student": TextView(tokenizer(), 8)}, bar)


VIT = {"model_type": "vit", "image_size": 16, "patch_size": 8}
RESNET = {"model_type": "resnet"}


def prepared_digits(student: dict[str, Any], **settings: Any) -> Any:
    few = {"max_train_samples": 90, "max_eval_samples": 20}
    data = read_data(DataSection(dataset="digits", validation_split="validation", **few, **settings))
    section = StudentSection(config=student)
    train = data.train.dataset
    theirs = data.kind.view(TeacherSection(config=VIT, finetune={}), AutoConfig.for_model(**VIT), train)
    ours = data.kind.view(section, AutoConfig.for_model(**student), train, theirs)
    return prepare(data, ours, theirs if ours.differences(theirs) else None, bar)


def test_a_student_from_a_config_sees_as_its_teacher_does() -> None:
    prepared = prepared_digits(RESNET)
    batch = next(iter(DataLoader(prepared.student_train(), batch_size=5, collate_fn=whole_batch)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values": (5, 3, 16, 16),
        "labels": (5,),
    }
    assert abs(prepared.train.pixels["student"].mean()) < 0.1


@pytest.mark.parametrize(
    ("student", "shape"), [(VIT | {"image_size": 8}, (3, 8, 8)), (RESNET | {"num_channels": 1}, (1, 16, 16))]
)
def test_a_student_of_another_size_or_colour_gets_its_own_view(student: dict[str, Any], shape: tuple[int, ...]) -> None:
    example = prepared_digits(student).student_train()[0]
    assert example["pixel_values"].shape == shape and example["teacher_pixel_values"].shape == (3, 16, 16)


def test_control_and_teacher_learn_from_the_labels_that_the_recipe_grants() -> None:
    same, every = (prepared_digits(RESNET, labelled=30, teacher_labels=kind) for kind in ("same", "all"))
    assert [len(each()) for each in (same.student_train, same.control_train, same.teacher_train)] == [90, 30, 30]
    assert len(every.teacher_train()) == 90 and (every.teacher_train().labels >= 0).all()
    control = same.control_train()
    assert (control.__getitems__(list(range(30)))["labels"] >= 0).all()
    student = same.student_train()
    assert (student.__getitems__(list(range(90)))["labels"] >= 0).sum() == 30


def test_a_text_model_from_a_config_asks_for_a_tokenizer(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"] * 10, "label": ["x", "y"] * 10}).to_csv(tmp_path / "rows.csv")
    data = read_data(DataSection(dataset=str(tmp_path / "rows.csv"), test_split=None))
    bert = {"model_type": "bert"}
    with pytest.raises(RecipeError, match=r"teacher\.processor: a model built from a config has no tokenizer"):
        data.kind.view(TeacherSection(config=bert, finetune={}), AutoConfig.for_model(**bert), data.train.dataset)
