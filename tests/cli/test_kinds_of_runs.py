"""Runs of other kinds than the usual: several labels, numbers, other orders of classes, other views, many processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from hfdistill.recipe import load_recipe
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.run import Run
from tests.cli.small_run import STUDENT, small_recipe
from tests.recipes import inputs


@pytest.fixture(autouse=True)
def no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(Run, "close", lambda self, changed: None)


def run(file: Path, **changes: str) -> Path:
    output = file.parent / "out"
    run_recipe(load_recipe(file, changes), output, Reporter(silent=True))
    return output


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stage.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("problem_type", "labels", "outputs"),
    [
        ("multi_label_classification", lambda index: [int(index == 0), 1], 2),
        ("regression", lambda index: float(index), 1),
    ],
)
def test_several_labels_and_numbers(problem_type: str, labels: Any, outputs: int, tmp_path: Path) -> None:
    file = small_recipe(tmp_path, teacher={"finetune": {}})
    for split, rows in (("train", 24), ("validation", 9), ("test", 10)):
        pictures = inputs.pictures(rows)
        values = [labels(index) for index in pictures["label"]]
        pictures.remove_columns("label").add_column("label", values).to_parquet(tmp_path / "data" / f"{split}.parquet")
    student = run(file) / "seed-42" / "student"
    found = load_file(student / "predictions.safetensors")
    assert facts(student)["problem_type"] == problem_type and found["logits"].shape == (10, outputs)
    assert found["labels"].dtype == torch.float32
    assert {"loss", "f1_micro" if outputs == 2 else "r2"} <= facts(student)["metrics"].keys()


def test_a_teacher_with_another_order_of_classes_is_put_in_ours(tmp_path: Path) -> None:
    file = small_recipe(tmp_path)
    plain = load_file(run(file) / "teacher" / "predictions.safetensors")
    teacher = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    order = torch.tensor([2, 0, 1])
    teacher.classifier.weight.data, teacher.classifier.bias.data = (
        teacher.classifier.weight.data[order],
        teacher.classifier.bias.data[order],
    )
    teacher.config.id2label = {place: inputs.CLASSES[index] for place, index in enumerate(order.tolist())}
    teacher.config.label2id = {name: place for place, name in teacher.config.id2label.items()}
    teacher.save_pretrained(tmp_path / "other")
    inputs.image_processor().save_pretrained(tmp_path / "other")
    other = tmp_path / "again"
    run_recipe(load_recipe(file, {"teacher.model": str(tmp_path / "other")}), other, Reporter(silent=True))
    turned = load_file(other / "teacher" / "predictions.safetensors")
    torch.testing.assert_close(turned["logits"], plain["logits"])
    assert torch.equal(turned["labels"], plain["labels"])
    student = AutoModelForImageClassification.from_pretrained(other / "seed-42" / "student")
    assert [student.config.id2label[index] for index in range(3)] == inputs.CLASSES


def test_a_grey_student_of_another_size_learns_from_its_own_view(tmp_path: Path) -> None:
    student = STUDENT | {"num_channels": 1}
    output = run(
        small_recipe(tmp_path, student={"config": student}, data={"image_size": 8, "augment": ["random_crop"]})
    )
    settings = json.loads((output / "seed-42" / "student" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 8, "width": 8} and len(settings["image_mean"]) == 1


def test_a_noisy_student_s_teacher_sees_the_pictures_as_they_are(tmp_path: Path) -> None:
    seen = []
    for number, sees in enumerate(("same", "unchanged")):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = {"augment": ["random_crop"], "teacher_sees": sees}
        output = run(small_recipe(folder, data=data, objective={"alpha": 0.9}))
        stage = json.loads((output / "seed-42" / "student" / "stage.json").read_text())
        seen.append([row["loss/kd"] for row in stage["log_history"] if "loss/kd" in row])
    assert seen[0] != seen[1]


def test_the_student_s_folder_is_all_that_a_pipeline_needs(tmp_path: Path) -> None:
    student = run(small_recipe(tmp_path)) / "seed-42" / "student"
    answer = pipeline("image-classification", str(student))(inputs.pictures(3)[0]["image"])
    assert {each["label"] for each in answer} == set(inputs.CLASSES)


def test_training_grouped_by_length_is_measured_in_the_order_of_the_split(tmp_path: Path) -> None:
    """Trainer groups its evaluation too, so its predictions come in another order than the labels."""
    splits = {"train": 30, "validation": 12, "test": 20}
    folder = inputs.data_folder(
        tmp_path / "texts", {name: inputs.texts(rows, ["text"], seed=rows) for name, rows in splits.items()}
    )
    teacher = inputs.model_folder(tmp_path / "bert", "bert")
    file = small_recipe(
        tmp_path,
        teacher={"model": teacher},
        student={"config": None, "from_teacher": {"layers": 1}},
        data={"dataset": folder},
        training={"train_sampling_strategy": "group_by_length", "per_device_eval_batch_size": 4},
    )
    found = load_file(run(file) / "teacher" / "predictions.safetensors")
    classify = pipeline("text-classification", model=teacher, top_k=None, function_to_apply="none")
    test = datasets.load_dataset(folder)["test"]
    for place, scores in enumerate(classify(test["text"][:])):
        own = {score["label"]: score["score"] for score in scores}
        expected = [own[name] for name in inputs.CLASSES]
        assert found["logits"][place].tolist() == pytest.approx(expected, abs=1e-4), place
    assert found["labels"].tolist() == test["label"][:]
