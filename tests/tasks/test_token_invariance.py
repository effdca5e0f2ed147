"""Token by token the update is the same however a global batch is cut, padded or packed."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DataCollatorWithFlattening

from hfdistill import DistillationTrainer
from tests.tasks import token_models
from tests.tasks.token_models import padded
from tests.tasks.trajectory import HEADS, Collator, trained
from tests.trainer.trajectory import assert_same

ROOT = Path(__file__).parents[2]
Seen = dict[str, torch.Tensor]


@functools.cache
def whole(name: str, folder: Path) -> Seen:
    """A training with the global batch of eight in one piece, padded on the right."""
    return trained(name, folder)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes saw; one launch for all heads, since starting costs most."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(Path(__file__).with_name("trajectory.py"))
    done = subprocess.run([*command, script, str(folder)], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", HEADS)
def test_accumulation_changes_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    """Not even one example at a time, which needs no padding at all."""
    _, cut = trained(name, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(whole(name, folder), cut)
    _, alone = trained(name, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert_same(whole(name, folder), alone)


@pytest.mark.parametrize("name", HEADS)
def test_two_processes_change_nothing(name: str, folder: Path, two_processes: Path) -> None:
    cut = load_file(two_processes / f"{name}.safetensors")
    assert cut.pop("processes") == 2
    assert_same(whole(name, folder), cut)


FURTHER = functools.partial(padded, further=5)
LEFT = functools.partial(padded, left=True)


def with_positions(rows: list[token_models.Batch]) -> token_models.Batch:
    """Padded on the left, for absolute positions: 0 for the first token that is none of padding."""
    batch = LEFT(rows)
    return batch | {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize(
    ("name", "collator"),
    [
        *((name, FURTHER) for name in HEADS),
        ("llama", LEFT),
        ("gpt2", FURTHER),
        ("gpt2", with_positions),
        ("llama", DataCollatorWithFlattening()),
        ("gpt2", DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)),
    ],
)
def test_padding_and_packing_change_nothing(name: str, collator: Collator, folder: Path, tmp_path: Path) -> None:
    _, other = trained(name, tmp_path, collator)
    assert_same(whole(name, folder), other)


def test_a_resumed_language_model_is_the_uninterrupted_one(tmp_path: Path) -> None:
    arguments = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
    }
    _, uninterrupted = trained("llama", tmp_path / "whole", **arguments)
    cut, _ = trained("llama", tmp_path / "cut", **{**arguments, "max_steps": 2})
    anew = DistillationTrainer(
        token_models.model("llama", seed=5),
        dataclasses.replace(cut.args, max_steps=4),
        teacher_model=token_models.model("llama", layers=2, seed=2),
        train_dataset=cut.train_dataset,
        data_collator=padded,
    )
    anew.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    for name, value in anew.model.named_parameters():
        torch.testing.assert_close(value.detach(), uninterrupted[f"parameter {name}"], rtol=0, atol=0)
