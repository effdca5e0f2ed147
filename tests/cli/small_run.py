"""A run that takes seconds: a saved tiny ViT teaches a tiny ResNet, on pictures in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.recipes import inputs

STUDENT = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}


def small_recipe(folder: Path, **sections: dict[str, Any]) -> Path:
    """A recipe file with its teacher and data beside it; `sections` are merged over its own."""
    data = {
        "train": inputs.pictures(60),
        "validation": inputs.pictures(12, seed=1),
        "test": inputs.pictures(15, seed=2),
    }
    whole: dict[str, dict[str, Any]] = {
        "teacher": {"model": inputs.model_folder(folder / "vit", "vit")},
        "student": {"config": STUDENT},
        "data": {"dataset": inputs.data_folder(folder / "data", data), "validation_split": "validation"},
        "objective": {"alpha": 0.5},
        "training": {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01, "use_cpu": True},
    }
    for name, changes in sections.items():
        whole[name] = whole[name] | changes
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file
