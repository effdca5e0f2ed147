"""What a forward shows beside its logits: hidden states, attention maps and scores, outputs of named modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hfdistill.attention_calls import AttentionCall, calls_noted
from hfdistill.errors import HfDistillError, nearest

PARTS = ("encoder", "decoder", "text", "vision")
"""Parts of a model with layers of their own."""
# Where an output offers a stage's states as a map too, the map needs no guess at its grid.
AS_MAPS = "reshaped_hidden_states"
HIDDEN, MAPS = "hidden_states", "attentions"


@dataclass(frozen=True)
class Sight:
    """What the terms ask to see of one model."""

    hidden_states: bool = False
    attentions: bool = False
    modules: tuple[str, ...] = ()
    scores: bool = False

    def __or__(self, other: Sight) -> Sight:
        modules = tuple(dict.fromkeys([*self.modules, *other.modules]))
        hidden_states, attentions = self.hidden_states or other.hidden_states, self.attentions or other.attentions
        return Sight(hidden_states, attentions, modules, self.scores or other.scores)

    def __bool__(self) -> bool:
        return self.hidden_states or self.attentions or self.scores or bool(self.modules)

    @property
    def arguments(self) -> dict[str, bool]:
        """What is given to the model's forward beside its inputs."""
        wanted = {"output_hidden_states": self.hidden_states, "output_attentions": self.attentions}
        return {name: True for name, value in wanted.items() if value}


NOTHING = Sight()


@dataclass
class Seen:
    """What one forward has shown; filled while it runs.

    `beside` is what the teacher has shown of the same batch, and `labels` are the batch's: of a decoder whose inputs
    are made from them they tell what is padding.
    """

    inputs: Mapping[str, Any]
    outputs: Any = None
    modules: dict[str, torch.Tensor] = field(default_factory=dict)
    projected: dict[str, torch.Tensor] = field(default_factory=dict)
    calls: list[AttentionCall] = field(default_factory=list)
    beside: Seen | None = None
    labels: torch.Tensor | None = None

    @property
    def batch(self) -> Mapping[str, Any]:
        """What is known of the places of the examples: the model's inputs, and the labels."""
        return self.inputs if self.labels is None else {**self.inputs, "labels": self.labels}

    def told(self, batch: Mapping[str, Any], beside: Seen | None) -> None:
        """Take in what the teacher has shown of the batch, and what of it neither model has read."""
        labels = batch.get("labels")
        self.beside, self.labels = beside, labels if isinstance(labels, torch.Tensor) else None
        if beside is not None:
            beside.labels = self.labels

    def layers(self, what: str, part: str | None) -> tuple[torch.Tensor, ...]:
        """Hidden states (the embeddings' output first) or attention maps of a part's layers.

        Errors: HfDistillError where the part has none.
        """
        found = parts_of(self.outputs, what)
        if part is None and len(found) == 1:
            (part,) = found
        if part is None or part not in found:
            names = ", ".join(repr(name) for name in found) or "none"
            raise HfDistillError(
                f"The {what} of {'the whole model' if part is None else repr(part)} were asked for; the model gives "
                f"those of: {names}. Expected part= to be one of them; where there are none, take Module('its.name')."
            )
        return found[part]

    def output_of(self, name: str) -> torch.Tensor:
        """The output of a named module."""
        if name not in self.modules:
            raise HfDistillError(
                f"The module {name!r} gave nothing in this forward: it was not called, or its output holds no tensor. "
                "Expected a module that every batch passes through."
            )
        return self.modules[name]


def parts_of(outputs: Any, what: str) -> dict[str, tuple[torch.Tensor, ...]]:
    """What a model's outputs hold of its layers, by part; that of a model of one part is ''."""
    if not isinstance(outputs, Mapping):
        return {}
    found: dict[str, tuple[torch.Tensor, ...]] = {}
    whole = (outputs.get(AS_MAPS) if what == HIDDEN else None) or outputs.get(what)
    if whole is not None and any(each is not None for each in whole):
        found[""] = _states(whole)
    for part in PARTS:
        model = outputs.get(f"{part}_model_output")
        inner = parts_of(model, what).get("") if isinstance(model, Mapping) else outputs.get(f"{part}_{what}")
        if inner is not None and any(each is not None for each in inner):
            found[part] = _states(inner)
    return found


def _states(layers: Iterable[Any]) -> tuple[torch.Tensor, ...]:
    """One tensor a layer: PEGASUS-X gives the states of tokens and then those of global tokens."""
    return tuple(each[0] if isinstance(each, tuple) else each for each in layers)


def check_modules(model: nn.Module, names: tuple[str, ...], role: str) -> None:
    """Refuse the name of a module that a model does not have, naming the nearest."""
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise HfDistillError(f"The {role} ({type(model).__name__}) has no module {name!r}{nearest(name, known)}")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a distributed or compiled wrapper."""
    wrappers = ("DistributedDataParallel", "DataParallel", "OptimizedModule", "DeepSpeedEngine")
    # FSDP2 does not wrap, it puts its name before that of the class.
    while type(model).__name__.removeprefix("FSDP") in wrappers:
        model = model.module if "module" in model._modules else model._orig_mod  # type: ignore[assignment]
    return model


@contextmanager
def watched(model: nn.Module, sight: Sight, seen: Seen) -> Iterator[None]:
    """Note what a sight asks for of a bare model's insides while the block runs."""

    def note(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tensor = first_tensor_of(output)
            if tensor is not None:
                seen.modules[name] = tensor

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in sight.modules]
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        if sight.scores:
            stack.enter_context(calls_noted(model, seen.calls))
        yield


def first_tensor_of(output: Any) -> torch.Tensor | None:
    """A module's output, or the first tensor of several."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((value for value in values if isinstance(value, torch.Tensor)), None)
