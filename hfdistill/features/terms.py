"""Terms on what the models see inside: hidden states of layers, or the outputs of named modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.features.layers import LAST, Layers, checked_layers, layer_pairs
from hfdistill.features.layout import Features, features_of, on_one_grid, valid_positions
from hfdistill.features.projectors import ModulePlan, Plan, Projectors
from hfdistill.features.regions import Region
from hfdistill.knowledge import Comparison, Loss, StepContext, loss_name
from hfdistill.losses import LOSSES, attention_transfer, channel_wise_kl, hint
from hfdistill.schedules import Weight
from hfdistill.sight import HIDDEN, Seen, Sight, check_modules
from hfdistill.tasks import Task
from hfdistill.tasks.layouts import first_tensor

Read = Callable[[Seen], torch.Tensor]
Prefix = Literal["auto", "keep", "drop", "only"]
OF_MAPS = (attention_transfer, channel_wise_kl)
"""Losses on how an example's positions relate; the others look at each position by itself."""


@dataclass(frozen=True)
class Source:
    """One pair of tensors to compare: how each is read, and the name of the student's projector, if there is one.

    `pairs` says which pairs of positions count, where that is asked.
    """

    name: str
    student: Read
    teacher: Read
    pairs: Callable[[Seen, Seen], torch.Tensor | None] | None = None


@dataclass(frozen=True)
class Look:
    """What the two models have to show for a term, and which pairs of tensors that gives."""

    student: Sight
    teacher: Sight
    sources: Callable[[Seen, Seen], Sequence[Source]]


@dataclass(frozen=True)
class Binding:
    """What a term has found out about two models; `others` learn beside its projectors."""

    sources: tuple[Source, ...]
    widths: tuple[frozenset[int], frozenset[int]]
    plans: Mapping[str, Plan] = field(default_factory=dict)
    others: Mapping[str, ModulePlan] = field(default_factory=dict)


