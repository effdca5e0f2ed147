"""What a model costs: parameters, bytes, latency and throughput on this machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfdistill._version import __version__
from hfdistill.errors import HfDistillError

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
VERSIONED = ("torch", "transformers", "accelerate", "datasets", "huggingface_hub")


def parameter_count(model: nn.Module) -> int:
    """All parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def saved_bytes(folder: Path) -> int:
    """Bytes of the weight files in a `save_pretrained` folder."""
    files = [
        file for pattern in WEIGHT_FILES for file in folder.glob(pattern) if file.name != "predictions.safetensors"
    ]
    if not files:
        raise HfDistillError(f"got no weights in {folder}, expected *.safetensors; save the model there first")
    return sum(file.stat().st_size for file in files)


def machine() -> dict[str, Any]:
    """Where numbers were made: platform, processors, threads, accelerator and versions."""
    versions = {"python": platform.python_version(), "hfdistill": __version__}
    for package in VERSIONED:
        versions[package] = metadata.version(package)
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


def speeds(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Mapping[str, Any]],
    *,
    batch_size: int = 32,
    repetitions: int = 30,
    warmup: int = 3,
    seconds: float = 20.0,
) -> dict[str, Any]:
    """Latency at batch 1 and throughput at `batch_size` of several models, as written to speed.json.

    Models take turns within each repetition, so that a busy machine slows all of them alike. `inputs` holds one batch
    of model inputs for each name; rows are repeated up to `batch_size`. After `seconds` no further repetition begins,
    but there are always three. Models are measured in eval mode without gradients, on the device they are on.
    """
    _check_inputs(models, inputs)
    devices = {name: _device(model) for name, model in models.items()}
    single = {name: _rows(inputs[name], 1, devices[name]) for name in models}
    batch = {name: _rows(inputs[name], batch_size, devices[name]) for name in models}
    training = {name: model.training for name, model in models.items()}
    latency: dict[str, list[float]] = {name: [] for name in models}
    duration: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    started = time.perf_counter()
    try:
        for repetition in range(-warmup, max(repetitions, 3)):
            if repetition >= 3 and time.perf_counter() - started > seconds:
                break
            for name, model in models.items():
                alone = _timed(model, single[name], devices[name])
                together = _timed(model, batch[name], devices[name])
                if repetition >= 0:
                    latency[name].append(1000 * alone)
                    duration[name].append(together)
    finally:
        for name, model in models.items():
            model.train(training[name])
    return {
        "threads": torch.get_num_threads(),
        "device": ", ".join(sorted({_device_name(device) for device in devices.values()})),
        "batch_size": batch_size,
        "repetitions": min(len(values) for values in latency.values()) if latency else 0,
        "machine": machine(),
        "models": {
            name: {
                "latency_ms": [float(value) for value in np.percentile(latency[name], [50, 10, 90])],
                "throughput": batch_size / float(np.median(duration[name])),
            }
            for name in models
        },
    }


def _check_inputs(models: Mapping[str, nn.Module], inputs: Mapping[str, Mapping[str, Any]]) -> None:
    for name in models:
        if name not in inputs:
            raise HfDistillError(f"got no inputs for {name!r}, expected a batch for each model; add inputs[{name!r}]")
        if not any(isinstance(value, Tensor) for value in inputs[name].values()):
            raise HfDistillError(f"got inputs without a tensor for {name!r}, expected model inputs; give a batch")


def _timed(model: nn.Module, batch: Mapping[str, Any], device: torch.device) -> float:
    """Seconds of one forward pass, the accelerator's work included."""
    with torch.no_grad():
        _synchronize(device)
        started = time.perf_counter()
        model(**batch)
        _synchronize(device)
        return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _rows(batch: Mapping[str, Any], count: int, device: torch.device) -> dict[str, Any]:
    """The first `count` rows of every tensor, beginning again from the first when there are fewer."""
    rows: dict[str, Any] = {}
    for key, value in batch.items():
        rows[key] = value[torch.arange(count) % len(value)].to(device) if isinstance(value, Tensor) else value
    return rows
