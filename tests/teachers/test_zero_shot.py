"""Zero-shot teachers: logits as the model's own, templates, names and views, what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPImageProcessorPil, CLIPProcessor, ViTImageProcessorPil

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, ZeroShotTeacher
from hfdistill.tasks import TASKS
from tests import tiny, tiny_pairs

NAMES = ("red", "green", "blue_car")
TEMPLATES = ("a photo of a {}.", "a bad picture of {}")


def teacher_of(kind: str = "clip", **arguments: Any) -> ZeroShotTeacher:
    return ZeroShotTeacher(tiny_pairs.model(kind, layers=2, seed=2), tiny_pairs.tokenizer(), **arguments)


def student_of(*names: str, architecture: str = "vit", **changes: Any) -> Any:
    network = tiny.model(architecture, layers=1, num_labels=len(names), seed=1, **changes)
    network.config.id2label = dict(enumerate(names))
    network.config.label2id = {name: index for index, name in enumerate(names)}
    return network


def config(folder: Path, **changes: Any) -> DistillationConfig:
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    return DistillationConfig(output_dir=str(folder), **{**quiet, **changes})


def pictures(count: int) -> list[dict[str, Any]]:
    """Raw examples: a picture and a label."""
    generator = numpy.random.default_rng(0)
    shape = (count, 20, 20, 3)
    pixels = generator.integers(256, size=shape, dtype=numpy.uint8)
    return [{"image": Image.fromarray(each), "label": place % 3} for place, each in enumerate(pixels)]


def image_processor(kind: type, mean: float) -> Any:
    size = {"height": 16, "width": 16}
    crop = {"crop_size": size} if kind is CLIPImageProcessorPil else {}
    return kind(size=size, resample=2, image_mean=[mean] * 3, image_std=[0.5] * 3, **crop)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_the_models_own(kind: str) -> None:
    """One template: what the model says of the images and the three texts, with its scale and bias."""
    network, tokenizer = tiny_pairs.model(kind, seed=2).eval(), tiny_pairs.tokenizer()
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    padding = {"clip": "longest", "siglip": "max_length"}[kind]
    pixels = tiny_pairs.batch(5)["pixel_values"]
    with torch.no_grad():
        own = network(pixel_values=pixels, **tokenizer(texts, padding=padding, return_tensors="pt")).logits_per_image
        given = ZeroShotTeacher(network, tokenizer, classes=NAMES)(pixels).logits
    torch.testing.assert_close(given, own)


def test_templates_are_averaged_at_length_one() -> None:
    teacher = teacher_of(classes=["red"], templates=TEMPLATES)
    single = [teacher_of(classes=["red"], templates=[template]).class_embeddings for template in TEMPLATES]
    torch.testing.assert_close(teacher.class_embeddings, normalize(single[0] + single[1], dim=-1))
    words = teacher_of(classes={"0": "red", "n02": "green"}, templates=TEMPLATES)
    assert words.classes == ("0", "n02")
    torch.testing.assert_close(words.class_embeddings[:1], teacher.class_embeddings)


def test_what_reads_text_is_let_go_and_the_model_left_whole() -> None:
    network = tiny_pairs.model("clip", seed=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = ZeroShotTeacher(network, tiny_pairs.tokenizer())
    assert any("text" in name for name, _ in teacher.named_parameters())
    teacher.bind(NAMES, TASKS["single_label_classification"], torch.device("cpu"))
    assert not any("text" in name for name, _ in teacher.named_parameters())
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert dict(teacher.named_parameters())["model.logit_scale"] is network.logit_scale
    assert network(**tiny_pairs.batch(2)).logits_per_image.shape == (2, 2)


def test_trains_a_student_that_sees_its_own_pictures(tmp_path: Path) -> None:
    """Names from the student, each model its own processor; the KD term falls on one batch without labels."""
    student = student_of(*NAMES)
    teacher = teacher_of()
    data = [{"image": row["image"]} for row in pictures(8)]
    trainer = DistillationTrainer(
        student,
        config(tmp_path, max_steps=20, learning_rate=1e-2, alpha=1.0),
        teacher_model=teacher,
        train_dataset=data,
        processing_class=image_processor(ViTImageProcessorPil, 0.5),
        teacher_processing_class=image_processor(CLIPImageProcessorPil, 0.2),
    )
    assert teacher.classes == NAMES
    batch = next(iter(trainer.get_train_dataloader()))
    torch.testing.assert_close(batch["pixel_values"] + 0.6, batch["teacher_pixel_values"])
    with torch.no_grad():
        expected = teacher(batch["teacher_pixel_values"]).logits
    torch.testing.assert_close(trainer.teacher(trainer.views.teacher(batch)).logits, expected)
    trainer.train()
    losses = [row["loss/kd"] for row in trainer.state.log_history if "loss/kd" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert not any("text" in name or "class_embeddings" in name for name in trainer.model.state_dict())


def test_its_processor_makes_its_own_pictures(tmp_path: Path) -> None:
    """A whole processor holds an image processor, so that none has to be named."""
    own = CLIPProcessor(image_processor(CLIPImageProcessorPil, 0.2), tiny_pairs.tokenizer())
    trainer = DistillationTrainer(
        student_of(*NAMES),
        config(tmp_path),
        teacher_model=ZeroShotTeacher(tiny_pairs.model("clip"), own),
        train_dataset=pictures(8),
        processing_class=image_processor(ViTImageProcessorPil, 0.5),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    torch.testing.assert_close(batch["pixel_values"] + 0.6, batch["teacher_pixel_values"])
    assert batch["labels"].shape == (8,)


def test_given_classes_are_matched_by_name(tmp_path: Path) -> None:
    """Another order is permuted, further classes are left out; the student's order counts."""
    teacher = teacher_of(classes=["picture", "blue car", "green", "red"])
    rows = [{**row, "labels": 0} for row in tiny_pairs.pairs(4)]
    trainer = DistillationTrainer(student_of(*NAMES), config(tmp_path), teacher_model=teacher, train_dataset=rows)
    pixels = tiny_pairs.batch(4)["pixel_values"]
    with torch.no_grad():
        every = teacher(pixels).logits
    torch.testing.assert_close(trainer.teacher({"pixel_values": pixels}).logits, every[:, [3, 2, 1]])
    with pytest.raises(HfDistillError, match="'yellow'"):
        DistillationTrainer(student_of("red", "yellow"), config(tmp_path), teacher_model=teacher)