class FeatureTerm(Comparison):
    """What terms over features share: rows are valid positions, or examples where positions are compared as a whole.

    `projector` is "linear" (a trained linear map, 1x1 on maps) or None; it is made only where the loss needs equal
    widths and they differ. `norm` puts layer normalisation behind it. `prefix` says what becomes of class, distillation
    and register tokens: "keep", "drop", "only", or "auto", which keeps them where both models have the same positions
    and drops them elsewhere. `region` restricts the term to a Window of the picture, a
    Span of tokens or the Labelled tokens.
    """

    def __init__(
        self,
        loss: Loss | str,
        *,
        weight: Weight | str,
        name: str,
        part: str | None,
        prefix: Prefix,
        region: Region | None,
        projector: Literal["linear"] | None,
        norm: bool,
        **options: Any,
    ) -> None:
        super().__init__(loss, weight=weight, name=name, **options)
        if prefix not in get_args(Prefix):
            raise HfDistillError(f"prefix={prefix!r}; expected one of {', '.join(map(repr, get_args(Prefix)))}.")
        if projector not in ("linear", None):
            raise HfDistillError(f"projector={projector!r}; expected 'linear' or None.")
        if self.needs_labels:
            raise HfDistillError(f"{loss_name(self.loss)} needs labels, and features have none; take hint.")
        self.part = part
        self.prefix = prefix
        self.region = region
        self.projector = projector
        self.norm = norm

    def __repr__(self) -> str:
        return super().__repr__()[:-1] + "".join(f", {key}={value!r}" for key, value in self.described().items()) + ")"

    def described(self) -> dict[str, Any]:
        """What is compared, for people."""
        raise NotImplementedError

    def look(self, student: nn.Module, teacher: nn.Module) -> Look:
        """What both bare models have to show; raises HfDistillError for modules that one of them lacks."""
        raise NotImplementedError

    def check(self, num_classes: int | None, task: Task) -> None:
        """Nothing: what a term can compare shows in the first forward (`bound`)."""

    @property
    def over_positions(self) -> bool:
        """Whether each position is a row."""
        return self.loss not in OF_MAPS

    def bound(self, look: Look, student: Seen, teacher: Seen, widths: tuple[frozenset[int], frozenset[int]]) -> Binding:
        """What follows from one forward of each model: the pairs, and the projectors between different widths.

        Errors: HfDistillError for layers that do not exist, and for features that cannot be compared.
        """
        binding = Binding(tuple(look.sources(student, teacher)), widths)
        plans: dict[str, Plan] = {}
        for source in binding.sources:
            ours, theirs = self._features(source, binding, student, teacher, {})
            if ours.values.shape[-1] == theirs.values.shape[-1] or not self._needs_equal_widths():
                continue
            if self.projector is None:
                raise HfDistillError(
                    f"{self!r}: the student's {source.name} is {ours.values.shape[-1]} wide and the teacher's "
                    f"{theirs.values.shape[-1]}; expected equal widths, or projector='linear', or a loss that takes "
                    "different ones, such as attention_transfer."
                )
            width = int(ours.values.shape[-1])
            first = source.student(student).dim() >= 4 and source.student(student).shape[1] == width
            plans[source.name] = Plan(width, int(theirs.values.shape[-1]), channels_first=first, norm=self.norm)
        return Binding(binding.sources, widths, plans)

    def _needs_equal_widths(self) -> bool:
        if self.loss not in LOSSES.values():
            return True
        shape = self._trial_shape()
        try:
            self.loss(torch.zeros(*shape, 2), torch.zeros(*shape, 3), **self.options)
        except ValueError:
            return True
        return False

    def _trial_shape(self) -> tuple[int, ...]:
        return (4,) if self.over_positions else (4, 2)

    def project(self, binding: Binding, seen: Seen, projectors: Projectors) -> None:
        """Run the term's projectors on what the student has shown."""
        for name in binding.plans:
            source = next(source for source in binding.sources if source.name == name)
            key = self.key(name)
            if key not in seen.projected:
                seen.projected[key] = projectors(key, source.student(seen))

    def key(self, source: str) -> str:
        """The name of a projector among those of all terms, without the dots that no submodule's name may hold."""
        return f"{self.name}__{source}".replace(".", "_")

    def _features(
        self, source: Source, binding: Binding, student: Seen, teacher: Seen, projected: Mapping[str, torch.Tensor]
    ) -> tuple[Features, Features]:
        tensor = projected.get(self.key(source.name))
        if tensor is None:
            ours = features_of(source.student(student), student.batch, binding.widths[0], self.part)
        else:
            width = frozenset({binding.plans[source.name].teacher})
            ours = features_of(tensor, student.batch, width, self.part)
        theirs = features_of(source.teacher(teacher), teacher.batch, binding.widths[1], self.part)
        return self._aligned(ours, theirs)

    def _aligned(self, student: Features, teacher: Features) -> tuple[Features, Features]:
        """Both with the same positions."""
        return on_one_grid(student, teacher, self.prefix)

    def count(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """How many rows a batch has: valid positions where they are told by the batch, or else examples."""
        valid = self._row_mask(inputs)
        if valid is None:
            return torch.tensor(len(first_tensor(inputs)))
        return valid.sum()

    def _row_mask(self, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        """The rows of a batch of tokens, or None where rows are examples."""
        if not self.over_positions:
            return None
        if self.part == "vision" or not any(name in inputs for name in ("input_ids", "inputs_embeds", "labels")):
            return None
        valid = valid_positions(inputs, self.part)
        tokens = inputs.get("input_ids")
        if valid is None and self.part != "decoder" and isinstance(tokens, torch.Tensor):
            valid = torch.ones_like(tokens.reshape(-1, tokens.shape[-1]), dtype=torch.bool)
        if valid is None:
            return None
        return valid if self.region is None else self.region.valid(valid, inputs)

    def values(self, context: StepContext) -> torch.Tensor:
        """Values whose sum is that over the rows: a value is itself a sum over the pairs of layers."""
        if context.features is None:
            raise HfDistillError(f"{self!r} needs a teacher; pass teacher_model.")
        student, teacher = context.features.student, context.features.teacher
        binding = context.features.bindings[self.name]
        tokens = self._row_mask(context.inputs)
        total: torch.Tensor | None = None
        for source in binding.sources:
            ours, theirs = self._features(source, binding, student, teacher, student.projected)
            if self.region is not None:
                ours, theirs = self.region(ours, context.inputs), self.region(theirs, context.inputs)
            values = self._compared(ours, theirs, tokens)
            summed = values.sum()
            examples = len(first_tensor(context.inputs))
            if tokens is None and len(values) != examples:
                # The choices of a question are read as examples of their own, and a question counts once.
                summed = summed * (examples / len(values))
            total = summed if total is None else total + summed
        assert total is not None, "a term has a pair of tensors at least"
        return total

    def _compared(self, ours: Features, theirs: Features, tokens: torch.Tensor | None) -> torch.Tensor:
        """One value a row: a token, or else an example; `tokens` is the mask of those that are rows."""
        valid = ours.valid if ours.valid is not None else theirs.valid
        if not self.over_positions:
            return self._whole_maps(ours.values, theirs.values, valid)
        if valid is None:
            flat = [side.values.flatten(0, 1) for side in (ours, theirs)]
            owners = None
        else:
            flat = [side.values[valid] for side in (ours, theirs)]
            owners = valid.nonzero()[:, 0]
        values = self._checked(self.loss(flat[0], flat[1], **self.options), len(flat[0]))
        if tokens is not None and tokens.shape == ours.values.shape[:2]:
            return values
        # A mean over the positions of each example, which counts once for each of its tokens where tokens are rows.
        examples = len(ours.values)
        if owners is None or valid is None:
            means = values.reshape(examples, -1).mean(1)
        else:
            means = values.new_zeros(examples).index_add(0, owners, values) / valid.sum(1).clamp(min=1)
        return means if tokens is None else means * tokens.sum(1)

    def _whole_maps(self, ours: torch.Tensor, theirs: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Losses of whole maps, with padding outside of their sums and probabilities."""
        if valid is None or self.loss not in OF_MAPS:
            return self._checked(self.loss(ours, theirs, **self.options), len(ours))
        outside = ~valid[..., None]
        if self.loss is channel_wise_kl:
            lowest = -1e4
            values = self.loss(ours.masked_fill(outside, lowest), theirs.masked_fill(outside, lowest), **self.options)
        else:
            values = self.loss(ours.masked_fill(outside, 0), theirs.masked_fill(outside, 0), **self.options)
            # A mean over positions: those that are there.
            values = values * valid.shape[1] / valid.sum(1).clamp(min=1)
        return self._checked(values, len(ours))

    def _checked(self, values: torch.Tensor, rows: int) -> torch.Tensor:
        if values.shape != (rows,):
            raise HfDistillError(
                f"The loss {loss_name(self.loss)} gave a tensor of shape {tuple(values.shape)} for {rows} rows; "
                "expected one value a row: reduce over positions and width only."
            )
        return values


class HiddenStates(FeatureTerm):
    """What the teacher sees: a distance between hidden states of the student's layers and the teacher's.

    `layers` pairs them: "last", "uniform", "skip:k" or {student's layer: teacher's layer}, 0 being the embeddings'
    output; the term is a sum over the pairs. `part` ("encoder", "decoder", "text", "vision") names a part of a model
    that has several. Rows are the valid tokens of texts and the examples otherwise, over whose positions a mean is
    taken; grids of different size are brought to the smaller.
    Errors: HfDistillError for layers and parts that do not exist, and for features that cannot be compared.
    Source: Romero et al. (FitNets), arXiv 1412.6550; Sanh et al. (DistilBERT), arXiv 1910.01108, with cosine_distance.
    """

    def __init__(
        self,
        loss: Loss | str = hint,
        *,
        layers: Layers = LAST,
        weight: Weight | str = 1.0,
        name: str = "hidden",
        part: str | None = None,
        prefix: Prefix = "auto",
        region: Region | None = None,
        projector: Literal["linear"] | None = "linear",
        norm: bool = False,
        **options: Any,
    ) -> None:
        self.layers = checked_layers(layers)
        super().__init__(
            loss,
            weight=weight,
            name=name,
            part=part,
            prefix=prefix,
            region=region,
            projector=projector,
            norm=norm,
            **options,
        )

    def described(self) -> dict[str, Any]:
        """Which layers."""
        return {"layers": self.layers}

    def look(self, student: nn.Module, teacher: nn.Module) -> Look:
        """Hidden states, a pair for each pair of layers."""

        def read(place: int) -> Read:
            return lambda seen: seen.layers(HIDDEN, self.part)[place]

        def sources(student: Seen, teacher: Seen) -> Sequence[Source]:
            counts = len(student.layers(HIDDEN, self.part)), len(teacher.layers(HIDDEN, self.part))
            pairs = layer_pairs(self.layers, *counts)
            return [Source(f"layer_{ours}", read(ours), read(theirs)) for ours, theirs in pairs]

        return Look(Sight(hidden_states=True), Sight(hidden_states=True), sources)


class Module(FeatureTerm):
    """The output of a named module of each model, such as "encoder.layer.3.output", whatever its place.

    `teacher_module` is the teacher's, by default of the same name. Where a module gives several tensors the first
    counts. The other arguments are those of HiddenStates.
    Errors: HfDistillError for a module that does not exist, naming the nearest.
    """

    def __init__(
        self,
        module: str,
        teacher_module: str | None = None,
        *,
        loss: Loss | str = hint,
        weight: Weight | str = 1.0,
        name: str = "module",
        part: str | None = None,
        prefix: Prefix = "auto",
        region: Region | None = None,
        projector: Literal["linear"] | None = "linear",
        norm: bool = False,
        **options: Any,
    ) -> None:
        self.module = module
        self.teacher_module = module if teacher_module is None else teacher_module
        super().__init__(
            loss,
            weight=weight,
            name=name,
            part=part,
            prefix=prefix,
            region=region,
            projector=projector,
            norm=norm,
            **options,
        )

    def described(self) -> dict[str, Any]:
        """Which module."""
        return {"module": self.module}

    def look(self, student: nn.Module, teacher: nn.Module) -> Look:
        """The module of each; raises HfDistillError for one that is not there, naming the nearest."""
        check_modules(student, (self.module,), "student")
        check_modules(teacher, (self.teacher_module,), "teacher")
        source = Source(
            self.module,
            lambda seen: seen.output_of(self.module),
            lambda seen: seen.output_of(self.teacher_module),
        )
        return Look(Sight(modules=(self.module,)), Sight(modules=(self.teacher_module,)), lambda ours, theirs: [source])
