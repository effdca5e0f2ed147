"""Student and teacher may read the same example through different processors and columns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from hfdistill import DistillationTrainer, HfDistillError
from tests import tiny
from tests.trainer.test_trainer import config

SIZES = {"student": 16, "teacher": 16}


def image_processor(mean: float, size: int = 16) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=[mean] * 3, image_std=[0.5] * 3)


def images(rows: int = 8) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (rows, 20, 20, 3), generator=generator, dtype=torch.uint8).numpy()
    return Dataset.from_dict(
        {
            "path": ["a.png"] * rows,
            "image": [Image.fromarray(each) for each in pixels],
            "label": [i % 3 for i in range(rows)],
        }
    )


def tokenizer(words: list[str], folder: Path) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", model_max_length=12)


def test_two_image_processors_give_two_views(tmp_path: Path) -> None:
    student, teacher = tiny.model("resnet", layers=1, seed=1), tiny.model("vit", seed=2)
    trainer = DistillationTrainer(
        student,
        config(tmp_path, max_steps=1),
        teacher_model=teacher,
        train_dataset=images(),
        processing_class=image_processor(0.5),
        teacher_processing_class=image_processor(0.2),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    ours, theirs = trainer.views.student(batch)["pixel_values"], trainer.views.teacher(batch)["pixel_values"]
    torch.testing.assert_close(ours + 0.6, theirs)
    trainer.train()


def test_equal_processors_share_one_view(tmp_path: Path) -> None:
    student, teacher = tiny.model("resnet", layers=1, seed=1), tiny.model("vit", seed=2)
    trainer = DistillationTrainer(
        student,
        config(tmp_path),
        teacher_model=teacher,
        processing_class=image_processor(0.5),
        teacher_processing_class=image_processor(0.5),
    )
    batch = tiny.batch("vit")
    assert trainer.views.teacher(batch)["pixel_values"] is trainer.views.student(batch)["pixel_values"]
    assert not trainer._reads_raw_columns


def test_raw_examples_are_processed_once_where_processors_agree(tmp_path: Path) -> None:
    trainer = DistillationTrainer(
        tiny.model("resnet", layers=1),
        config(tmp_path, max_steps=1),
        teacher_model=tiny.model("vit"),
        train_dataset=images(),
        processing_class=image_processor(0.5),
        teacher_processing_class=image_processor(0.5),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"pixel_values", "labels"}
    trainer.train()


def test_two_tokenizers_give_two_views(tmp_path: Path) -> None:
    words = ["good", "bad", "film"]
    one, other = tokenizer(words, tmp_path), tokenizer(words[::-1], tmp_path)
    data = Dataset.from_dict({"text": ["good film", "bad bad film", "film"], "label": [1, 0, 1]})
    student, teacher = tiny.model("distilbert", seed=1), tiny.model("bert", seed=2)
    trainer = DistillationTrainer(
        student,
        config(tmp_path, max_steps=1),
        teacher_model=teacher,
        train_dataset=data,
        processing_class=one,
        teacher_processing_class=other,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    ours, theirs = (
        trainer.views.student(batch)["input_ids"].tolist(),
        trainer.views.teacher(batch)["input_ids"].tolist(),
    )
    assert sorted(zip(ours, theirs, strict=True)) == [
        ([2, 4, 1], [4, 2, 1]),
        ([3, 3, 4], [3, 3, 2]),
        ([4, 1, 1], [2, 1, 1]),
    ]
    trainer.train()


def test_teacher_keeps_columns_that_the_student_lacks(tmp_path: Path) -> None:
    student, teacher = tiny.model("distilbert", seed=1), tiny.model("bert", seed=2)
    rows = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "token_type_ids": [0, 0, 1], "label": 1, "idx": 3}
    ] * 4
    trainer = DistillationTrainer(
        student, config(tmp_path, max_steps=1), teacher_model=teacher, train_dataset=Dataset.from_list(rows)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert "idx" not in batch
    assert set(trainer.views.student(batch)) == {"input_ids", "attention_mask"}
    assert set(trainer.views.teacher(batch)) == {"input_ids", "attention_mask", "token_type_ids"}
    trainer.train()


def test_columns_with_the_prefix_are_the_teachers_own(tmp_path: Path) -> None:
    student, teacher = tiny.model("resnet", layers=1, seed=1), tiny.model("vit", seed=2)
    teacher.config.num_channels = 4  # a difference that would otherwise be refused
    batch = tiny.batch("vit")
    rows = [{"pixel_values": each, "teacher_pixel_values": each + 1, "labels": 0} for each in batch["pixel_values"]]
    trainer = DistillationTrainer(student, config(tmp_path), teacher_model=teacher, train_dataset=rows)
    got = next(iter(trainer.get_train_dataloader()))
    torch.testing.assert_close(
        trainer.views.teacher(got)["pixel_values"], trainer.views.student(got)["pixel_values"] + 1
    )


def test_different_inputs_without_a_second_view_are_refused(tmp_path: Path) -> None:
    student, teacher = tiny.model("bert", seed=1), tiny.model("bert", seed=2)
    teacher.config.vocab_size = 99
    with pytest.raises(HfDistillError, match="vocabulary 64 against 99"):
        DistillationTrainer(student, config(tmp_path), teacher_model=teacher)
    with pytest.raises(HfDistillError, match="pixel_values"):
        DistillationTrainer(student, config(tmp_path), teacher_model=tiny.model("vit"))


def test_raw_columns_must_be_there(tmp_path: Path) -> None:
    rows = [{"pixel_values": each, "labels": 0} for each in tiny.batch("vit")["pixel_values"]]
    trainer = DistillationTrainer(
        tiny.model("resnet", layers=1),
        config(tmp_path, max_steps=1),
        teacher_model=tiny.model("vit"),
        processing_class=image_processor(0.5),
        teacher_processing_class=image_processor(0.2),
        train_dataset=rows,
    )
    with pytest.raises(HfDistillError, match="keep the raw column"):
        trainer.train()


def test_processor_beside_a_named_teacher_is_found(tmp_path: Path) -> None:
    tiny.model("vit", seed=2).save_pretrained(tmp_path / "teacher")
    image_processor(0.2).save_pretrained(tmp_path / "teacher")
    trainer = DistillationTrainer(
        tiny.model("resnet", layers=1),
        config(tmp_path, max_steps=1),
        teacher_model=str(tmp_path / "teacher"),
        processing_class=image_processor(0.5),
        train_dataset=images(),
    )
    assert trainer._reads_raw_columns
    trainer.train()
