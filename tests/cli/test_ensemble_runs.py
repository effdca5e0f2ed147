"""Several teachers in a recipe: a whole run from local files through the command line, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hfdistill import DistillationTrainer, EnsembleTeacher, HfDistillError, cli
from hfdistill.data import LabelSpace
from hfdistill.doctor import diagnose
from hfdistill.recipe import RecipeError, TeacherSection, load_recipe
from hfdistill.run_card import run_card_facts
from hfdistill.run_folder import read_run
from hfdistill.stages import Reporter, run_recipe, training
from hfdistill.stages.several import SeveralTeachers
from tests import tiny
from tests.cli.small_run import small_recipe
from tests.recipes import inputs

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def second_teacher(folder: Path) -> str:
    """A ViT with the processor of the first and its classes in another order."""
    model = tiny.model("vit", seed=5)
    model.config.id2label = dict(enumerate(reversed(inputs.CLASSES)))
    model.config.label2id = {name: place for place, name in model.config.id2label.items()}
    model.save_pretrained(folder)
    inputs.image_processor().save_pretrained(folder)
    return str(folder)


def recipe_file(folder: Path, **sections: dict[str, Any]) -> Path:
    members = [{"model": str(folder / "vit")}, {"model": second_teacher(folder / "other")}]
    teacher = {"model": None, "ensemble": members, "weights": [3, 1]} | sections.pop("teacher", {})
    return small_recipe(folder, teacher=teacher, objective={"alpha": 0.5, "temperature": 3.0}, **sections)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stage.json").read_text())  # type: ignore[no-any-return]


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taught_by = []

    def recorded(*args: Any, **kwargs: Any) -> DistillationTrainer:
        taught_by.append(kwargs["teacher_model"])
        return DistillationTrainer(*args, **kwargs)

    monkeypatch.setattr(training, "DistillationTrainer", recorded)
    file = str(recipe_file(tmp_path, teacher={"confidence": True}))
    (tmp_path / "vit" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert cli.main(["run", file]) == cli.OK
    control, student = taught_by
    assert control is None and isinstance(student, EnsembleTeacher) and student.confidence
    output = tmp_path / "runs" / "small"
    teacher = facts(output / "teacher")
    assert teacher["model"].endswith("other (mean of probabilities, 3:1, weighed by confidence)")
    assert not (output / "teacher" / "config.json").exists()
    # The teacher's numbers are those of the mixture, in the order of the data's classes.
    pictures = datasets.load_dataset(str(tmp_path / "data"))["test"]["image"][:]
    p = torch.zeros(())
    for name, weight in (("vit", 0.75), ("other", 0.25)):
        model = AutoModelForImageClassification.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            seen = AutoImageProcessor.from_pretrained(tmp_path / name)(pictures, return_tensors="pt")
            columns = [model.config.label2id[label] for label in inputs.CLASSES]
            p = p + weight * model(**seen).logits.softmax(-1)[:, columns]
    given = load_file(output / "teacher" / "predictions.safetensors")["logits"]
    torch.testing.assert_close(given.softmax(-1), p, rtol=1e-4, atol=1e-5)
    assert teacher["parameters"] == 2 * model.num_parameters()
    folder = output / "seed-42" / "student"
    assert not [key for key in load_file(folder / "model.safetensors") if "members" in key]
    assert {"teacher", "student"} <= json.loads((output / "speed.json").read_text())["models"].keys()
    assert "mean of probabilities" in (output / "report.md").read_text()
    run = read_run(output)
    told = run_card_facts(run, run.seeds[42]["student"], "somebody/small")
    assert told.teacher == teacher["model"]
    assert told.teacher_licence == f"{tmp_path / 'vit'}: mit; {tmp_path / 'other'}: unknown"
    capsys.readouterr()
    assert cli.main(["run", file]) == cli.OK
    assert "Finished before: teacher, control (seed 42), student (seed 42)." in capsys.readouterr().out
    assert cli.main(["run", file, "--teacher.weights=[1,1]"]) == cli.USAGE
    assert "teacher.weights" in capsys.readouterr().err


def test_the_doctor_knows_it(tmp_path: Path) -> None:
    found = {check.name: check for check in diagnose(load_recipe(recipe_file(tmp_path)), Reporter(silent=True)).checks}
    assert "(mean of probabilities, 3:1)" in found["teacher"].finding
    assert "another order" in found["classes"].finding
    assert found["one batch"].state != "bad", found
    assert "the teacher pixel_values" in found["inputs"].finding and "labels" not in found["inputs"].finding


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"teacher": {"model": "vit"}},
            "expected exactly one of model, config, ensemble, ema, peer; model and ensemble",
        ),
        ({"teacher": {"ensemble": []}}, "No members came"),
        ({"teacher": {"ensemble": [{"modle": "a"}]}}, r"teacher\.ensemble\.0\.modle: .* did you mean 'model'"),
        ({"teacher": {"ensemble": [{"revision": "a"}]}}, r"teacher\.ensemble\.0\.model: this key is missing"),
        ({"teacher": {"ensemble": [{"model": "a", "finetune": {}}]}}, r"ensemble\.0\.finetune: .* a run of its own"),
        ({"teacher": {"weights": [1]}}, r"weights=\[1.0\] came for 2 members"),
        ({"teacher": {"average": "logit"}}, "did you mean 'logits'"),
        ({"teacher": {"finetune": {}}}, r"teacher\.finetune: the teachers of teacher\.ensemble are used as they are"),
        ({"teacher": {"zero_shot": {}}}, r"teacher\.zero_shot: the teachers of teacher\.ensemble"),
        ({"teacher": {"model": "vit", "ensemble": None}}, r"teacher\.weights: it is for several teachers"),
        ({"student": {"config": None, "from_teacher": {"layers": 1}}}, "does not say of which to take layers"),
    ],
)
def test_keys_that_do_not_fit(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(tmp_path, **sections))


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    file = recipe_file(tmp_path)
    settings = json.loads((tmp_path / "other" / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.1, 0.1, 0.1]
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(RecipeError, match=r"teacher\.ensemble\.1: .*other reads other inputs than .* \(image_mean"):
        run_recipe(load_recipe(file), tmp_path / "out", Reporter(silent=True))
    stranger = tiny.model("vit", seed=5)
    stranger.config.id2label = dict(enumerate(["class_0", "cat", "dog"]))
    stranger.save_pretrained(tmp_path / "other")
    with pytest.raises(HfDistillError, match=r"teacher\.ensemble\.1 \(.*other\): .* only 1 of 3 classes"):
        recipe = load_recipe(file, {"teacher.processor": str(tmp_path / "vit")})
        run_recipe(recipe, tmp_path / "out", Reporter(silent=True))


def test_what_has_no_mean_is_refused() -> None:
    section = TeacherSection(ensemble=[{"model": "a"}, {"model": "b"}])
    with pytest.raises(RecipeError, match=r"teacher\.ensemble: .* the data are for object_detection"):
        SeveralTeachers([tiny.model("bert")], section, LabelSpace("object_detection", ("cat",)))
    with pytest.raises(HfDistillError, match="the labels of regression are not one class a row"):
        several = TeacherSection(ensemble=[{"model": "a"}, {"model": "b"}], confidence=True)
        models = [tiny.model("bert", num_labels=1, problem_type="regression", seed=seed) for seed in (1, 2)]
        SeveralTeachers(models, several, LabelSpace("regression", ()))