def test_what_does_not_fit_is_refused_at_once(tmp_path: Path) -> None:
    tokenizer = tiny_pairs.tokenizer()
    with pytest.raises(HfDistillError, match="ViTForImageClassification came for ZeroShotTeacher"):
        ZeroShotTeacher(tiny.model("vit"), tokenizer)
    with pytest.raises(HfDistillError, match="ViTImageProcessorPil came"):
        ZeroShotTeacher(tiny_pairs.model("clip"), image_processor(ViTImageProcessorPil, 0.5))
    for wrong in ("a photo of a {}.", [], ["a photo"], ["{} and {}"]):
        with pytest.raises(HfDistillError, match=r"with one \{\} each"):
            teacher_of(templates=wrong)
    for names in ("red", [], ["LABEL_0", "LABEL_1"]):
        with pytest.raises(HfDistillError, match="words that a text encoder understands"):
            teacher_of(classes=names)
    with pytest.raises(HfDistillError, match="id2label"):
        DistillationTrainer(student_of("LABEL_0", "LABEL_1"), config(tmp_path), teacher_model=teacher_of())
    with pytest.raises(HfDistillError, match="no classes yet"):
        teacher_of()(tiny_pairs.batch(1)["pixel_values"])
    with pytest.raises(HfDistillError, match="no config with class names"):
        DistillationTrainer(torch.nn.Linear(2, 2), config(tmp_path), teacher_model=teacher_of())
    several = student_of(*NAMES, problem_type="multi_label_classification")
    with pytest.raises(HfDistillError, match="scores each class by itself"):
        DistillationTrainer(several, config(tmp_path), teacher_model=teacher_of())
    DistillationTrainer(several, config(tmp_path), teacher_model=teacher_of("siglip"))
    with pytest.raises(HfDistillError, match="chooses among classes"):
        DistillationTrainer(student_of("red", problem_type="regression"), config(tmp_path), teacher_model=teacher_of())
    large = student_of(*NAMES)
    large.config.image_size = 32
    with pytest.raises(HfDistillError, match="image size 32 against 16"):
        DistillationTrainer(large, config(tmp_path), teacher_model=teacher_of())
