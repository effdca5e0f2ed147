"""Terms on how tokens look at each other: attention maps and scores, and relations of queries, keys and values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hfdistill.attention_calls import AttentionCall, shared_pairs
from hfdistill.errors import HfDistillError
from hfdistill.features.attention_names import KINDS, Kind, Projection, projections, self_attention
from hfdistill.features.layers import LAST, Layers, checked_layers, layer_pairs
from hfdistill.features.layout import valid_positions
from hfdistill.features.terms import Binding, FeatureTerm, Look, Read, Source
from hfdistill.knowledge import Loss, StepContext, loss_name
from hfdistill.losses import attention_map_kl, attention_relation, attention_score_mse
from hfdistill.schedules import Weight
from hfdistill.sight import MAPS, Seen, Sight, unwrapped
from hfdistill.tasks.layouts import first_tensor

logger = logging.getLogger(__name__)


class Attentions(FeatureTerm):
    """How the teacher's tokens look at each other: relations of queries, keys and values, attention scores, or maps.

    With `attention_relation` (MiniLMv2) the queries, keys and values of a layer, or only some `kinds`, are taken where
    they are computed, so that fused attention (SDPA, flash) stays on; the term is a sum over the kinds. With
    `attention_score_mse` (TinyBERT) queries and keys are noted where the model hands them to its attention function, so
    that the scores are the model's own, rotary and relative positions and shared key heads included, whatever kernel
    goes on with them; pairs that one of the models may not see (padding, later tokens) are outside. With
    `attention_map_kl` (MiniLM), or a callable `(student, teacher, attention_mask=) -> (rows,)`, the maps themselves are
    compared, for which both models have to run eager attention (attn_implementation="eager"). `layers` and `part` are
    those of HiddenStates, where 1 is the first layer; rows are examples, with padding outside.
    Errors: HfDistillError for a model without attention, or whose projections are not found; for scores also where a
    model's attention is not called through Transformers' AttentionInterface (DeBERTa, BLOOM, MPNet).
    Source: Wang et al., arXiv 2012.15828 and 2002.10957; Jiao et al., arXiv 1909.10351.
    """

    def __init__(
        self,
        loss: Loss | str = attention_relation,
        *,
        layers: Layers = LAST,
        kinds: list[Kind] | None = None,
        weight: Weight | str = 1.0,
        name: str = "attentions",
        part: str | None = None,
        **options: Any,
    ) -> None:
        self.layers = checked_layers(layers)
        self.kinds = KINDS if kinds is None else tuple(kinds)
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise HfDistillError(f"kinds={kinds!r}; expected some of {', '.join(map(repr, KINDS))}.")
        super().__init__(
            loss,
            weight=weight,
            name=name,
            part=part,
            prefix="auto",
            region=None,
            projector=None,
            norm=False,
            **options,
        )

    def described(self) -> dict[str, Any]:
        """Which layers."""
        return {"layers": self.layers}

    @property
    def of_relations(self) -> bool:
        """Whether queries, keys and values are compared, and not the maps."""
        return self.loss is attention_relation

    @property
    def of_scores(self) -> bool:
        """Whether the scores are compared, and not the maps."""
        return self.loss is attention_score_mse

    @property
    def over_positions(self) -> bool:
        """An example is a row."""
        return False

    def _try_options(self) -> None:
        shape = (2, 4, 96) if self.of_relations else (2, 2, 4, 4)
        nothing = torch.full(shape, 0.25)
        heads = int(self.options.get("relation_heads", 48))
        if self.of_relations and heads > 0:
            nothing = torch.zeros(2, 4, heads)
        if self.loss in (attention_relation, attention_map_kl, attention_score_mse):
            try:
                self.loss(nothing, nothing, **self.options)
            except (TypeError, ValueError) as error:
                raise HfDistillError(f"{self!r} cannot be used: {error}") from error

    def look(self, student: nn.Module, teacher: nn.Module) -> Look:
        """Maps or scores of both models, or the projections of their layers."""
        if self.of_scores:
            return Look(Sight(scores=True), Sight(scores=True), self._scores)
        if not self.of_relations:
            for model in (student, teacher):
                run_eager(model)
            return Look(Sight(attentions=True), Sight(attentions=True), self._maps)
        both = [projections(model, self.part) for model in (student, teacher)]
        pairs = self._with_attention(layer_pairs(self.layers, len(both[0]) + 1, len(both[1]) + 1))
        sources = [
            Source(f"layer_{ours}_{kind}", _shown(both[0][ours - 1][kind]), _shown(both[1][theirs - 1][kind]))
            for ours, theirs in pairs
            for kind in self.kinds
        ]
        sights = [
            Sight(modules=tuple(both[side][pair[side] - 1][kind].module for pair in pairs for kind in self.kinds))
            for side in (0, 1)
        ]
        return Look(sights[0], sights[1], lambda ours, theirs: sources)

    def _maps(self, student: Seen, teacher: Seen) -> Sequence[Source]:
        counts = [len(seen.layers(MAPS, self.part)) + 1 for seen in (student, teacher)]

        def read(place: int) -> Read:
            return lambda seen: seen.layers(MAPS, self.part)[place - 1]

        pairs = self._with_attention(layer_pairs(self.layers, *counts))
        return [Source(f"layer_{ours}", read(ours), read(theirs)) for ours, theirs in pairs]

    def _scores(self, student: Seen, teacher: Seen) -> Sequence[Source]:
        counts = [len(self_attention(seen.calls, self.part)) + 1 for seen in (student, teacher)]

        def call(seen: Seen, place: int) -> AttentionCall:
            return self_attention(seen.calls, self.part)[place - 1]

        def source(ours: int, theirs: int) -> Source:
            return Source(
                f"layer_{ours}",
                lambda seen: call(seen, ours).scores(),
                lambda seen: call(seen, theirs).scores(),
                lambda student, teacher: shared_pairs(call(student, ours), call(teacher, theirs)),
            )

        pairs = self._with_attention(layer_pairs(self.layers, *counts))
        return [source(*pair) for pair in pairs]

    def _with_attention(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if any(0 in pair for pair in pairs):
            raise HfDistillError(
                f"{self!r}: layer 0 is the embeddings' output; expected layers with attention, from 1 on."
            )
        return pairs

    def bound(self, look: Look, student: Seen, teacher: Seen, widths: tuple[frozenset[int], frozenset[int]]) -> Binding:
        """The pairs; the loss is tried on what both models have shown."""
        binding = Binding(tuple(look.sources(student, teacher)), widths)
        for source in binding.sources:
            try:
                self._compared_pair(source, student, teacher, student.batch)
            except ValueError as error:
                raise HfDistillError(f"{self!r}: {error}") from error
        return binding

    def values(self, context: StepContext) -> torch.Tensor:
        """Values whose sum is that over the examples: a value is itself a sum over the layers and kinds."""
        step = context.features
        if step is None:
            raise HfDistillError(f"{self!r} needs a teacher; pass teacher_model.")
        sources = step.bindings[self.name].sources
        each = [self._compared_pair(source, step.student, step.teacher, context.inputs).sum() for source in sources]
        return torch.stack(each).sum()

    def _compared_pair(self, source: Source, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> torch.Tensor:
        ours, theirs = source.student(student), source.teacher(teacher)
        mask = valid_positions(inputs, self.part)
        if mask is not None and mask.shape != (ours.shape[0], ours.shape[-1 if ours.dim() == 4 else 1]):
            mask = None  # a mask over samples of sound, not over the positions that a model makes of them
        pairs = None if source.pairs is None else source.pairs(student, teacher)
        if pairs is not None:
            mask = pairs if mask is None else pairs & (mask[:, :, None] & mask[:, None, :])
        values = self.loss(ours, theirs, attention_mask=mask, **self.options)
        examples = len(first_tensor(inputs))
        if values.dim() != 1 or len(values) % examples:
            raise HfDistillError(
                f"The loss {loss_name(self.loss)} gave a tensor of shape {tuple(values.shape)} for {examples} "
                "examples; expected one value each."
            )
        # Windows of a picture (Swin) are several rows of an example.
        return values.reshape(examples, -1).mean(1)


def _shown(projection: Projection) -> Read:
    return lambda seen: projection(seen.output_of(projection.module))


def run_eager(model: nn.Module) -> None:
    """Have a model compute its attention maps, which fused kernels never hold.

    Errors: HfDistillError for a model that cannot.
    """
    inner = unwrapped(model)
    if not isinstance(inner, PreTrainedModel) or inner.config._attn_implementation == "eager":
        return
    logger.info("%s runs eager attention from here on, whose maps a term compares.", type(inner).__name__)
    try:
        inner.set_attn_implementation("eager")
    except (ValueError, AttributeError) as error:
        raise HfDistillError(
            f"{type(inner).__name__} cannot give its attention maps ({error}); expected a model with eager attention. "
            "Take Attentions('attention_relation'), which needs none."
        ) from error
