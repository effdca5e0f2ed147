"""A recipe with assistants between teacher and student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfdistill.cli import main
from hfdistill.recipe import load_recipe, recipe_of
from hfdistill.recipe.values import RecipeError
from tests.cli.small_run import STUDENT, small_recipe

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

WIDER = {**STUDENT, "hidden_sizes": [16]}


def chain(folder: Path, assistants: list[Any]) -> Path:
    file = small_recipe(folder)
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "assistants": assistants}))
    return file


def facts(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    return content


def test_each_link_is_taught_by_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = chain(tmp_path, [{"config": WIDER}, "student"])
    out = tmp_path / "out"
    assert main(["run", str(file), f"--output={out}"]) == 0
    first, second = (out / f"assistant-{place}" / "seed-42" / "student" for place in (1, 2))
    assert facts(first)["parameters"] > facts(second)["parameters"]
    assert facts(out / "assistant-2" / "teacher")["model"] == str(first)
    assert facts(out / "teacher")["model"] == str(second)
    assert facts(out / "teacher")["metrics"] == facts(second)["metrics"]
    assert (out / "seed-42" / "control" / "stage.json").is_file()
    assert not (out / "assistant-1" / "seed-42" / "control").exists()
    assert load_recipe(str(out / "recipe.yaml")) == load_recipe(str(file))
    assert (out / "report.md").is_file()
    # Once more: nothing is left to do.
    before = (out / "seed-42" / "student" / "stage.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["run", str(file), f"--output={out}"]) == 0
    assert "Finished before: teacher, control (seed 42), student (seed 42)" in " ".join(capsys.readouterr().out.split())
    assert (out / "seed-42" / "student" / "stage.json").stat().st_mtime_ns == before


def test_another_assistant_outgrows_the_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["run", str(chain(tmp_path, ["student"])), f"--output={out}"]) == 0
    other = chain(tmp_path, [{"config": WIDER}])
    assert main(["run", str(other), f"--output={out}"]) != 0
    assert "holds a run with other values" in " ".join(capsys.readouterr().err.split())
    former = facts(out / "seed-42" / "student")["fingerprint"]
    assert main(["run", str(other), f"--output={out}", "--overwrite"]) == 0
    assert facts(out / "seed-42" / "student")["fingerprint"] != former


@pytest.mark.parametrize(
    ("assistants", "words"),
    [
        (["pupil"], "assistants.0: got 'pupil'"),
        ([{"confg": {}}], "assistants.0.confg: there is no such key; did you mean 'config'"),
        ([{"model": "a", "peft": {"r": 4}}], "assistants.0.peft: an assistant is a whole model"),
        ([{"from_teacher": {"layers": 1}}, {"from_teacher": {"layers": 1}}], "assistants.1.from_teacher"),
    ],
)
def test_what_cannot_be_an_assistant_is_refused(assistants: list[Any], words: str, tmp_path: Path) -> None:
    content = yaml.safe_load(small_recipe(tmp_path).read_text())
    with pytest.raises(RecipeError, match=words):
        recipe_of({**content, "assistants": assistants})


def test_a_student_of_the_teachers_layers_has_no_assistants(tmp_path: Path) -> None:
    content = yaml.safe_load(small_recipe(tmp_path).read_text())
    with pytest.raises(RecipeError, match="layers of an assistant"):
        recipe_of({**content, "student": {"from_teacher": {"layers": 1}}, "assistants": [{"config": WIDER}]})


def test_a_sweep_says_how_to_go_on_from_an_assistant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(chain(tmp_path, ["student"])), "--temperature", "1,2", f"--output={tmp_path / 'o'}"]) != 0
    assert "sweep with the last assistant" in " ".join(capsys.readouterr().err.split())
