"""Students with a distillation token: a whole run through the command line, and every way to name one in a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    DeiTForImageClassificationWithTeacher,
    LevitForImageClassificationWithTeacher,
    ViTImageProcessor,
)

from hfdistill import cli
from hfdistill.data import read_data
from hfdistill.doctor import diagnose
from hfdistill.recipe import RecipeError, load_recipe
from hfdistill.stages import Reporter
from hfdistill.stages.models import build_student, summary
from tests import tiny
from tests.cli.small_run import small_recipe
from tests.recipes import inputs

TOKEN = {"config": None, "distillation_token": True}
DEIT = {"model_type": "deit", **tiny._vision_transformer(1)}


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_a_whole_run(tmp_path: Path) -> None:
    file = small_recipe(
        tmp_path,
        student={"config": DEIT, "distillation_token": True, "finetune": {"max_steps": 2}},
        objective={"alpha": None, "terms": [{"task": {"weight": 0.5}}, {"logits": {"loss": "hard_label"}}]},
    )
    assert cli.main(["run", str(file)]) == cli.OK
    run = tmp_path / "runs" / "small"
    pictures = datasets.load_dataset(str(tmp_path / "data"))["test"]["image"][:]
    for stage in ("control", "student", "finetuned"):
        folder = run / "seed-42" / stage
        # The folder is plain Transformers, and its mean over both heads is what the report is about.
        model = AutoModelForImageClassification.from_pretrained(folder)
        assert type(model) is DeiTForImageClassificationWithTeacher
        pixels = ViTImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs = model(pixels)
        torch.testing.assert_close(load_file(folder / "predictions.safetensors")["logits"], outputs.logits)
        assert not torch.allclose(outputs.cls_logits, outputs.distillation_logits)
        facts = json.loads((folder / "stage.json").read_text())
        assert facts["model"] == "deit from a config, with a distillation token"
    assert "with a distillation token" in (run / "report.md").read_text()
    assert {"teacher", "student"} <= json.loads((run / "speed.json").read_text())["models"].keys()


def test_every_source_of_a_student_takes_the_token(tmp_path: Path) -> None:
    levit = {"hidden_sizes": [8] * 3, "num_attention_heads": [1] * 3, "depths": [1] * 3, "key_dim": [8] * 3}
    saved = DeiTForImageClassificationWithTeacher(tiny.model("deit", seed=3).config)
    torch.nn.init.normal_(saved.deit.embeddings.distillation_token)
    saved.save_pretrained(tmp_path / "two")
    sources: dict[str, dict[str, Any]] = {
        "config": {"config": DEIT},
        "vit": {"config": {**DEIT, "model_type": "vit"}},
        "levit": {"config": {"model_type": "levit", "image_size": 32, **levit}},
        "model": {"model": inputs.model_folder(tmp_path / "one", "vit", seed=4)},
        "two": {"model": str(tmp_path / "two")},
        "layers": {"from_teacher": {"layers": 1}},
    }
    for name, source in sources.items():
        recipe = load_recipe(small_recipe(tmp_path, student=TOKEN | source))
        student = build_student(recipe, read_data(recipe.data, None).kind, seed=1)
        assert summary(recipe, "student").endswith(", with a distillation token")
        expected = LevitForImageClassificationWithTeacher if name == "levit" else DeiTForImageClassificationWithTeacher
        assert type(student) is expected, name
        assert student.config.num_labels == 3
        if name in ("vit", "model", "layers"):
            assert torch.equal(student.cls_classifier.weight, student.distillation_classifier.weight)
            assert torch.equal(student.deit.embeddings.cls_token, student.deit.embeddings.distillation_token)
        if name == "two":
            for ours, theirs in zip(student.parameters(), saved.parameters(), strict=True):
                assert torch.equal(ours, theirs)


def test_the_doctor_knows_it(tmp_path: Path) -> None:
    recipe = load_recipe(small_recipe(tmp_path, student={"config": DEIT, "distillation_token": True}))
    found = {check.name: check for check in diagnose(recipe, Reporter(silent=True)).checks}
    assert "with a distillation token" in found["student"].finding
    assert found["one batch"].state != "bad", found


@pytest.mark.parametrize(
    ("student", "objective", "message"),
    [
        ({"config": {"model_type": "resnet"}}, {}, r"student\.config is a resnet; expected one of vit, deit, levit"),
        ({"config": DEIT}, {"alpha": 1.0}, r"labels, and these count for nothing .* alpha below 1"),
        ({"config": DEIT}, {"alpha": None, "terms": [{"logits": {}}]}, r"these count for nothing"),
        ({"model": "a", "config": None, "peft": {"target_modules": ["q_proj"]}}, {}, r"set one of them to null"),
    ],
    ids=["resnet", "alpha", "terms", "peft"],
)
def test_what_cannot_learn_is_refused(
    student: dict[str, Any], objective: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = small_recipe(tmp_path, student={**student, "distillation_token": True}, objective=objective)
    with pytest.raises(RecipeError, match=rf"student\.distillation_token: .*{message}"):
        load_recipe(file)


def test_another_model_from_a_folder_is_refused(tmp_path: Path) -> None:
    folder = inputs.model_folder(tmp_path / "resnet", "resnet")
    recipe = load_recipe(small_recipe(tmp_path, student=TOKEN | {"model": folder}))
    with pytest.raises(RecipeError, match=r"student\.distillation_token: A ResNet.* expected a ViT or a DeiT"):
        build_student(recipe, read_data(recipe.data, None).kind, seed=1)
