"""Raw images with raw texts: whole processors (CLIPProcessor, SiglipProcessor) make the tensors of both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import CLIPImageProcessorPil, CLIPProcessor, SiglipImageProcessorPil, SiglipProcessor

from hfdistill import DistillationTrainer, HfDistillError
from hfdistill.contract import processing_differences
from tests import tiny_pairs
from tests.trainer.test_trainer import config
from tests.trainer.test_views import image_processor, images

CAPTIONS = ("a photo of a red car.", "a bad picture", "green", "a photo of a sports car")


def processor(kind: str, mean: float = 0.5) -> Any:
    size = {"height": tiny_pairs.IMAGE_SIZE, "width": tiny_pairs.IMAGE_SIZE}
    settings: dict[str, Any] = {"size": size, "resample": 2, "image_mean": [mean] * 3, "image_std": [0.5] * 3}
    if kind == "clip":
        return CLIPProcessor(CLIPImageProcessorPil(**settings, crop_size=size), tiny_pairs.tokenizer())
    return SiglipProcessor(SiglipImageProcessorPil(**settings), tiny_pairs.tokenizer())


def captioned(rows: int = 8) -> Dataset:
    data = images(rows).remove_columns(["path", "label"])
    return data.add_column("caption", [CAPTIONS[place % 4] for place in range(rows)])


def trainer_of(folder: Path, kind: str, data: Dataset, teacher_mean: float = 0.5, **changes: Any) -> Any:
    arguments = {"per_device_train_batch_size": 4, "logging_steps": 1, **changes}
    return DistillationTrainer(
        tiny_pairs.model(kind, seed=1),
        config(folder, max_steps=1, **arguments),
        teacher_model=tiny_pairs.model(kind, layers=2, seed=2),
        train_dataset=data,
        processing_class=processor(kind),
        teacher_processing_class=processor(kind, teacher_mean),
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_one_processor_reads_both(kind: str, tmp_path: Path) -> None:
    """What agrees is processed once; texts are padded as the kind of model has learnt them."""
    data = captioned()
    trainer = trainer_of(tmp_path, kind, data)
    batch = next(iter(trainer.get_eval_dataloader(data)))
    assert not any(key.startswith("teacher_") for key in batch)
    first = data[: trainer.args.per_device_eval_batch_size]
    padding = {"clip": "longest", "siglip": "max_length"}[kind]
    expected = processor(kind)(images=first["image"], text=first["caption"], padding=padding, return_tensors="pt")
    assert batch["input_ids"].shape[1] == (10 if kind == "siglip" else expected["input_ids"].shape[1])
    for name in ("pixel_values", "input_ids"):
        torch.testing.assert_close(batch[name], expected[name])
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_each_model_has_its_own_where_they_differ(tmp_path: Path) -> None:
    assert processing_differences(processor("clip"), processor("clip")) == []
    trainer = trainer_of(tmp_path, "clip", captioned(), teacher_mean=0.2)
    batch = next(iter(trainer.get_train_dataloader()))
    torch.testing.assert_close(batch["pixel_values"] + 0.6, batch["teacher_pixel_values"])
    torch.testing.assert_close(batch["input_ids"], batch["teacher_input_ids"])
    trainer.train()


def test_a_processor_beside_the_teacher_is_found(tmp_path: Path) -> None:
    tiny_pairs.model("clip", layers=2, seed=2).save_pretrained(tmp_path / "teacher")
    processor("clip", 0.2).save_pretrained(tmp_path / "teacher")
    trainer = DistillationTrainer(
        tiny_pairs.model("clip"),
        config(tmp_path / "out"),
        teacher_model=str(tmp_path / "teacher"),
        train_dataset=captioned(),
        processing_class=processor("clip"),
    )
    assert "teacher_pixel_values" in next(iter(trainer.get_train_dataloader()))


def test_which_columns_are_meant_has_to_be_clear(tmp_path: Path) -> None:
    data = captioned().add_column("address", ["a.png"] * 8)
    with pytest.raises(HfDistillError, match="texts in caption, address; expected one of each"):
        next(iter(trainer_of(tmp_path, "clip", data).get_train_dataloader()))
    named = trainer_of(tmp_path, "clip", data, input_columns=["caption", "image"])
    assert next(iter(named.get_train_dataloader()))["input_ids"].shape[0] == 4
    with pytest.raises(HfDistillError, match="texts in no column"):
        next(iter(trainer_of(tmp_path, "clip", images().remove_columns("path")).get_train_dataloader()))


def test_a_filter_that_differs_is_another_view() -> None:
    bicubic, bilinear = image_processor(0.5), image_processor(0.5)
    bicubic.resample, bilinear.resample = 3, 2
    assert processing_differences(bicubic, bilinear) == ["resample 3 against 2"]
    bicubic.do_resize = bilinear.do_resize = False
    assert processing_differences(bicubic, bilinear) == []
