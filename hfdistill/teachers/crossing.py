"""Between a batch and a teacher of another device or dtype: inputs on their way there, targets on theirs back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.distributed.tensor import DTensor

from hfdistill.sight import Seen
from hfdistill.teachers.portions import insides
from hfdistill.teachers.targets import Targets


def brought(inputs: Mapping[str, Any], model: nn.Module, offloaded: bool = False) -> Mapping[str, Any]:
    """The inputs on a model's device, and those of floating point in its dtype; the same object where they are so.

    Parameters that are in pieces or `offloaded` say nothing of where their model computes: the inputs stay.
    """
    sample = next((each for each in model.parameters() if each.is_floating_point()), None)
    if sample is None:
        return inputs
    stay = offloaded or isinstance(sample, DTensor)
    changed = {}
    for key, value in inputs.items():
        moved = value if stay or _is_at(value, sample.device) else send_to_device(value, sample.device)
        if isinstance(moved, torch.Tensor) and moved.is_floating_point() and moved.dtype != sample.dtype:
            moved = moved.to(sample.dtype)
        if moved is not value:
            changed[key] = moved
    return {**inputs, **changed} if changed else inputs


def brought_back(targets: Targets, inputs: Mapping[str, Any], device: torch.device) -> Targets:
    """The targets on the batch's device; `inputs` are the batch's own, as the terms read them."""
    seen = targets.seen
    if seen is not None:
        outputs, modules = send_to_device((insides(seen.outputs), seen.modules), device)
        seen = Seen(
            inputs, outputs, modules, calls=[replace(call, **_moved(vars(call), device)) for call in seen.calls]
        )
    fields = {name: value.to(device) for name, value in targets.fields.items()}
    return replace(targets, logits=targets.logits.to(device), fields=fields, seen=seen)


def _moved(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}


def _is_at(value: Any, device: torch.device) -> bool:
    return not isinstance(value, (torch.Tensor, list, tuple, Mapping)) or (
        isinstance(value, torch.Tensor) and value.device == device
    )
