"""A teacher of which each process holds a piece teaches what a whole one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.features.runs import trained
from tests.features.sharded_runs import left_by
from tests.teachers.sharded_runs import RUNS
from tests.teachers.test_forward import live
from tests.trainer.trajectory import assert_same

ROOT = Path(__file__).parents[2]


def test_one_process_holds_the_whole_teacher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objective = RUNS["plain"][0]
    _, whole = trained("bert", tmp_path, objective())
    trainer, asked = trained("bert", tmp_path, objective(), teacher_sharded=True)
    assert not live(trainer).portions.halves, "processes that share a model begin no forward anew by themselves"
    assert_same(whole, asked)
    assert any("there is one process" in record.message for record in caplog.records)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes left; one launch for everything, since starting costs most."""
    folder = tmp_path_factory.mktemp("launched")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    arguments = ["-m", "tests.teachers.sharded_runs", str(folder)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_pieces_teach_as_the_whole(run: str, launched: Path, tmp_path: Path) -> None:
    """By DistributedDataParallel, also a few rows at a time, and beside a student in pieces by FSDP2."""
    both = load_file(launched / f"{run}.safetensors")
    assert both.pop("processes") == 2
    assert_same(left_by(*trained("bert", tmp_path, RUNS[run][0]())), both)
    said = json.loads((launched / "said.json").read_text(encoding="utf-8"))[run]
    assert said["parts"] and said["unchanged"] and not said["learns"]
    assert said["student"] == ("FSDP" if run == "both" else "MULTI_CPU")
    assert said["share"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_layouts_and_pieces_do_not_go_together(launched: Path) -> None:
    said = json.loads((launched / "said.json").read_text(encoding="utf-8"))
    assert "channels_last=True came with FSDP, DeepSpeed or teacher_sharded" in said["channels_last"]
