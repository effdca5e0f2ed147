"""Views: which part of a batch the student reads, and which the teacher."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hfdistill.contract import bare
from hfdistill.errors import HfDistillError
from hfdistill.tasks import Classes, Task, Tokens, TwoHeads, task_of
from hfdistill.tasks.layouts import output_field
from hfdistill.tasks.pairs import text_options

TEACHER_PREFIX = "teacher_"
# Begins the names of what a cache puts beside a batch, for the teacher that reads it there.
STORED = "stored_"
# What padding-free collators add to position_ids, for attention (and state-space) kernels.
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
# Asks some models for a loss that would be computed beside ours.
RETURN_LOSS = "return_loss"

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


def accepted_names(model: nn.Module) -> list[str]:
    """Names of the arguments that a model's forward takes; empty for one that takes anything (`*args, **kwargs`).

    Where it passes further ones on, those belong to it that say where packed sequences begin.
    """
    parameters = inspect.signature(bare(model).forward).parameters.values()
    names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    passes_on = any(each.kind is each.VAR_KEYWORD for each in parameters)
    return [*names, *PACKING] if names and passes_on else names


class Views:
    """Splits a batch: keys with the prefix `teacher_` are the teacher's own view of the examples.

    Without such keys the teacher reads the same tensors as the student, each model those that its forward names.
    Labels go to neither, since the loss is computed from logits; but a student whose loss only the model itself can
    compute gets them, and a decoder gets the inputs that follow from them.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, label_names: Sequence[str], task: Task | None = None
    ) -> None:
        self.student_names = accepted_names(student)
        self.teacher_names = [] if teacher is None else accepted_names(teacher)
        self.label_names = tuple(label_names)
        self.labels_for_student = task is not None and task.loss_inside
        # A classifier's labels, one for each token, are nothing that its decoder reads.
        self.labels_are_text = task is None or task.classes is Classes.VOCABULARY
        shifted = task is not None and isinstance(task.layout, Tokens) and task.layout.shift
        self.labels_beside = ("shift_labels",) if shifted else ()
        self._models = {"student": student, "teacher": teacher}
        # Columns that no model reads and that are needed in a batch all the same.
        self.beside: tuple[str, ...] = ()
        # Brings the student's token ids to the teacher's, where they differ.
        self.translate: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def model(self, role: str) -> nn.Module | None:
        """The student or the teacher."""
        return self._models[role]

    @property
    def columns(self) -> list[str]:
        """Every column that either model may read."""
        own = [TEACHER_PREFIX + name for name in self.teacher_names]
        return [*self.student_names, *self.teacher_names, *own, *self.labels_beside, *self.beside]

    def student(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The student's inputs."""
        plain = {key: value for key, value in batch.items() if not key.startswith((TEACHER_PREFIX, STORED))}
        chosen = self._chosen(plain, self.student_names, "student")
        if self.labels_for_student:
            chosen.update({name: plain[name] for name in self.label_names if plain.get(name) is not None})
        return chosen

    def teacher(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The teacher's inputs."""
        own = {
            key.removeprefix(TEACHER_PREFIX): value for key, value in batch.items() if key.startswith(TEACHER_PREFIX)
        }
        shared = batch if self.translate is None else self.translate(batch)
        stored = {key: value for key, value in batch.items() if key.startswith(STORED)}
        if not own:
            return self._chosen(shared, self.teacher_names, "teacher") | stored
        # A view of one's own is of what the encoder reads; the decoder reads the same tokens in both models.
        decoders = {key: shared[key] for key in shared if key.startswith("decoder_") or key in self.label_names}
        return self._chosen(decoders | own, self.teacher_names, "teacher") | stored

    def read_by_teacher(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the forward of the teacher, or of any of several, is given of a batch."""
        return self.teacher(batch)

    def _chosen(self, batch: Mapping[str, Any], names: Sequence[str], role: str) -> dict[str, Any]:
        unread = (*self.label_names, *self.beside, RETURN_LOSS)
        keys = [
            key for key in batch if key not in unread and not key.startswith(STORED) and (not names or key in names)
        ]
        if not keys:
            raise HfDistillError(
                f"No column of the batch ({', '.join(batch)}) is an input of the {role} ({', '.join(names)}); rename "
                "the columns, or set remove_unused_columns=False if a transform makes them."
            )
        chosen = {key: batch[key] for key in keys}
        if "use_cache" in names:
            # Training and teaching never go on from a former call, and a cache holds every layer's keys and values.
            chosen.setdefault("use_cache", False)
        model, labels = self._models[role], batch.get(self.label_names[0]) if self.label_names else None
        decodes = "decoder_input_ids" in names and "decoder_input_ids" not in chosen
        if decodes and self.labels_are_text and model is not None:
            chosen.update(decoder_inputs(bare(model), labels))
        return chosen


def forward_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model reads of a batch to give its outputs and no loss."""
    task = task_of(bare(model))
    read = Views(model, None, task.label_names, task).student(batch)
    # A detector reads labels for its loss alone.
    return {key: value for key, value in read.items() if not task.loss_inside or key not in task.label_names}


def decoder_inputs(model: nn.Module, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What an encoder-decoder reads beside its encoder's inputs: the labels moved right by its own rule.

    Some families have no method for that rule but a function beside them (Whisper, M2M100). The others get the labels
    themselves and move them in their forward, at the price of a loss that nobody uses.
    """
    if labels is None or labels.is_floating_point() or labels.dim() != 2:
        return {}
    if "prepare_decoder_input_ids_from_labels" in dir(type(model)):
        shifted: Any = type(model).prepare_decoder_input_ids_from_labels  # type: ignore[attr-defined]
        # A copy: FSMT writes over the -100 of the labels that it is given.
        return {"decoder_input_ids": shifted(model, labels.clone())}
    config = getattr(model, "config", None)
    tokens = [getattr(config, name, None) for name in ("pad_token_id", "decoder_start_token_id")]
    rule = _rule_beside(type(model))
    if rule is not None and None not in tokens:
        return {"decoder_input_ids": rule(labels.clone(), *tokens)}
    return {"labels": labels.clone()}


def _rule_beside(kind: type) -> Callable[..., torch.Tensor] | None:
    """The function that moves labels right in the module of a model's class, or of one that it inherits from."""
    found = (getattr(sys.modules.get(each.__module__), "shift_tokens_right", None) for each in kind.__mro__)
    rule = next((each for each in found if each is not None), None)
    takes = [] if rule is None else list(inspect.signature(rule).parameters)
    return rule if takes == ["input_ids", "pad_token_id", "decoder_start_token_id"] else None


def model_loss(outputs: Any, task: Task) -> torch.Tensor | None:
    """The student's own loss, where the task can be scored by nothing else."""
    return outputs.get("loss") if task.loss_inside and isinstance(outputs, Mapping) else None


def fields_of(outputs: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The outputs of those names; raises HfDistillError for one that is not there."""
    return {name: output_field(outputs, name) for name in names}


def as_mapping(outputs: Any, logits: torch.Tensor, task: Task) -> Mapping[str, Any]:
    """A model's outputs by name, as Trainer's evaluation reads them: those that the task keeps."""
    if isinstance(task.layout, TwoHeads):
        return {"logits": task.layout.prediction(logits)}
    if task.predictions:
        return {name: logits if name == "logits" else output_field(outputs, name) for name in task.predictions}
    return outputs if isinstance(outputs, Mapping) else {"logits": logits}


class RawCollator:
    """Makes both models' tensors from raw examples: image, text or both, seen through one processor or two.

    The student's tensors are made where the examples do not hold them already; the teacher gets its own only where
    `teacher_processing_class` is given, since it would do something else than the student's. Raw columns are those in
    `columns`, or else those that hold PIL images, or else those that hold strings; two of these are a pair, in order.
    A whole processor (CLIPProcessor, ...) reads one column of images and one of texts.
    """

    def __init__(
        self,
        collator: Collator,
        student_processing_class: Any,
        teacher_processing_class: Any,
        views: Views,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.collator = collator
        self.student_processing_class = student_processing_class
        self.teacher_processing_class = teacher_processing_class
        self.views = views
        self.columns = columns

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch with the tensors of both models, and the labels."""
        raw = self._raw_columns(examples[0])
        keep = {*self.views.columns, *self.views.label_names, "label", "label_ids"} - set(raw)
        rest = [{key: value for key, value in example.items() if key in keep} for example in examples]
        has_inputs = any(key in self.views.student_names for key in rest[0])
        if has_inputs:
            batch = dict(self.collator(rest))
        else:
            batch = dict(processed(self.student_processing_class, examples, raw, self.views.model("student")))
            batch.update(_labels(rest))
            batch.update({key: torch.as_tensor([example[key] for example in rest]) for key in self.views.beside})
        if self.teacher_processing_class is not None:
            own = processed(self.teacher_processing_class, examples, raw, self.views.model("teacher"))
            batch.update({TEACHER_PREFIX + key: value for key, value in own.items()})
        return batch

    def _raw_columns(self, example: Mapping[str, Any]) -> list[str]:
        if self.columns is not None:
            missing = [column for column in self.columns if column not in example]
            if missing:
                raise HfDistillError(
                    f"input_columns names {missing[0]!r}; the examples have {', '.join(example)}. With a transform, "
                    "set remove_unused_columns=False and let it keep the raw column."
                )
            return list(self.columns)
        images = [key for key, value in example.items() if _is_image(value)]
        texts = [key for key, value in example.items() if isinstance(value, str)]
        classes = (self.student_processing_class, self.teacher_processing_class)
        if any(isinstance(each, ProcessorMixin) for each in classes):
            return _one_of_each(images, texts)
        found = images or texts
        if not found:
            raise HfDistillError(
                "teacher_processing_class needs the raw image or text, and the examples hold only "
                f"{', '.join(example)}; keep the raw column, or give the teacher's tensors in columns with the prefix "
                f"{TEACHER_PREFIX!r}."
            )
        if len(found) > 2:
            raise HfDistillError(
                f"The columns {', '.join(found)} all hold text; name the one, or the two of a pair, that the models "
                "read in DistillationConfig(input_columns=[...])."
            )
        return found


def _one_of_each(images: Sequence[str], texts: Sequence[str]) -> list[str]:
    if len(images) != 1 or len(texts) != 1:
        raise HfDistillError(
            f"A processor of images and texts came, and the examples hold images in {', '.join(images) or 'no column'} "
            f"and texts in {', '.join(texts) or 'no column'}; expected one of each. Name the two that the models read "
            "in DistillationConfig(input_columns=[...])."
        )
    return [images[0], texts[0]]


def processed(
    processing_class: Any, examples: Sequence[Mapping[str, Any]], columns: Sequence[str], model: nn.Module | None
) -> BatchFeature:
    """One padded batch of tensors from raw columns, for a model."""
    if isinstance(processing_class, ProcessorMixin):
        images = [column for column in columns if _is_image(examples[0][column])]
        image, text = _one_of_each(images, [column for column in columns if column not in images])
        whole: Any = processing_class
        options = text_options(bare(model), whole.tokenizer) if model is not None else {"padding": True}
        both: BatchFeature = whole(
            images=[example[image] for example in examples],
            text=[str(example[text]) for example in examples],
            return_tensors="pt",
            **options,
        )
        return both
    if isinstance(processing_class, PreTrainedTokenizerBase):
        texts = [[str(example[column]) for example in examples] for column in columns]
        batch: BatchFeature = processing_class(*texts, padding=True, truncation=True, return_tensors="pt")
        return batch
    if isinstance(processing_class, BaseImageProcessor):
        views: BatchFeature = processing_class([example[columns[0]] for example in examples], return_tensors="pt")
        return views
    raise HfDistillError(
        f"A processor of type {type(processing_class).__name__} came; expected a tokenizer, an image processor or a "
        f"processor of both. For other inputs give the teacher's tensors in columns with the prefix {TEACHER_PREFIX!r}."
    )


def _labels(examples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    rows = list(examples)
    for key in ("labels", "label", "label_ids"):
        if key in rows[0]:
            if isinstance(rows[0][key], Mapping):
                return {"labels": [row[key] for row in rows]}
            return {"labels": torch.stack([torch.as_tensor(row[key]) for row in rows])}
    return {}


def _is_image(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "PIL"
