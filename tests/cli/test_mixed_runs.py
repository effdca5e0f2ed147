"""Recipes whose pictures are mixed: whole runs through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfdistill import cli
from tests.cli.small_run import small_recipe

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_function_matching_is_examined_by_its_labels(tmp_path: Path) -> None:
    """Training has no labels then; the exams have, and the control learns from them."""
    assert (
        cli.main(["run", str(small_recipe(tmp_path)), "--method", "function_matching", f"--output={tmp_path}/out"])
        == cli.OK
    )
    for stage in ("control", "student"):
        facts = json.loads((tmp_path / "out" / "seed-42" / stage / "stage.json").read_text())
        assert 0 <= facts["metrics"]["accuracy"] <= 1
        assert any(f"loss/{'task' if stage == 'control' else 'kd'}" in row for row in facts["log_history"])
