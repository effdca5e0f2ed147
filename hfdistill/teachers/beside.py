"""The file of a model that learns beside the student: whole weights in a checkpoint, read back strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from hfdistill._atomic import write_tensors


def write_model(file: Path, model: nn.Module, more: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a model's parameters and buffers, and `more` under names of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: each.detach().cpu().contiguous() for name, each in _tensors(model).items()}
    write_tensors(file, {**tensors, **(more or {})})


def read_model(file: Path, model: nn.Module, *more: str) -> dict[str, torch.Tensor] | None:
    """Fill a model from its file and return all that is in it; None where the file is missing or of another model."""
    saved: dict[str, torch.Tensor] = load_file(file) if file.is_file() else {}
    own = _tensors(model)
    if set(saved) != {*own, *more} or any(saved[name].shape != each.shape for name, each in own.items()):
        return None
    with torch.no_grad():
        for name, each in own.items():
            each.copy_(saved[name])
    return saved


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    # Parameters that are tied are one, so each is written once.
    return {**dict(model.named_parameters()), **{f"buffer {name}": each for name, each in model.named_buffers()}}
