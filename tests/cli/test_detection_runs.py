"""Whole runs of detectors: teacher, control, student and report, from local files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from hfdistill.doctor import diagnose
from hfdistill.recipe import load_recipe
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.detections import surest
from tests import scenes
from tests.recipes import inputs

YOLOS: dict[str, Any] = {
    "model_type": "yolos",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": [32, 32],
    "patch_size": 8,
    "num_detection_tokens": 6,
}
NAMES = ["dark", "light"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def recipe_file(folder: Path, **sections: dict[str, Any]) -> Path:
    rows = {"train": 24, "validation": 6, "test": 8}
    splits = {name: scenes.boxes(count, seed, NAMES) for seed, (name, count) in enumerate(rows.items())}
    whole: dict[str, dict[str, Any]] = {
        "teacher": {"config": YOLOS, "finetune": {"max_steps": 12}},
        "student": {"config": {**YOLOS, "hidden_size": 8}},
        "data": {
            "dataset": inputs.data_folder(folder / "data", splits),
            "task": "object_detection",
            "label_column": "objects",
            "validation_split": "validation",
            "augment": ["horizontal_flip"],
        },
        "objective": {"terms": [{"task": {}}, {"logits": {"weight": 1.0}}, {"boxes": {"weight": 0.5}}]},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 4,
            "learning_rate": 0.01,
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


def test_a_detection_run(tmp_path: Path) -> None:
    output, report = finished(recipe_file(tmp_path))
    columns = load_file(output / "seed-42" / "student" / "predictions.safetensors")
    model = AutoModelForObjectDetection.from_pretrained(output / "seed-42" / "student").eval()
    assert [model.config.id2label[place] for place in range(2)] == NAMES
    processor = AutoImageProcessor.from_pretrained(output / "seed-42" / "student")
    test = datasets.load_dataset(str(tmp_path / "data"))["test"]
    for row in (2, 5):
        image = test[row]["image"]
        with torch.no_grad():
            outputs = model(**processor([image.convert("RGB")], return_tensors="pt"))
        (expected,) = processor.post_process_object_detection(outputs, 0.0, target_sizes=[(24, 32)])
        own = columns["detections"][columns["detections"][:, 0] == row]
        order = expected["scores"].argsort(descending=True)
        assert torch.equal(own[:, 1].long(), expected["labels"][order])
        torch.testing.assert_close(own[:, 2].float(), expected["scores"][order], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(own[:, 3:].float(), expected["boxes"][order], rtol=1e-4, atol=1e-3)
    assert columns["gold"][:, 0].tolist() == [1, 2, 2, 4, 5, 5, 7]
    left, top, width, height = test[1]["objects"]["bbox"][0]
    category = test[1]["objects"]["category"][0]
    assert columns["gold"][0].tolist() == [1, category, 0, left, top, left + width, top + height]
    facts = json.loads((output / "seed-42" / "student" / "stage.json").read_text())
    assert {"map", "map_50", "map_75"} == set(facts["metrics"]) and report["metric"] == "map"
    logged = [key for row in facts["log_history"] for key in row]
    assert {"loss/task", "loss/kd", "loss/boxes"} <= set(logged)


def test_a_trained_teacher_with_a_view_and_classes_of_its_own(tmp_path: Path) -> None:
    config = AutoModelForObjectDetection.from_config
    torch.manual_seed(0)
    from transformers import YolosConfig, YolosImageProcessor

    settings = {key: value for key, value in YOLOS.items() if key != "model_type"}
    teacher = config(YolosConfig(**settings, id2label={0: "light", 1: "other", 2: "dark"}))
    teacher.save_pretrained(tmp_path / "teacher")
    YolosImageProcessor(size={"shortest_edge": 40, "longest_edge": 64}).save_pretrained(tmp_path / "teacher")
    section = {"model": str(tmp_path / "teacher"), "config": None, "finetune": None}
    file = recipe_file(tmp_path, teacher=section, data={**data_of(tmp_path), "image_size": 32})
    found = {check.name: check for check in diagnose(load_recipe(file, {}), Reporter(silent=True)).checks}
    bad = [name for name, check in found.items() if check.state == "bad"]
    assert bad == ["teacher's knowledge"], found  # its weights are drawn
    assert "further" in found["classes"].finding or "lacks" in found["classes"].finding
    assert "its own view" in found["inputs"].finding
    output, _ = finished(file)
    written = (output / "seed-42/student/stage.json").stat().st_mtime_ns
    rows = load_file(output / "teacher" / "predictions.safetensors")["detections"]
    assert set(rows[:, 1].tolist()) <= {0, 1} and len(rows) == 8 * 6
    finished(file)
    assert (output / "seed-42/student/stage.json").stat().st_mtime_ns == written


def data_of(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(recipe_file(folder).read_text())["data"])


def test_the_surest_boxes_by_hand() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 1.0], [0.25, 0.25, 0.5, 0.5]]])
    sizes = torch.tensor([[40, 20]])
    shares = torch.tensor([[[0.1, 0.6, 0.3], [0.2, 0.1, 0.7]]])
    (rows,) = surest(shares.log(), boxes, sizes, True, None)
    torch.testing.assert_close(
        rows.float(), torch.tensor([[1, 0.6, 10, 0, 30, 20], [0, 0.2, 0, 0, 20, 10]]), rtol=1e-4, atol=1e-4
    )
    (swapped,) = surest(shares.log(), boxes, sizes, True, torch.tensor([1, 0]))
    assert swapped[:, 0].tolist() == [0, 1]
    (several,) = surest(torch.logit(shares), boxes, sizes, False, torch.tensor([0, 2]))
    torch.testing.assert_close(several[:, 1].float(), torch.tensor([0.7, 0.3, 0.2, 0.1]), rtol=1e-4, atol=1e-4)
    assert several[:, 0].tolist() == [1, 1, 0, 0] and several[0, 2:].tolist() == [0, 0, 20, 10]
