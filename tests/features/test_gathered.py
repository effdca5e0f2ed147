"""Terms on two processes: negatives of the whole global batch, and a discriminator that both train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfdistill import HfDistillError, Relations
from hfdistill.recipe.objective import terms_of
from tests.features.across import seen_with
from tests.trainer.trajectory import assert_same

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.features.across", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("gathered", "adversarial"):
        assert_same(seen_with(name, tmp_path / "one"), load_file(tmp_path / f"{name}.safetensors"))
    # Fewer negatives, and an easier choice, where each process keeps to its own.
    key = "step 1 loss/relations"
    assert load_file(tmp_path / "alone.safetensors")[key] < load_file(tmp_path / "gathered.safetensors")[key] - 0.1
    assert torch.equal(load_file(tmp_path / "others-0.safetensors")["others"], torch.full((3, 2), 2.0))
    assert torch.equal(load_file(tmp_path / "others-1.safetensors")["others"], torch.full((1, 2), 1.0))


def test_one_process_has_no_others(tmp_path: Path) -> None:
    assert_same(seen_with("alone", tmp_path), seen_with("gathered", tmp_path))


def test_other_relations_are_not_gathered() -> None:
    with pytest.raises(HfDistillError, match="came for relational_distance"):
        Relations(gathered=True)
    with pytest.raises(HfDistillError, match="pool='none'"):
        Relations("contrastive", pool="none", gathered=True)


def test_a_recipe_names_it() -> None:
    (term,) = terms_of([{"relations": {"loss": "contrastive", "gathered": True}}], "objective.terms")
    assert isinstance(term, Relations)
    assert term.gathered
