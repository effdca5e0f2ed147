"""Sizes and speeds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hfdistill.errors import HfDistillError
from hfdistill.measure import parameter_count, saved_bytes, speeds


class Sleeper(nn.Module):
    """Takes a time that depends on the rows alone, and remembers how it was called."""

    def __init__(self, name: str, milliseconds: float, calls: list[tuple[str, int]]) -> None:
        super().__init__()
        self.name, self.milliseconds, self.calls = name, milliseconds, calls
        self.layer = nn.Linear(3, 2)
        self.tied = nn.Linear(3, 2)
        self.tied.weight = self.layer.weight

    def forward(self, pixel_values: Tensor, scale: float) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        assert scale == 0.5
        assert pixel_values[:, 0].tolist() == [row % 2 for row in range(len(pixel_values))]
        self.calls.append((self.name, len(pixel_values)))
        time.sleep(self.milliseconds * len(pixel_values) / 1000)
        return pixel_values


def test_speeds() -> None:
    calls: list[tuple[str, int]] = []
    models = {"teacher": Sleeper("teacher", 2.0, calls), "student": Sleeper("student", 0.5, calls)}
    batch: dict[str, Any] = {"pixel_values": torch.arange(2.0).expand(3, 2).T, "scale": 0.5}
    measured = speeds(models, {"teacher": batch, "student": batch}, batch_size=8, repetitions=4, warmup=1)
    # Four repetitions after one to warm up, the models taking turns, two rows repeated to eight.
    assert calls == [("teacher", 1), ("teacher", 8), ("student", 1), ("student", 8)] * 5
    assert measured["repetitions"] == 4
    assert models["student"].training
    assert (measured["batch_size"], measured["threads"], measured["device"]) == (8, torch.get_num_threads(), "cpu")
    median, low, high = measured["models"]["teacher"]["latency_ms"]
    assert 2.0 <= low <= median <= high
    assert 0 < measured["models"]["teacher"]["throughput"] <= 500
    assert "torch" in measured["machine"]["versions"]


def test_speeds_needs_inputs_for_each_model() -> None:
    with pytest.raises(HfDistillError, match="no inputs for 'student'"):
        speeds({"student": nn.Linear(1, 1)}, {"teacher": {}})
    with pytest.raises(HfDistillError, match="without a tensor"):
        speeds({"student": nn.Linear(1, 1)}, {"student": {"scale": 1}})


def test_sizes(tmp_path: Path) -> None:
    assert parameter_count(Sleeper("", 0, [])) == 6 + 2 + 2
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "predictions.safetensors").write_bytes(b"not weights")
    (tmp_path / "optimizer.pt").write_bytes(b"not weights")
    assert saved_bytes(tmp_path) == 5
    with pytest.raises(HfDistillError, match="no weights"):
        saved_bytes(tmp_path / "nothing")
