"""Where a model computes queries, keys and values: found by the names that Transformers gives these projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hfdistill.attention_calls import AttentionCall
from hfdistill.errors import HfDistillError
from hfdistill.features.layout import config_settings

Kind = Literal["query", "key", "value"]
KINDS: tuple[Kind, ...] = ("query", "key", "value")
APART: tuple[dict[Kind, str], ...] = (
    {"query": "query", "key": "key", "value": "value"},
    {"query": "q_proj", "key": "k_proj", "value": "v_proj"},
    {"query": "q_lin", "key": "k_lin", "value": "v_lin"},
    {"query": "q", "key": "k", "value": "v"},
    {"query": "query_proj", "key": "key_proj", "value": "value_proj"},
)
IN_THIRDS = ("c_attn", "Wqkv", "qkv")
"""Projections that give queries, keys and values side by side."""
BY_HEAD = ("query_key_value",)
"""Those that give them side by side for each head."""
CROSS = ("cross", "encoder_attn", "EncDecAttention", "encoder_attention")
PART_WORDS = {
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "text": ("text_model", "text_encoder"),
    "vision": ("vision_model", "vision_encoder"),
}
PAIRS_OF_PARTS = (("encoder", "decoder"), ("text", "vision"))


@dataclass(frozen=True)
class Projection:
    """The module that gives queries, keys or values of one layer, and which share of its output they are."""

    module: str
    kind: Kind
    form: Literal["whole", "third", "head"] = "whole"
    heads: int = 1

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Queries, keys or values `(examples, positions, width)` of all heads side by side."""
        place = KINDS.index(self.kind)
        if self.form == "third":
            return output.chunk(3, -1)[place]
        if self.form == "head":
            rows, positions, width = output.shape
            return output.reshape(rows, positions, self.heads, 3, width // (3 * self.heads))[:, :, :, place].flatten(2)
        return output


def projections(model: nn.Module, part: str | None) -> list[dict[Kind, Projection]]:
    """Queries, keys and values of each self-attention layer, in the order of the layers.

    Errors: HfDistillError for a model whose projections bear other names, or lie in parts of which none is named.
    """
    found: dict[str, dict[Kind, Projection]] = {}
    for name, _ in model.named_modules():
        parent, _, last = name.rpartition(".")
        if any(word in name for word in CROSS) or (part is not None and not _in_part(name, part)):
            continue
        for names in APART:
            for kind, word in names.items():
                if last == word:
                    found.setdefault(parent, {})[kind] = Projection(name, kind)
        if last in IN_THIRDS or last in BY_HEAD:
            form: Literal["third", "head"] = "third" if last in IN_THIRDS else "head"
            found[parent] = {kind: Projection(name, kind, form, _heads(model)) for kind in KINDS}
    layers = [each for each in found.values() if len(each) == len(KINDS)]
    if not layers:
        raise HfDistillError(
            f"No queries, keys and values were found in {type(model).__name__}{f' ({part})' if part else ''}: none of "
            "its modules bears one of their usual names. Take HiddenStates, or Module() with the name of a projection."
        )
    return layers


def self_attention(calls: Sequence[AttentionCall], part: str | None) -> list[AttentionCall]:
    """The calls of self-attention in a part of the model, one a layer, in order.

    Errors: HfDistillError where there are none, or where the model has parts and none is named.
    """
    found = [call for call in calls if not any(word in call.name for word in CROSS)]
    if part is not None:
        found = [call for call in found if _in_part(call.name, part)]
    for pair in PAIRS_OF_PARTS if part is None else ():
        if all(any(_in_part(call.name, each) for call in found) for each in pair):
            raise HfDistillError(
                f"The model has attention in {' and in '.join(map(repr, pair))}; expected part= to be one of them."
            )
    if not found:
        raise HfDistillError(
            f"No attention scores were seen{f' in the {part}' if part else ''}: the model's attention is "
            "code of its own, not called through Transformers' AttentionInterface, or there is none. Take "
            "'attention_map_kl', 'attention_relation' or HiddenStates."
        )
    return found


def _in_part(name: str, part: str) -> bool:
    if part not in PART_WORDS:
        raise HfDistillError(f"part={part!r}; expected one of {', '.join(map(repr, PART_WORDS))}.")
    return any(word in name.split(".") for word in PART_WORDS[part])


def _heads(model: nn.Module) -> int:
    settings = config_settings(model)
    return int(settings.get("num_attention_heads") or settings.get("n_head") or 1)
