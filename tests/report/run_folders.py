"""Run folders as `hfdistill run` leaves them, with predictions made up to order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

EXAMPLES = 1000


def classes(right: int, *, sure: float = 2.0) -> np.ndarray:
    """Logits of three classes for labels 0, 1, 2, 0, ...: the first `right` examples are right, the others one off."""
    labels = label_column()
    decided = np.where(np.arange(EXAMPLES) < right, labels, (labels + 1) % 3)
    return (np.eye(3)[decided] * sure).astype(np.float32)


def label_column() -> np.ndarray:
    return np.arange(EXAMPLES) % 3


def write_stage(folder: Path, logits: np.ndarray, labels: np.ndarray | None = None, **facts: Any) -> None:
    """A finished stage."""
    folder.mkdir(parents=True)
    labels = label_column() if labels is None else labels
    save_file({"logits": logits.astype(np.float32), "labels": labels}, folder / "predictions.safetensors")
    stage = {
        "stage": folder.name,
        "seed": 1,
        "model": f"some/{folder.name}",
        "revision": None,
        "problem_type": "single_label_classification",
        "seconds": 12.0,
        "steps": 40,
        "examples_seen": 1280,
        "parameters": 400_000 if folder.name == "teacher" else 100_000,
        "bytes": 1_600_000 if folder.name == "teacher" else 400_000,
        "metrics": {},
        "log_history": [
            {"step": step, "loss": 2 / step, "loss/task": 1 / step, "eval_accuracy": 1 - 1 / step} for step in (10, 20)
        ],
        "settings": {"learning_rate": 0.001},
        "fingerprint": "0",
    }
    (folder / "stage.json").write_text(json.dumps(stage | facts))


def write_run(
    folder: Path,
    seeds: Mapping[int, Mapping[str, int]],
    *,
    teacher: int | None = 950,
    recipe: str = "student: {model: some/student}\n",
) -> Path:
    """A run whose stages get so many of the thousand test examples right."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe)
    if teacher is not None:
        write_stage(folder / "teacher", classes(teacher), seed=None, revision="abc123")
    for seed, stages in seeds.items():
        for name, right in stages.items():
            write_stage(folder / f"seed-{seed}" / name, classes(right), seed=seed)
    speed = {
        "threads": 1,
        "device": "cpu",
        "batch_size": 32,
        "models": {
            "teacher": {"latency_ms": [4.0, 3.9, 4.4], "throughput": 800.0},
            "student": {"latency_ms": [0.5, 0.4, 0.6], "throughput": 8000.0},
        },
    }
    (folder / "speed.json").write_text(json.dumps(speed))
    return folder
