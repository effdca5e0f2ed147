"""Parameters of which each process holds a piece (FSDP2, DeepSpeed's ZeRO-3), and how to have them whole.

What gathers and what cuts is done by all processes together: each of them has to call it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations import deepspeed as integration


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all that the other processes hold of it."""
    if not isinstance(tensor, DTensor):
        return tensor
    # Where FSDP keeps its pieces in the host's memory, the processes still talk to each other on the device.
    there = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(there, DTensor), "a piece stays one on another device"
    return there.full_tensor()


@contextmanager
def gathered(module: nn.Module, *, changes: bool = False) -> Iterator[None]:
    """Have parameters that ZeRO-3 has partitioned whole within the block; with `changes` the first process's stay."""
    with _gathering(partitioned(module), modifier_rank=0 if changes else None):
        yield


@contextmanager
def _gathering(pieces: Sequence[torch.Tensor], modifier_rank: int | None = None) -> Iterator[None]:
    if not pieces:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(pieces, modifier_rank=modifier_rank):
        yield


def partitioned(module: nn.Module) -> Sequence[nn.Parameter]:
    """The parameters of a module that ZeRO-3 has partitioned; a forward outside of its engine fails on them."""
    if not integration.is_deepspeed_zero3_enabled():  # type: ignore[no-untyped-call]
        return []
    from deepspeed.runtime.zero.partition_parameters import is_zero_param

    return [parameter for parameter in module.parameters() if is_zero_param(parameter)]


def whole_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's parameters and buffers by name, in the order of names, one after the other whole."""
    pieces = {id(parameter) for parameter in partitioned(module)}
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if isinstance(tensor, torch.Tensor):
            with _gathering([tensor] if id(tensor) in pieces else []):
                yield name, whole(tensor.detach())


def whole_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's state, each tensor whole and in the host's memory."""
    with gathered(module):
        return {name: whole(tensor.detach()).to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def load_whole(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Read whole tensors into a module, strictly. Errors: RuntimeError, as `load_state_dict` raises it."""
    with gathered(module, changes=True):
        own = module.state_dict()
        module.load_state_dict({name: _cut(tensor, own.get(name)) for name, tensor in state.items()}, strict=True)


def _cut(tensor: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    mesh = like.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements).to(like.device)


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Models that are loaded within the block are whole on each process, where ZeRO-3 would partition them."""
    # There is a way to set the configuration and to take it away, and none to ask for it.
    kept = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = kept


@torch.no_grad()
def same_everywhere(module: nn.Module) -> None:
    """Give each process the first one's parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        torch.distributed.broadcast(tensor.data, src=0)


def in_pieces(model: nn.Module, device: torch.device) -> nn.Module:
    """Cut a frozen model among all processes, in place; each layer is whole on the device only while it runs.

    All processes have to run it equally often. Layers are what the outermost lists of modules hold.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for unit in (*_layers(model), model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    return model


def in_engine(model: nn.Module, dtype: torch.dtype | None, settings: Mapping[str, Any]) -> nn.Module:
    """Have DeepSpeed gather each layer of a frozen model that it has partitioned while the layer runs.

    `settings` are those of ZeRO-3 as the student's configuration has them; what they leave open is left to DeepSpeed.
    All processes have to run it equally often.
    """
    import deepspeed

    given = {key: value for key, value in settings.items() if value != "auto" and key != "offload_optimizer"}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {**given, "stage": 3},
        "bf16": {"enabled": dtype is torch.bfloat16},
        "fp16": {"enabled": dtype is torch.float16},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine  # type: ignore[no-any-return]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, (nn.ModuleList, nn.Sequential)) else _layers(child)
