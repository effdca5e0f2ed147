"""A teacher as it is to run, where the model that was given runs otherwise: a copy beside it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from hfdistill.errors import HfDistillError

AS_LOADED = "auto"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def as_asked(model: nn.Module, dtype: str | None, attention: str | None) -> nn.Module:
    """A model that computes in this dtype and with this implementation of attention; itself where it does already.

    A copy shares with the model all tensors that need no other dtype. What is not saved with a model (the frequencies
    of rotary embeddings) keeps its own, as `from_pretrained(dtype=...)` does it.
    Errors: HfDistillError for a model that is quantised or offloaded, and for an implementation that it lacks.
    """
    wanted = None if dtype is None or dtype == AS_LOADED else DTYPES[dtype]
    if wanted == dtype_of(model):
        wanted = None
    inner = transformers_model(model)
    if attention is not None and inner is None:
        raise HfDistillError(
            f"teacher_attn_implementation={attention!r} came for a {type(model).__name__}, which is no Transformers "
            "model; leave it out."
        )
    if inner is not None and inner.config._attn_implementation == attention:
        attention = None
    if wanted is None and attention is None:
        return model
    if is_offloaded(model) or (inner is not None and vars(inner).get("is_quantized", False)):
        raise HfDistillError(
            f"The teacher ({type(model).__name__}) is quantised or offloaded and computes otherwise than "
            f"teacher_dtype={dtype!r}, teacher_attn_implementation={attention!r} say; expected a model that was loaded "
            "so: give its name, or from_pretrained(..., dtype=..., attn_implementation=...)."
        )
    made = copied(model, wanted)
    own = transformers_model(made)
    if attention is not None and own is not None:
        try:
            own.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise HfDistillError(
                f"teacher_attn_implementation={attention!r}: a {type(own).__name__} cannot be run with it. {reason}"
            ) from error
    return made


def copied(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy of a model's modules over the same tensors, or over copies in `dtype` of those that are saved with it."""
    saved = set(model.state_dict(keep_vars=True)) if dtype is not None else set()
    shared: dict[int, object] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        if id(tensor) in shared and shared[id(tensor)] is not tensor:
            continue
        cast = dtype is not None and name in saved and tensor.is_floating_point()
        shared[id(tensor)] = _cast(tensor, dtype) if cast and dtype is not None else tensor
    return copy.deepcopy(model, shared)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    other = tensor.detach().to(dtype)
    return nn.Parameter(other, requires_grad=False) if isinstance(tensor, nn.Parameter) else other


def transformers_model(model: nn.Module) -> PreTrainedModel | None:
    """The Transformers model that a module is or holds, the outermost."""
    return next((each for each in model.modules() if isinstance(each, PreTrainedModel)), None)


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """What a model computes in, by its first parameter of floating point."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), None)


def is_offloaded(model: nn.Module) -> bool:
    """Whether Accelerate's hooks bring a model's parameters to where they are needed (`device_map`)."""
    return any("_hf_hook" in vars(module) for module in model.modules())
