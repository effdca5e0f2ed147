"""Whole runs over pixels: teacher, control, student and report, from local files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hfdistill.doctor import diagnose
from hfdistill.recipe import load_recipe
from hfdistill.stages import Reporter, run_recipe
from tests import scenes
from tests.recipes import inputs
from tests.scenes import NAMES

SEGFORMER: dict[str, Any] = {
    "model_type": "segformer",
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
    "drop_path_rate": 0.0,
    "classifier_dropout_prob": 0.0,
}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def recipe_file(folder: Path, **sections: dict[str, Any]) -> Path:
    rows = {"train": 24, "validation": 6, "test": 7}
    splits = {name: scenes.maps(count, seed) for seed, (name, count) in enumerate(rows.items())}
    whole: dict[str, dict[str, Any]] = {
        "teacher": {"config": SEGFORMER, "finetune": {"max_steps": 60}},
        "student": {"config": {**SEGFORMER, "hidden_sizes": [4, 8]}},
        "data": {
            "dataset": inputs.data_folder(folder / "data", splits),
            "task": "semantic_segmentation",
            "image_column": "image",
            "label_column": "map",
            "validation_split": "validation",
            "class_names": NAMES,
            "augment": ["horizontal_flip"],
        },
        "objective": {"alpha": 0.5},
        "training": {
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 4,
            "learning_rate": 0.02,
            "use_cpu": True,
        },
    }
    for name, changes in sections.items():
        whole[name] = whole[name] | changes
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file


def finished(file: Path) -> tuple[Path, dict[str, Any]]:
    output = file.parent / "out"
    run_recipe(load_recipe(file, {}), output, Reporter(silent=True))
    return output, json.loads((output / "report.json").read_text())


@pytest.fixture(scope="module")
def first_run(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with few labels, and its report."""
    scenes.need_segformer()
    return finished(recipe_file(tmp_path_factory.mktemp("first"), data={"labelled": 10, "teacher_labels": "all"}))


def test_a_segmentation_run_with_few_labels(first_run: tuple[Path, dict[str, Any]]) -> None:
    output, report = first_run
    columns = load_file(output / "seed-42" / "student" / "predictions.safetensors")
    facts = json.loads((output / "seed-42" / "student" / "stage.json").read_text())
    assert (columns["pixels"] == 15 * 16).all() and (columns["compared"] == 256).all()
    model = AutoModelForSemanticSegmentation.from_pretrained(output / "seed-42" / "student").eval()
    assert [model.config.id2label[place] for place in range(3)] == NAMES
    processor = AutoImageProcessor.from_pretrained(output / "seed-42" / "student")
    test = datasets.load_dataset(str(output.parent / "data"))["test"]
    labels = torch.stack([torch.from_numpy(np.array(each)).long() for each in test["map"]])
    with torch.no_grad():
        logits = model(processor([each.convert("RGB") for each in test["image"]], return_tensors="pt")["pixel_values"])
    grown = functional.interpolate(logits.logits, size=(16, 16), mode="bilinear", align_corners=False)
    loss = functional.cross_entropy(grown, labels, ignore_index=255)
    assert facts["metrics"]["loss"] == pytest.approx(float(loss), rel=1e-4)
    counted, decided = labels != 255, grown.argmax(1)
    overlaps = [
        ((decided == each) & (labels == each)).sum() / (((decided == each) & counted) | (labels == each)).sum()
        for each in range(3)
        if (((decided == each) & counted) | (labels == each)).any()
    ]
    assert facts["metrics"]["mean_iou"] == pytest.approx(float(torch.stack(overlaps).mean()), rel=1e-4)
    assert report["metric"] == "mean_iou" and report["models"]["student"]["fidelity"] is not None
    assert report["models"]["teacher"]["metrics"]["mean_iou"] > 0.6
    control = json.loads((output / "seed-42" / "control" / "stage.json").read_text())
    assert control["steps"] == facts["steps"] == 6


def test_a_trained_teacher_with_a_view_of_its_own_and_classes_in_another_order(
    first_run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    output, _ = first_run
    teacher = AutoModelForSemanticSegmentation.from_pretrained(output / "teacher")
    order = [2, 0, 1]
    with torch.no_grad():
        head = teacher.decode_head.classifier
        head.weight.copy_(head.weight[order])
        head.bias.copy_(head.bias[order])
    teacher.config.update({"id2label": {place: NAMES[each] for place, each in enumerate(order)}})
    teacher.save_pretrained(tmp_path / "teacher")
    processor = AutoImageProcessor.from_pretrained(output / "teacher")
    processor.size = {"height": 32, "width": 32}
    processor.save_pretrained(tmp_path / "teacher")
    section = {"model": str(tmp_path / "teacher"), "config": None, "finetune": None}
    student = {"config": {**SEGFORMER, "hidden_sizes": [4, 8]}, "processor": str(output / "teacher")}
    file = recipe_file(tmp_path, teacher=section, student=student)
    found = {check.name: check for check in diagnose(load_recipe(file, {}), Reporter(silent=True)).checks}
    assert not [check for check in found.values() if check.state == "bad"], found
    assert "its own view" in found["inputs"].finding and "another order" in found["classes"].finding
    second, report = finished(file)
    columns = {name: load_file(second / name / "predictions.safetensors") for name in ("teacher", "seed-42/student")}
    # All are held against the maps that the student's view shows.
    assert torch.equal(columns["teacher"]["pixels"], columns["seed-42/student"]["pixels"])
    assert report["models"]["teacher"]["metrics"]["mean_iou"] > 0.4
    written = (second / "seed-42/student/stage.json").stat().st_mtime_ns
    finished(file)
    assert (second / "seed-42/student/stage.json").stat().st_mtime_ns == written
