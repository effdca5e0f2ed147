"""The layout of pictures and convolutions in memory: channels last, as convolutions run fastest on CPUs and GPUs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hfdistill.errors import HfDistillError

logger = logging.getLogger(__name__)

PICTURES = "pixel_values"
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def lay_out(models: Mapping[str, nn.Module | None]) -> None:
    """Bring models with convolutions over pictures to channels last, in place; no value changes.

    `models` are named by their role. Errors: HfDistillError where neither a student nor its teacher has any.
    """
    there = {role: model for role, model in models.items() if model is not None}
    plain = {role: model for role, model in there.items() if not has_convolutions(model)}
    if len(plain) == len(there) > 1:
        names = " and ".join(type(model).__name__ for model in plain.values())
        raise HfDistillError(
            f"channels_last=True came, and {names} has no convolution over pictures; expected a student or a teacher "
            "such as a ResNet. Leave it out."
        )
    for role, model in there.items():
        if role in plain:
            logger.info("channels_last: the %s (%s) has no convolution and stays as it is.", role, type(model).__name__)
        laid_out(model)


def laid_out(model: nn.Module) -> nn.Module:
    """The same model in channels last, where it has convolutions."""
    if has_convolutions(model):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def has_convolutions(model: nn.Module) -> bool:
    """Whether a model has convolutions over pictures."""
    return any(isinstance(module, CONVOLUTIONS) for module in model.modules())


def pictures_laid_out(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its pictures, those of a teacher's own view too, in channels last."""
    return {key: _laid_out(value) if key.endswith(PICTURES) else value for key, value in batch.items()}


def _laid_out(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def contiguous(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as files hold them: the last axis next to each other."""
    return {name: tensor.contiguous() for name, tensor in state.items()}
