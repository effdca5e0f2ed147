"""Layouts of heads that say something about each frame of a sound: transcripts (CTC) and frame classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hfdistill.errors import HfDistillError
from hfdistill.losses import bernoulli_kl
from hfdistill.rows import BatchRows, Rows
from hfdistill.tasks.label_losses import binary_cross_entropy, wide
from hfdistill.tasks.layouts import first_tensor, output_field

if TYPE_CHECKING:
    from hfdistill.tasks.task import Task

Lengths = Callable[[torch.Tensor], torch.Tensor]

# Heads that give a frame for each frame of their input, several classes of which may be true at once.
FRAME_FOR_FRAME = ("nemotron3_diarization",)


@runtime_checkable
class Convolving(Protocol):
    """A model that makes frames of samples (Wav2Vec2 and its relatives); the method is Transformers' own."""

    def _get_feat_extract_output_lengths(self, input_lengths: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class Subsampling(Protocol):
    """A model that makes frames of a spectrogram's frames (Parakeet, Lasr); the method is Transformers' own."""

    def _get_subsampling_output_length(self, input_lengths: torch.Tensor) -> torch.Tensor: ...


def frame_lengths(model: nn.Module) -> Lengths:
    """How many frames a model makes of so many samples; raises HfDistillError for one that does not tell."""
    if isinstance(model, Convolving):
        return model._get_feat_extract_output_lengths
    if isinstance(model, Subsampling):
        return model._get_subsampling_output_length
    if isinstance(model, PreTrainedModel) and model.config.model_type in FRAME_FOR_FRAME:
        return unchanged
    raise HfDistillError(
        f"{type(model).__name__} does not tell how many frames it makes of a sound; expected one of Transformers' "
        "methods for it, or task= with a layout that has lengths=, a function from samples to frames."
    )


def unchanged(lengths: torch.Tensor) -> torch.Tensor:
    """As many frames as came."""
    return lengths


@dataclass(frozen=True)
class Frames:
    """One distribution a frame: `logits` of shape `(examples, frames, classes)`; frames of padding do not count.

    Which those are follows from `attention_mask`, over samples, by `lengths`, which is the student's own function from
    samples to frames. Labels are class indices `(examples, frames)`, -100 where none counts, or one number for each
    class `(examples, frames, classes)`, of which the largest is the label, as Transformers reads them; with `multiple`
    each of these is true or false for itself, and NaN or a number below 0 does not count.
    """

    lengths: Lengths | None = None
    multiple: bool = False
    labels_match: ClassVar[bool] = True

    def bound(self, model: nn.Module, task: Task) -> Task:
        """The row for a student: its frames, and whether several classes may be true at once."""
        multiple = self.multiple
        if isinstance(model, PreTrainedModel):
            multiple |= model.config.problem_type == "multi_label_classification"
            multiple |= model.config.model_type in FRAME_FOR_FRAME
        layout = replace(self, lengths=self.lengths or frame_lengths(model), multiple=multiple)
        if not multiple:
            return replace(task, layout=layout)
        return replace(
            task, layout=layout, default_loss=bernoulli_kl, label_loss=binary_cross_entropy, integer_labels=False
        )

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """A frame each."""
        heard = frames_heard(inputs, self.lengths)
        every = Rows(heard.numel(), heard.flatten())
        labels = inputs.get(task.label_names[0])
        if labels is None:
            return BatchRows(every, Rows(every.size, torch.zeros_like(heard).flatten()), None)
        numbers = labels.dim() == 3
        if labels.shape[:2] != heard.shape or not (numbers or (labels.dim() == 2 and not labels.is_floating_point())):
            raise HfDistillError(
                f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} came for {task.name}, where the "
                f"student has {heard.shape[1]} frames for each of {heard.shape[0]} examples; expected a class index "
                "(an integer) for each frame, (examples, frames), or a number for each of its classes."
            )
        known = (labels >= 0).all(-1) if numbers else labels >= 0  # NaN is not >= 0 either
        if self.multiple:
            if not numbers:
                raise HfDistillError(
                    f"Labels of shape {tuple(labels.shape)} came for {task.name}, and several classes of this model "
                    "may be true at once; expected 0 or 1 for each of them, (examples, frames, classes)."
                )
            labels = labels.float().masked_fill(~known[..., None], 0.0).flatten(0, 1)
        else:
            labels = (labels.argmax(-1) if numbers else labels.long()).masked_fill(~known, 0).flatten()
        return BatchRows(every, Rows(every.size, (heard & known).flatten()), labels)

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """As they come."""
        return output_field(outputs, "logits")

    def matched(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """The teacher's logits, if they are about the same frames."""
        return same_frames(teacher, student)

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """The same as the divergence's."""
        return rows.every(logits)


@dataclass(frozen=True)
class Transcripts:
    """One distribution a frame over tokens and blank; the labels are a transcript for each example.

    For the teacher a row is a frame that is not padding. Against labels a row is an example: labels `(examples,
    tokens)` hold -100 or the blank where there is no token. A transcript of -100 alone is no label; one of blanks alone
    says that nothing is spoken. A transcript too long for its frames, whose loss is infinite, is no label either; with
    `zero_infinity` it counts as 0, as in Transformers.
    """

    lengths: Lengths | None = None
    blank: int = 0
    zero_infinity: bool = False
    labels_match: ClassVar[bool] = False

    def bound(self, model: nn.Module, task: Task) -> Task:
        """The row for a student: its frames, its blank, and the settings of its loss."""
        layout = replace(self, lengths=self.lengths or frame_lengths(model))
        if not isinstance(model, PreTrainedModel):
            return replace(task, layout=layout)
        config = model.config
        if config.pad_token_id is None:
            raise HfDistillError(
                f"The config of {type(model).__name__} has no pad_token_id, which is the blank of its loss; expected "
                "the tokenizer's. Set config.pad_token_id = processor.tokenizer.pad_token_id."
            )
        layout = replace(layout, blank=config.pad_token_id, zero_infinity=config.ctc_zero_infinity)
        if task.label_loss is not transcript_loss:
            return replace(task, layout=layout)
        mean = config.ctc_loss_reduction == "mean"
        own = functools.partial(transcript_loss, blank=config.pad_token_id, per_token=mean)
        return replace(task, layout=layout, label_loss=own)

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """A frame each for the teacher, an example each for the labels."""
        heard = frames_heard(inputs, self.lengths)
        every, examples = Rows(heard.numel(), heard.flatten()), len(heard)
        labels = inputs.get(task.label_names[0])
        if labels is None:
            return BatchRows(every, Rows(examples, torch.zeros_like(heard[:, 0])), None)
        if labels.dim() != 2 or len(labels) != examples or labels.is_floating_point():
            raise HfDistillError(
                f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} came for {examples} examples of "
                f"{task.name}; expected the tokens of a transcript (integers) for each, (examples, tokens), padded "
                "with -100."
            )
        told = (labels >= 0).any(1)
        labels, spoken = gathered(labels.long().masked_fill(labels < 0, self.blank), self.blank)
        if not self.zero_infinity:
            # Between two equal tokens there has to be a blank.
            repeated = ((labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] != self.blank)).sum(1)
            told = told & (spoken + repeated <= heard.sum(1))
        return BatchRows(every, Rows(examples, told), labels)

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """As they come."""
        return output_field(outputs, "logits")

    def matched(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """The teacher's logits, if they are about the same frames."""
        return same_frames(teacher, student)

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """In float32, with a certain blank on padding: that leaves the probability of any transcript as it is."""
        assert rows.every.valid is not None
        heard = rows.every.valid.reshape(logits.shape[:2])
        certain = torch.full_like(wide(logits[0, 0]), float("-inf"))
        certain[self.blank] = 0.0
        return torch.where(heard[..., None], wide(logits), certain)


def frames_heard(inputs: Mapping[str, Any], lengths: Lengths | None) -> torch.Tensor:
    """Which frames of the student are not padding, `(examples, frames)`."""
    if lengths is None:
        raise HfDistillError(
            "A layout of frames came that does not know how many frames a sound has; expected one that was bound to "
            "the student (Task.bound), or lengths=, a function from samples to frames."
        )
    sounds = first_tensor(inputs, "input_values", "input_features")
    frames = int(lengths(torch.tensor(sounds.shape[1])))
    mask = inputs.get("attention_mask")
    if not isinstance(mask, torch.Tensor):
        return torch.ones(len(sounds), frames, dtype=torch.bool, device=sounds.device)
    return torch.arange(frames, device=mask.device) < lengths(mask.sum(-1))[:, None]


def same_frames(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The teacher's logits; raises HfDistillError where they are about other frames than the student's."""
    if teacher.shape[:2] != student.shape[:2]:
        raise HfDistillError(
            f"The teacher gives {teacher.shape[1]} frames for each of {teacher.shape[0]} examples and the student "
            f"{student.shape[1]} for each of {student.shape[0]}; expected the same frames. Take two models that hear "
            "at the same rate: the same strides of the feature encoder (conv_stride, conv_kernel), and no adapter in "
            "one of them alone."
        )
    return teacher


def transcript_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float,
    *,
    blank: int = 0,
    per_token: bool = True,
) -> torch.Tensor:
    """Connectionist temporal classification, in nats: -log of the probability of all alignments, one value an example.

    A transcript without any alignment gives 0. With `per_token` each is divided by the length of its transcript, so
    that the mean over examples is the head's own loss with `ctc_loss_reduction="mean"`; without, it is the head's sum
    divided by the examples. Smoothing does not apply. Shapes `(examples, frames, tokens)`, `(examples, tokens)` with
    blanks where there is no token.
    Source: Graves et al. 2006, "Connectionist Temporal Classification".
    """
    tokens, spoken = gathered(labels, blank)
    frames = torch.full_like(spoken, logits.shape[1])
    # As Transformers does: cuDNN's version takes fewer cases.
    with torch.backends.cudnn.flags(enabled=False):
        values = functional.ctc_loss(
            functional.log_softmax(wide(logits), dim=-1).transpose(0, 1),
            tokens,
            frames,
            spoken,
            blank=blank,
            reduction="none",
            zero_infinity=True,
        )
    return values / spoken.clamp(min=1) if per_token else values


def gathered(labels: torch.Tensor, blank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Transcripts `(examples, tokens)` with all blanks at their ends, and how many tokens each has."""
    spoken = labels != blank
    return labels.gather(1, (~spoken).long().argsort(dim=1, stable=True)), spoken.sum(1)
