"""A student in pieces (FSDP2, DeepSpeed): the numbers of one process, projectors whole beside it and never in it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hfdistill.cache.manifest import weight_hash
from tests.features.runs import models, trained
from tests.features.sharded_runs import left_by, objective, plain
from tests.trainer.trajectory import assert_same

ROOT = Path(__file__).parents[2]
WITHOUT_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="no DeepSpeed here")
STRATEGIES = ["fsdp", pytest.param("zero2", marks=WITHOUT_DEEPSPEED), pytest.param("zero3", marks=WITHOUT_DEEPSPEED)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """The same trainings in one process, each global batch in one piece."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {name: trained("bert", folder, terms()) for name, terms in (("features", objective), ("plain", plain))}
    return {name: left_by(*run) for name, run in runs.items()}


@pytest.fixture(scope="module", params=STRATEGIES)
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes left; one launch for everything, since starting costs most."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    if request.param != "fsdp":
        environment["DS_ACCELERATOR"] = "cpu"
    arguments = ["-m", "tests.features.sharded_runs", request.param, str(folder)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("run", ["features", "plain", "named"])
def test_pieces_train_as_one_process(run: str, launched: Path, alone: dict[str, dict[str, torch.Tensor]]) -> None:
    """Parameters, projectors, gradient norm, parts, temperature and an evaluation; models in memory and by name."""
    both = load_file(launched / f"{run}.safetensors")
    assert both.pop("processes") == 2
    assert both.pop("sharded")
    assert_same(alone["plain" if run == "plain" else "features"], both)


def test_a_checkpoint_holds_whole_projectors_beside_the_student(launched: Path) -> None:
    left = load_file(launched / "features.safetensors")
    checkpoint = launched / "features" / "checkpoint-3"
    saved = load_file(checkpoint / "distillation" / "projectors.safetensors")
    assert len(saved) == len([name for name in left if name.startswith("projector")]) > 0
    for name, tensor in saved.items():
        assert torch.equal(tensor, left[f"projector {name}"]), name
    assert not any("distillation" in name for name in load_file(checkpoint / "model.safetensors"))


def test_a_resumed_training_goes_on_exactly(launched: Path) -> None:
    """To the last bit, also where each process has saved its own pieces."""
    resumed = sorted(launched.glob("*-resumed.safetensors"))
    assert resumed
    for file in resumed:
        run = file.stem.removesuffix("-resumed")
        whole, again = load_file(launched / f"{run}.safetensors"), load_file(file)
        beside = load_file(launched / run / "checkpoint-2" / "distillation" / "projectors.safetensors")
        assert any(not torch.equal(tensor, again[f"projector {name}"]) for name, tensor in beside.items())
        for name, value in again.items():
            assert torch.equal(value, whole[name]), name


def test_the_exported_student_is_whole_and_alone(launched: Path) -> None:
    left = load_file(launched / "features.safetensors")
    assert not (launched / "export" / "distillation").exists()
    student, info = AutoModelForSequenceClassification.from_pretrained(launched / "export", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert student.config.architectures == ["BertForSequenceClassification"]
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, left[f"parameter {name}"]), name


def test_what_needs_whole_parameters_is_refused(launched: Path) -> None:
    said = json.loads((launched / "said.json").read_text(encoding="utf-8"))
    assert "EmaTeacher averages whole weights" in said["average"]
    assert "weight='auto' measures whole gradients" in said["auto"]
    assert "A Peer came with FSDP, DeepSpeed" in said["peer"]
    if "version 1" in said:
        assert "'version': 2" in said["version 1"]
        assert said["placed"].startswith("cpu")


def test_a_teacher_in_pieces_teaches_as_a_whole_one(launched: Path, alone: dict[str, dict[str, torch.Tensor]]) -> None:
    """Loaded in the pieces of ZeRO-3 by its name, or cut by FSDP2 beside any student of DeepSpeed."""
    if launched.name.startswith("fsdp"):
        pytest.skip("in tests/teachers")
    for run, expected in (("sharded", "features"), ("cut", "plain")):
        both = load_file(launched / f"{run}.safetensors")
        del both["processes"], both["sharded"]
        assert_same(alone[expected], both)
    said = json.loads((launched / "said.json").read_text(encoding="utf-8"))
    engine = launched.name.startswith("zero3")
    assert said["sharded"] == ("DeepSpeedEngine" if engine else "FSDPBertForSequenceClassification")
    assert said["cut"] == "FSDPBertForSequenceClassification"
    assert said["sharded hash"] == said["cut hash"] == weight_hash(models("bert")[1]), "a cache knows it again"
    assert said["pieces"] == "not refused", "a teacher that its user has loaded after the arguments"
    assert ("teacher_dtype came for a teacher (Bert" in said["dtype"]) == engine
