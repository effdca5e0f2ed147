"""The update is the same however a global batch is cut: accumulation, processes, checkpointing."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfdistill import DistillationConfig
from tests.trainer.trajectory import PROBLEMS, assert_same, trained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """Every problem trained with the global batch of eight in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    return {problem: trained(*problem, folder)[1] for problem in PROBLEMS}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes saw; one launch for all problems, since starting costs most."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(Path(__file__).with_name("trajectory.py"))
    done = subprocess.run([*command, script, str(folder)], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("problem", PROBLEMS, ids="-".join)
def test_accumulation_changes_nothing(
    problem: tuple[str, str], whole: dict[tuple[str, str], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    _, cut = trained(*problem, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(whole[problem], cut)


@pytest.mark.parametrize("problem", PROBLEMS, ids="-".join)
def test_two_processes_change_nothing(
    problem: tuple[str, str], whole: dict[tuple[str, str], dict[str, torch.Tensor]], two_processes: Path
) -> None:
    cut = load_file(two_processes / f"{'-'.join(problem)}.safetensors")
    assert cut.pop("processes") == 2
    assert_same(whole[problem], cut)


@pytest.mark.parametrize("architecture", ["vit", "bert"])
def test_gradient_checkpointing_changes_nothing(
    architecture: str, whole: dict[tuple[str, str], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    problem = (architecture, "single_label_classification")
    names = {field.name for field in dataclasses.fields(DistillationConfig)}
    switch = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    _, checkpointed = trained(*problem, tmp_path, **{switch: True})
    assert_same(whole[problem], checkpointed)
