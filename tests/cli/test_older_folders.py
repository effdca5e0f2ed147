"""Folders that an earlier version has written: keys that came later and are not used make no other run of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfdistill.cli import main
from tests.cli.small_run import small_recipe

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def older(values: dict[str, Any]) -> dict[str, Any]:
    """As they were before the keys that are off today."""
    nested = {key: older(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in nested.items() if value is not None and value is not False}


def test_a_key_that_is_not_used_does_not_outgrow_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(small_recipe(tmp_path)), tmp_path / "out"
    assert main(["run", file, f"--output={out}"]) == 0
    for stage in out.rglob("stage.json"):
        content = json.loads(stage.read_text(encoding="utf-8"))
        content["determined_by"] = older(content["determined_by"])
        stage.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["run", file, f"--output={out}"]) == 0
    assert "Finished before: teacher, control (seed 42), student (seed 42)" in " ".join(capsys.readouterr().out.split())
    assert main(["run", file, f"--output={out}", "--objective.mixup=0.8"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "objective.mixup was not set and is 0.8" in said
    assert "student (seed 42)" in said
    assert "control" not in said
