"""The doctor finds, before a long run, what would spoil it, and says what to change."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from transformers import AutoModelForImageClassification

from hfdistill import cli
from hfdistill.doctor import BAD, GOOD, NOTE, Diagnosis, _balance, diagnose
from hfdistill.recipe import load_recipe
from hfdistill.stages import Reporter
from tests.cli.small_run import small_recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(cli, "_set_environment", lambda debug: None)


def diagnosis(file: Path, **changes: str) -> Diagnosis:
    return diagnose(load_recipe(file, changes), Reporter(silent=True))


def states(found: Diagnosis) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


def finding(found: Diagnosis, name: str) -> str:
    return next(check.finding for check in found.checks if check.name == name)


def test_a_teacher_that_will_be_trained_is_healthy(tmp_path: Path) -> None:
    found = diagnosis(small_recipe(tmp_path), **{"teacher.finetune": "{}"})
    assert found.healthy
    assert states(found)["student"] == GOOD and states(found)["teacher"] == NOTE
    batch = finding(found, "one batch")
    assert "task" in batch and "kd" in batch and "gradient norm" in batch
    assert "pixel_values" in finding(found, "inputs")


def test_a_teacher_that_knows_nothing_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(small_recipe(tmp_path))]) == cli.FAILED
    said = capsys.readouterr().out
    assert "knows nothing of these data" in " ".join(said.replace("│", " ").split())


def test_what_is_missing_ends_the_checks_that_need_it(tmp_path: Path) -> None:
    found = diagnosis(small_recipe(tmp_path), **{"data.label_column": "lable"})
    assert states(found) == {"data": BAD} and "image, label" in finding(found, "data")


def test_other_classes_are_found(tmp_path: Path) -> None:
    file = small_recipe(tmp_path)
    teacher = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    teacher.config.id2label = {0: "cat", 1: "dog", 2: "cow"}
    teacher.config.label2id = {"cat": 0, "dog": 1, "cow": 2}
    teacher.save_pretrained(tmp_path / "vit")
    found = diagnosis(file)
    assert states(found)["classes"] == BAD and "share no class by name" in finding(found, "classes")


def test_uneven_and_dead_terms_are_told() -> None:
    assert _balance({"task": 1.0, "kd": 500.0}, "")[0] == NOTE
    assert "lower the weight of kd" in _balance({"task": 1.0, "kd": 500.0}, "")[1]
    assert _balance({"task": 1.0, "kd": 0.0}, "")[0] == BAD
    assert _balance({"task": 1.0, "kd": float("nan")}, "")[0] == BAD
    assert _balance({"task": 1.0, "kd": 2.0}, "")[0] == GOOD
