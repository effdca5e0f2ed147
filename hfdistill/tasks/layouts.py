"""Layouts: which fields of a model's output are logits, and how they and the labels fall into rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from hfdistill.errors import HfDistillError
from hfdistill.rows import BatchRows, Rows

if TYPE_CHECKING:
    from hfdistill.tasks.task import Task

UNLABELLED = -100
# Stands for minus infinity where a loss may multiply a logit by 0, as those of sigmoids do.
NOWHERE = -1e4


class Layout(Protocol):
    """How one kind of head lays out its logits."""

    @property
    def labels_match(self) -> bool:
        """Whether each row of logits has a label of its own."""
        ...

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """The rows of a micro-batch, known before either model has run."""
        ...

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """A model's logits, rows first, classes last."""
        ...

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """The logits that the labels are held against, a row each."""
        ...


@runtime_checkable
class ModelLayout(Layout, Protocol):
    """A layout whose rows follow from the models: how many frames one makes of a sound, how large its maps are."""

    def bound(self, model: nn.Module, task: Task) -> Task:
        """The task with all that it has to know of the student."""
        ...

    def matched(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """The teacher's logits at the places of the student's; raises HfDistillError where they have none in common."""
        ...


@dataclass(frozen=True)
class Examples:
    """One distribution an example: `logits` of shape `(examples, classes)`.

    Labels of -100 (class index) or NaN (float) mark an unlabelled example.
    """

    output: str = "logits"
    labels_match: ClassVar[bool] = True

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """An example each."""
        first = first_tensor(inputs)
        size = first.shape[0]
        labels = inputs.get(task.label_names[0])
        every = Rows(size)
        if labels is None:
            nothing = torch.zeros(size, dtype=torch.bool, device=first.device)
            return BatchRows(every, Rows(size, nothing), None)
        if task.integer_labels:
            labels = class_indices(labels, size, task.name)
            valid = labels != UNLABELLED
            return BatchRows(every, Rows(size, valid), labels.where(valid, 0))
        labels = every(labels.float())
        missing = torch.isnan(labels)
        return BatchRows(every, Rows(size, ~missing.any(dim=-1)), labels.masked_fill(missing, 0.0))

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """As they come."""
        return output_field(outputs, self.output)

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """The same as the divergence's."""
        return rows.every(logits)


@dataclass(frozen=True)
class Tokens:
    """One distribution a token: `logits` of shape `(examples, tokens, classes)`.

    A token counts where its label is not -100 and it is attended to. Without labels every attended token counts, for
    the teacher alone; with `unlabelled_examples` so does an example of a labelled batch that has no label at all. With
    `shift` a token's logits are about the next one (decoders), which has to lie in the same sequence of a packed batch
    (`position_ids` begin anew with each); `shift_labels` are labels shifted already. So labels are the tokens
    themselves for every decoder, as language modelling collators give them; also for those (BartForCausalLM,
    WhisperForCausalLM, TrOCRForCausalLM and their kin) whose own loss would take them for shifted. `decoder` says that
    the tokens are a decoder's.
    """

    shift: bool = False
    unlabelled_examples: bool = False
    decoder: bool = False
    labels_match: ClassVar[bool] = True

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """The tokens that count, picked by their place among all of the batch."""
        shifted = inputs.get("shift_labels") if self.shift else None
        labels = shifted if shifted is not None else inputs.get(task.label_names[0])
        shift = self.shift and shifted is None
        attended = self._attended(inputs, shift)
        if labels is None:
            if attended is None:
                raise HfDistillError(
                    f"A batch without labels came for {task.name}, and it does not say which tokens there are (keys: "
                    f"{', '.join(inputs)}); expected {self._names} among them."
                )
            every = picked(attended)
            nothing = torch.zeros(len(every), dtype=torch.bool, device=attended.device)
            return BatchRows(every, Rows(every.size, nothing, every.index), None)
        labels = token_labels(labels, attended, task.name)
        if shift:
            labels = functional.pad(labels[:, 1:], (0, 1), value=UNLABELLED)
        counted = labels != UNLABELLED
        if attended is not None:
            if self.unlabelled_examples:
                counted = counted | ~counted.any(dim=1, keepdim=True)
            counted = counted & attended
        every = picked(counted)
        chosen = every(labels).squeeze(-1)
        if not self.unlabelled_examples:
            return BatchRows(every, every, chosen)
        valid = chosen != UNLABELLED
        return BatchRows(every, Rows(every.size, valid, every.index), chosen.where(valid, 0))

    @property
    def _names(self) -> str:
        prefix = "decoder_" if self.decoder else ""
        return f"{prefix}input_ids, {prefix}inputs_embeds or {prefix}attention_mask"

    def _tokens(self, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        """What holds a token at each place of `(examples, tokens)`, if the batch has it."""
        prefix = "decoder_" if self.decoder else ""
        ids, embeddings = inputs.get(prefix + "input_ids"), inputs.get(prefix + "inputs_embeds")
        return ids if isinstance(ids, torch.Tensor) else embeddings

    def _attended(self, inputs: Mapping[str, Any], shift: bool) -> torch.Tensor | None:
        """Which tokens hold something, `(examples, tokens)`; with `shift`, whose next token of the sequence does too.

        None where the batch does not say.
        """
        tokens, mask = self._tokens(inputs), inputs.get("decoder_attention_mask" if self.decoder else "attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and (tokens is None or mask.shape == tokens.shape[:2]):
            attended = mask.bool()
        elif tokens is not None:
            attended = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        else:
            return None
        if not shift:
            return attended
        following = attended[:, 1:]
        positions = inputs.get("position_ids")
        if isinstance(positions, torch.Tensor) and positions.dim() == 2:
            following = following & (positions[:, 1:] > positions[:, :-1])
        return functional.pad(attended[:, :-1] & following, (0, 1), value=False)

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """As they come, a distribution for each token of the batch."""
        logits, tokens = output_field(outputs, "logits"), self._tokens(inputs)
        if tokens is not None:
            check_places(logits, tokens.shape[1])
        return logits

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """The same as the divergence's."""
        return rows.every(logits)


@dataclass(frozen=True)
class Spans:
    """Two distributions an example over its tokens: where an answer starts, and where it ends.

    A label outside the tokens (an answer that was cut off) or on padding does not count; at padding the logits are
    -inf, so that its probability is 0.
    """

    outputs: tuple[str, str] = ("start_logits", "end_logits")
    labels_match: ClassVar[bool] = True

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """Two an example."""
        examples, tokens = first_tensor(inputs, "input_ids", "inputs_embeds").shape[:2]
        every = Rows(2 * examples)
        given = [inputs.get(name) for name in task.label_names]
        if any(labels is None for labels in given):
            nothing = torch.zeros(2 * examples, dtype=torch.bool, device=first_tensor(inputs).device)
            return BatchRows(every, Rows(2 * examples, nothing), None)
        each = [class_indices(labels, examples, task.name) for labels in given if labels is not None]
        labels = torch.stack(each, dim=1).flatten()
        valid = (labels >= 0) & (labels < tokens)
        labels = labels.where(valid, 0)
        mask = inputs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.shape == (examples, tokens):
            valid = valid & mask.bool().gather(1, labels.reshape(examples, 2)).flatten()
        return BatchRows(every, Rows(2 * examples, valid), labels)

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Start and end, `(examples, 2, tokens)`."""
        both = torch.stack([output_field(outputs, name) for name in self.outputs], dim=1)
        tokens, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if isinstance(tokens, torch.Tensor):
            check_places(both.mT, tokens.shape[1])
        if isinstance(mask, torch.Tensor) and mask.shape == (both.shape[0], both.shape[2]):
            # An example that is nothing but padding keeps its logits: a softmax over nothing is NaN.
            padding = ~mask.bool() & mask.any(dim=1, keepdim=True)
            both = both.masked_fill(padding[:, None], -torch.inf)
        return both

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """The same as the divergence's."""
        return rows.every(logits)


EXAMPLES = Examples()


def picked(counted: torch.Tensor) -> Rows:
    """The rows of all places where `counted` is true."""
    return Rows(counted.numel(), index=counted.flatten().nonzero().squeeze(-1))


def class_indices(labels: torch.Tensor, size: int, name: str) -> torch.Tensor:
    """The labels as `(size,)`; raises for labels that are no class index for each of so many rows."""
    if labels.is_floating_point() or labels.numel() != size:
        raise HfDistillError(
            f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} came for {size} rows of {name}; "
            "expected one class index (an integer) a row. For several labels a row set "
            'config.problem_type = "multi_label_classification", for real numbers "regression".'
        )
    return labels.reshape(size)


def token_labels(labels: torch.Tensor, places: torch.Tensor | None, name: str) -> torch.Tensor:
    """The labels as they are; raises for labels that are not an integer for each token."""
    fits = places is None or labels.shape == places.shape
    if labels.dim() != 2 or labels.is_floating_point() or not fits:
        expected = "(examples, tokens)" if places is None else f"{tuple(places.shape)}"
        raise HfDistillError(
            f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} came for {name}; expected an integer for "
            f"each token, {expected}, with {UNLABELLED} where none counts. Does the collator pad labels as it pads "
            "tokens?"
        )
    return labels


def check_places(logits: torch.Tensor, tokens: int) -> None:
    """Refuse logits that are not one distribution a token."""
    if logits.dim() != 3 or logits.shape[1] != tokens:
        raise HfDistillError(
            f"The model gave logits of shape {tuple(logits.shape)} for {tokens} tokens an example; expected one "
            "distribution a token. Where a model sets further places before or among them (virtual tokens, pictures), "
            "pass task= with a layout that cuts those off."
        )


def output_field(outputs: Any, name: str) -> torch.Tensor:
    """One field of a model's output; raises HfDistillError where it is not there."""
    found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    if not isinstance(found, torch.Tensor):
        have = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise HfDistillError(
            f"The model gave no {name!r} (it gave {have}); expected an output with that field. For a model of your own "
            "pass task= with a layout that reads its outputs."
        )
    return found


def first_tensor(inputs: Mapping[str, Any], *names: str) -> torch.Tensor:
    """The first of the named tensors of a micro-batch, or else the first that has a row for each example."""
    for name in names:
        value = inputs.get(name)
        if isinstance(value, torch.Tensor):
            return value
    for value in inputs.values():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return value
    raise HfDistillError(f"A batch without tensors came (keys: {', '.join(inputs) or 'none'}); is the dataset empty?")
