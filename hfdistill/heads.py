"""Heads: the last layer of a language model, found and understood well enough to be computed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import PreTrainedModel

from hfdistill.contract import bare
from hfdistill.losses.fused_linear import Head
from hfdistill.shards import gathered
from hfdistill.sight import unwrapped
from hfdistill.tasks import Task, Tokens
from hfdistill.tasks.layouts import output_field

PROBE = 8
"""How many tokens a head is tried on."""
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-8}
ROUGH = 3e-2
"""How near logits have to be to those computed from hidden states, in shares of the largest; for 16 bits."""
OFFSET = "final_logits_bias"
"""A buffer that BART and its kin add to their logits."""

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)

Sample = Callable[[nn.Module], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class ModelHead:
    """The head of a model, and what is done to its product: an `offset` is added, then `scale`, then `softcap`."""

    model: nn.Module
    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    offset: torch.Tensor | None = None

    @property
    def classes(self) -> int:
        """How many logits a row has."""
        return int(_plain(self.module).out_features)

    def now(self) -> Head:
        """What the fused loss has to know, with the weights as they are now: whole, while the forward runs."""
        base = _plain(self.module)
        bias: torch.Tensor | None = base.bias
        if self.offset is not None:
            bias = self.offset[0] if bias is None else bias + self.offset[0]
        return Head(base.weight, bias, self.scale, self.softcap, _adapters(self.module))

    @contextmanager
    def replaced(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Within the block the head is this function of the hidden states; its result has no classes."""
        # Not by a hook: hooks of others on the head, which gather its weights, still run.
        self.module.forward = forward
        if self.offset is not None:
            self.model._buffers[OFFSET] = self.offset[:, :0]
        try:
            yield
        finally:
            del self.module.forward
            if self.offset is not None:
                self.model._buffers[OFFSET] = self.offset


class KnownHeads:
    """The heads of the models of a training, each tried once: later a student may be in pieces.

    `sample` gives the inputs of a few examples for a model that does not read words alone.
    """

    def __init__(self, sample: Sample | None = None) -> None:
        self._known: list[tuple[nn.Module, ModelHead | None]] = []
        self._sample = sample

    def of(self, model: nn.Module, task: Task) -> ModelHead | None:
        """The head of a model, or None where it is not understood."""
        for known, head in self._known:
            if known is model:
                return head
        self._known.append((model, head_of(model, task, self._sample)))
        return self._known[-1][1]


def head_of(model: nn.Module, task: Task, sample: Sample | None = None) -> ModelHead | None:
    """The head of a language model, if its logits are a product with it that is understood; found by a trial.

    The model runs on a few tokens: with its head, and with a head that gives nothing, which not every model bears.
    One that does not run on words alone (it hears, it sees) runs on what `sample` gives for it.
    """
    inner = bare(unwrapped(model))
    if not isinstance(inner, PreTrainedModel) or not isinstance(task.layout, Tokens):
        return None
    module = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
    if module is None or not _is_plain(module) or "forward" in vars(module):
        return None
    training = inner.training
    nn.Module.eval(inner)
    trials: list[Callable[[], Mapping[str, Any]]] = (
        [lambda: _probe(inner, task)] if inner.main_input_name == "input_ids" else []
    )
    if sample is not None:
        trials.append(lambda: sample(model))
    try:
        for inputs in trials:
            try:
                return _tried(model, inner, module, inputs())
            except FAILURES:
                continue  # a model that does not run on words alone, or not without logits
    finally:
        inner.train(training)
    return None


