"""Teachers that learn beside the student in a recipe: whole runs through the command line, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hfdistill import DistillationTrainer, EmaTeacher, Peer, cli
from hfdistill.doctor import diagnose
from hfdistill.recipe import RecipeError, load_recipe, recipe_of
from hfdistill.run_card import run_card_facts
from hfdistill.run_folder import read_run
from hfdistill.stages import Reporter, run_recipe, training
from tests.cli.small_run import STUDENT, small_recipe

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

WIDER = {**STUDENT, "hidden_sizes": [16]}


def recipe_file(folder: Path, teacher: dict[str, Any], **sections: Any) -> Path:
    file = small_recipe(folder, **sections)
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "teacher": {"processor": str(folder / "vit"), **teacher}}))
    return file


@pytest.fixture
def taught_by(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each training of a run gets as its teacher."""
    found: list[Any] = []

    def recorded(*args: Any, **kwargs: Any) -> DistillationTrainer:
        found.append(kwargs["teacher_model"])
        return DistillationTrainer(*args, **kwargs)

    monkeypatch.setattr(training, "DistillationTrainer", recorded)
    return found


def test_the_average_of_the_student_teaches_it(
    tmp_path: Path, taught_by: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(recipe_file(tmp_path, {"ema": 0.9}, data={"augment": ["horizontal_flip"], "teacher_sees": "unchanged"}))
    assert cli.main(["run", file]) == cli.OK
    assert taught_by == [None, EmaTeacher(0.9)]
    output = tmp_path / "runs" / "small"
    assert not (output / "teacher").exists()
    facts = json.loads((output / "seed-42" / "student" / "stage.json").read_text())
    assert any(row.get("loss/kd", 0) > 0 for row in facts["log_history"])
    # Nothing is said of a teacher's numbers, since there is none to examine.
    report = json.loads((output / "report.json").read_text())
    assert report["models"].keys() == {"control", "student"}
    assert report["teacher_lead"] is None and report["models"]["student"]["fidelity"] is None
    assert json.loads((output / "speed.json").read_text())["models"].keys() == {"student"}
    run = read_run(output)
    told = run_card_facts(run, run.seeds[42]["student"], "somebody/small")
    assert told.teacher == "the moving average of the student's own weights (decay 0.9)"
    assert told.teacher_licence is not None and "learnt in this run" in told.teacher_licence
    capsys.readouterr()
    assert cli.main(["run", file]) == cli.OK
    assert "Finished before: control (seed 42), student (seed 42)." in capsys.readouterr().out
    assert cli.main(["run", file, "--teacher.ema=0.5"]) == cli.USAGE
    assert "teacher.ema was 0.9 and is 0.5" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("peer", ["student", {"config": WIDER}])
def test_two_students_teach_each_other(peer: Any, tmp_path: Path, taught_by: list[Any]) -> None:
    file = recipe_file(tmp_path, {"peer": peer})
    output = tmp_path / "out"
    run_recipe(load_recipe(file), output, Reporter(silent=True))
    control, other = taught_by
    assert control is None and isinstance(other, Peer) and isinstance(other.model, torch.nn.Module)
    folder = output / "seed-42" / "student"
    facts = json.loads((folder / "stage.json").read_text())
    assert any("peer/loss/kd" in row for row in facts["log_history"])
    weights, of_peer = load_file(folder / "model.safetensors"), other.model.state_dict()
    assert not [key for key in weights if "peer" in key]
    if peer == "student":
        name = "resnet.embedder.embedder.convolution.weight"
        assert weights[name].shape == of_peer[name].shape and not torch.equal(weights[name], of_peer[name].cpu())
    else:
        assert other.model.config.hidden_sizes == [16]
    assert json.loads((output / "report.json").read_text())["models"].keys() == {"control", "student"}


def test_the_doctor_knows_them(tmp_path: Path) -> None:
    for teacher, words in (({"ema": 0.99}, "moving average"), ({"peer": {"config": WIDER}}, "(resnet from a config)")):
        found = diagnose(load_recipe(recipe_file(tmp_path, teacher)), Reporter(silent=True))
        checks = {check.name: check for check in found.checks}
        assert words in checks["teacher"].finding
        assert found.healthy and "inputs" in checks, checks


def test_a_sweep_needs_no_teacher(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, {"peer": "student"}, training={"max_steps": 2})
    assert cli.main(["sweep", str(file), "--temperature", "1,2", f"--output={tmp_path / 'o'}"]) == cli.OK
    assert "temperature" in (tmp_path / "o" / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"ema": 0.9, "model": "a"}}, "one of model, config, ensemble, ema, peer; model and ema came"),
        ({"teacher": {"ema": 1.0}}, r"teacher\.ema: EmaTeacher\(decay=1.0\) came; expected 0 to below 1"),
        ({"teacher": {"ema": 0.9, "finetune": {}}}, r"teacher\.finetune: .*teacher\.ema begins as a student does"),
        ({"teacher": {"ema": 0.9, "weights": [1.0]}}, r"teacher\.weights: it is for several teachers"),
        ({"teacher": {"peer": "pupil"}}, r"teacher\.peer: got 'pupil', expected the keys of a model"),
        ({"teacher": {"peer": {"confg": {}}}}, r"teacher\.peer\.confg: .* did you mean 'config'"),
        (
            {"teacher": {"peer": {"model": "a", "finetune": {}}}},
            r"teacher\.peer\.finetune: .* whole model",
        ),
        ({"teacher": {"peer": "student"}, "objective": {"alpha": 1.0}}, "without labels two students could only agree"),
        (
            {"teacher": {"peer": "student"}, "objective": {"terms": [{"task": {}}, {"hidden_states": {}}]}},
            r"objective\.terms: hidden came beside teacher\.peer",
        ),
        ({"teacher": {"peer": "student"}, "student": {"model": "a", "peft": {"r": 2}}}, r"student\.peft: two students"),
        ({"teacher": {"ema": 0.9}, "student": {"from_teacher": {"layers": 1}}}, r"student\.from_teacher: .* no layers"),
        ({"teacher": {"ema": 0.9}, "assistants": ["student"]}, "assistants: they stand between a trained teacher"),
    ],
)
def test_what_cannot_learn_together_is_refused(sections: dict[str, Any], message: str) -> None:
    content = {"student": {"config": STUDENT}, "data": {"dataset": "digits"}, **sections}
    with pytest.raises(RecipeError, match=message):
        recipe_of(content)


def test_a_peer_has_to_read_what_the_student_reads(tmp_path: Path) -> None:
    settings = json.loads((Path(small_recipe(tmp_path).parent) / "vit" / "preprocessor_config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.1, 0.1]}))
    file = recipe_file(tmp_path, {"peer": {"config": STUDENT, "processor": str(other)}})
    with pytest.raises(RecipeError, match=r"teacher\.peer: it reads other inputs than the student \(image_mean"):
        run_recipe(load_recipe(file), tmp_path / "out", Reporter(silent=True))
