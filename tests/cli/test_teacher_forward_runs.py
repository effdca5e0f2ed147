"""A recipe says how its teacher is run; what is learnt outgrows a folder with that only where it is another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfdistill.cli import main
from tests.cli.small_run import small_recipe

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).split())


def test_a_teacher_in_bfloat16_a_few_rows_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(small_recipe(tmp_path, teacher={"dtype": "bfloat16", "batch_size": 3})), tmp_path / "out"
    assert main(["run", file, f"--output={out}"]) == 0
    facts = json.loads((out / "seed-42" / "student" / "stage.json").read_text(encoding="utf-8"))
    assert (facts["settings"]["teacher_dtype"], facts["settings"]["teacher_batch_size"]) == ("bfloat16", 3)
    said(capsys)
    assert main(["run", file, f"--output={out}", "--teacher.batch_size=5", "--teacher.device=cpu"]) == 0
    assert "Finished before: teacher, control (seed 42), student (seed 42)" in said(capsys)
    assert main(["run", file, f"--output={out}", "--teacher.dtype=float32"]) != 0
    assert "teacher.dtype was 'bfloat16' and is 'float32'. That concerns student (seed 42)." in said(capsys)


def test_a_doctor_finds_such_a_teacher_frozen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(small_recipe(tmp_path, training={"channels_last": True}))
    main(["doctor", file, "--teacher.dtype=bfloat16", "--teacher.attn_implementation=eager"])
    assert "the teacher is frozen" in said(capsys)