@torch.no_grad()
def _tried(model: nn.Module, inner: PreTrainedModel, module: nn.Module, inputs: Mapping[str, Any]) -> ModelHead | None:
    """The head, where the logits of these inputs are understood and may be missing."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    # An engine of DeepSpeed gathers what runs; before there is one, all has to be whole, and stay so.
    wrapped = unwrapped(model) is not model
    run = model if wrapped else inner
    with nullcontext() if wrapped else gathered(inner):
        try:
            logits = output_field(run(**inputs), "logits")
        finally:
            handle.remove()
        (hidden,) = seen
        with gathered(module) if wrapped else nullcontext():
            found = _understood(ModelHead(inner, module, offset=inner._buffers.get(OFFSET)), hidden, logits)
        if found is None:
            return None
        with found.replaced(lambda states: states.new_zeros(*states.shape[:-1], 0)):
            empty = output_field(run(**inputs), "logits")
    return found if empty.shape == (*logits.shape[:-1], 0) else None


def _probe(model: PreTrainedModel, task: Task) -> dict[str, torch.Tensor]:
    """A few tokens of no meaning."""
    size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    device = next(model.parameters()).device
    ids = torch.arange(1, PROBE + 1, device=device)[None] % size
    decoder = isinstance(task.layout, Tokens) and task.layout.decoder
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if decoder else {})


def _understood(head: ModelHead, hidden: torch.Tensor, logits: torch.Tensor) -> ModelHead | None:
    """The head with the scale and the softcap that lead from its product to the logits."""
    if hidden.shape[:-1] != logits.shape[:-1] or logits.shape[-1] != head.classes:
        return None
    config = head.model.config.get_text_config(decoder=True).to_dict()  # type: ignore[union-attr, operator]
    base = _plain(head.module)
    product: torch.Tensor = base(hidden)
    for inputs, weight in _adapters(head.module):
        product = product + inputs(hidden) @ weight.T
    product, logits = product.float(), logits.float()
    if head.offset is not None:
        product = product + head.offset.float()
    near = CLOSE.get(hidden.dtype, ROUGH) * float(logits.abs().max())
    for scale in _scales(config):
        for softcap in (None, config.get("final_logit_softcapping")):
            made = product * scale
            if softcap is not None:
                made = softcap * torch.tanh(made / softcap)
            if float((made - logits).abs().max()) <= near:
                return replace(head, scale=scale, softcap=softcap)
    return None


def _scales(config: Mapping[str, Any]) -> list[float]:
    """What configs are known to multiply logits by, or to divide them by (Cohere, Granite, Falcon-H1)."""
    factors = [config.get(name) for name in ("logit_scale", "lm_head_multiplier")]
    divisors = [config.get(name) for name in ("logits_scaling",)]
    found = [1.0, *(float(each) for each in factors if each), *(1 / float(each) for each in divisors if each)]
    return list(dict.fromkeys(found))


def _is_plain(module: nn.Module) -> bool:
    """Whether a head is a linear map, or one with LoRA beside it."""
    if type(module) is nn.Linear:
        return True
    if not isinstance(module, LoraLinear) or type(module.get_base_layer()) is not nn.Linear:
        return False
    changed = module.merged or any(module.use_dora.get(name, False) for name in module.active_adapters)
    return not changed and not module.fan_in_fan_out


def _plain(module: nn.Module) -> nn.Linear:
    inner = module.get_base_layer() if isinstance(module, LoraLinear) else module
    assert isinstance(inner, nn.Linear), "heads are linear maps"
    return inner


def _adapters(module: nn.Module) -> tuple[tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], ...]:
    """The products beside that of the head's weight, as LoRA adds them."""
    if not isinstance(module, LoraLinear) or module.disable_adapters:
        return ()
    return tuple(_adapter(module, name) for name in module.active_adapters if name in module.lora_A)


def _adapter(module: LoraLinear, name: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    down, up, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    assert isinstance(down, nn.Linear), "LoRA's two maps are linear"
    assert isinstance(up, nn.Linear), "LoRA's two maps are linear"
    scaling, dtype = module.scaling[name], down.weight.dtype

    def inputs(hidden: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = down(dropout(hidden.to(dtype))) * scaling
        return made

    return inputs, up.weight
