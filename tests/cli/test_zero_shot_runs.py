"""A model of images and texts teaches by names: a whole run from local files through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, CLIPImageProcessorPil, CLIPProcessor, SiglipImageProcessorPil

from hfdistill import HfDistillError, cli
from hfdistill.doctor import diagnose
from hfdistill.recipe import RecipeError, load_recipe
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.run import Run
from tests import tiny_pairs
from tests.cli.small_run import small_recipe
from tests.recipes import inputs

WORDS = {"class_0": "red car", "class_1": "green", "class_2": "sports car"}
TEMPLATES = ["a photo of a {}.", "a bad picture of {}"]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def teacher_folder(folder: Path, kind: str = "clip") -> str:
    size = {"height": tiny_pairs.IMAGE_SIZE, "width": tiny_pairs.IMAGE_SIZE}
    settings: dict[str, Any] = {"size": size, "image_mean": [0.2] * 3, "image_std": [0.5] * 3}
    tiny_pairs.model(kind, layers=2, seed=2).save_pretrained(folder)
    if kind == "clip":
        image_processor = CLIPImageProcessorPil(**settings, crop_size=size)
        CLIPProcessor(image_processor, tiny_pairs.tokenizer()).save_pretrained(folder)
    else:
        SiglipImageProcessorPil(**settings).save_pretrained(folder)
        tiny_pairs.tokenizer().save_pretrained(folder)
    return str(folder)


def recipe_file(folder: Path, kind: str = "clip", **sections: dict[str, Any]) -> Path:
    teacher = {
        "model": teacher_folder(folder / kind, kind),
        "zero_shot": {"templates": TEMPLATES, "class_names": WORDS},
    }
    given = {"teacher": teacher | sections.pop("teacher", {})}
    data = {"image_size": 8, "labelled": 9} | sections.pop("data", {})
    return small_recipe(folder, **given, data=data, objective={"alpha": 1.0}, **sections)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stage.json").read_text())  # type: ignore[no-any-return]


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(recipe_file(tmp_path))
    assert cli.main(["run", file]) == cli.OK
    output = tmp_path / "runs" / "small"
    assert "each get their own view" in capsys.readouterr().out
    teacher = facts(output / "teacher")
    assert teacher["model"].endswith("clip, zero-shot") and teacher["steps"] == 0
    assert not (output / "teacher" / "config.json").exists()
    # What the teacher says of the test split is what the model of images and texts itself says.
    clip = tiny_pairs.model("clip", layers=2, seed=2).eval()
    processor = CLIPProcessor.from_pretrained(tmp_path / "clip")
    pictures = datasets.load_dataset(str(tmp_path / "data"))["test"]["image"][:]
    with torch.no_grad():
        looks = clip.get_image_features(**processor.image_processor(pictures, return_tensors="pt")).pooler_output
        reads = [
            clip.get_text_features(
                **processor.tokenizer([each.format(word) for word in WORDS.values()], padding=True, return_tensors="pt")
            ).pooler_output
            for each in TEMPLATES
        ]
    names = sum(torch.nn.functional.normalize(each, dim=-1) for each in reads)
    cosines = torch.cosine_similarity(looks[:, None], names[None], dim=-1)
    given = load_file(output / "teacher" / "predictions.safetensors")["logits"]
    torch.testing.assert_close(given, clip.logit_scale.exp().detach() * cosines, rtol=1e-4, atol=1e-4)
    vision = sum(value.numel() for name, value in clip.named_parameters() if "text" not in name)
    assert teacher["parameters"] == vision
    student = output / "seed-42" / "student"
    settings = json.loads((student / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 8, "width": 8}
    network = AutoModelForImageClassification.from_pretrained(student)
    assert [network.config.id2label[place] for place in range(3)] == inputs.CLASSES
    assert {"teacher", "student"} <= json.loads((output / "speed.json").read_text())["models"].keys()
    assert "zero-shot" in (output / "report.md").read_text()
    assert cli.main(["run", file]) == cli.OK
    assert "Finished before: teacher, control (seed 42), student (seed 42)." in capsys.readouterr().out


def test_a_siglip_teaches_several_labels_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    file = recipe_file(tmp_path, "siglip", data={"labelled": None, "label_column": ["green", "red"]})
    content = yaml.safe_load(file.read_text())
    del content["teacher"]["zero_shot"]["class_names"]
    file.write_text(yaml.safe_dump(content))
    for split in ("train", "validation", "test"):
        pictures = inputs.pictures(24)
        for place, name in enumerate(("green", "red")):
            pictures = pictures.add_column(name, [int(each == place) for each in pictures["label"]])
        pictures.remove_columns("label").to_parquet(tmp_path / "data" / f"{split}.parquet")
    run_recipe(load_recipe(file), tmp_path / "out", Reporter(silent=True))
    assert facts(tmp_path / "out" / "teacher")["problem_type"] == "multi_label_classification"
    content["teacher"]["model"] = teacher_folder(tmp_path / "clip")
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(HfDistillError, match="scores each class by itself"):
        run_recipe(load_recipe(file), tmp_path / "again", Reporter(silent=True))


def test_the_doctor_knows_it(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, data={"labelled": None})
    found = {check.name: check for check in diagnose(load_recipe(file), Reporter(silent=True)).checks}
    assert "3 classes by name, in 2 templates" in found["teacher"].finding
    assert found["classes"].state == "good" and found["one batch"].state != "bad", found
    assert "each has its own view" in found["inputs"].finding
    # Random weights know nothing, and a fine-tune is not the remedy here.
    assert "class_names" in found["teacher's knowledge"].finding


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"finetune": {}}, "teacher.zero_shot: such a teacher is used as it is"),
        ({"zero_shot": {"template": []}}, "teacher.zero_shot.template: .* 'templates'"),
        ({"zero_shot": {"templates": ["a photo"]}}, "with one {} each"),
        ({"zero_shot": {"templates": []}}, "with one {} each"),
        ({"zero_shot": {"templates": "a {}"}}, "expected a list"),
        ({"zero_shot": {"class_names": {"class_0": 7}}}, "class_names.class_0: got 7, expected a text"),
        ({"zero_shot": {"class_names": {"clas_0": "cat"}}}, "class_names.clas_0: .* did you mean 'class_0'"),
        ({"zero_shot": {"class_names": {"class_0": "0", "class_1": "1"}}}, "classes are called class_0, class_1"),
        ({"model": "vit"}, "ViTForImageClassification came for ZeroShotTeacher"),
    ],
)
def test_mistakes_are_refused(teacher: dict[str, Any], message: str, tmp_path: Path) -> None:
    if teacher.get("model") == "vit":
        teacher = {"model": inputs.model_folder(tmp_path / "vit", "vit"), "processor": teacher_folder(tmp_path / "c")}
    file = recipe_file(tmp_path, teacher=teacher)
    with pytest.raises(HfDistillError, match=message):
        run_recipe(load_recipe(file), tmp_path / "out", Reporter(silent=True))


def test_its_layers_make_no_student(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, student={"config": None, "from_teacher": {"layers": 1}})
    with pytest.raises(RecipeError, match=r"student\.from_teacher: layers of a zero-shot teacher"):
        load_recipe(file)
