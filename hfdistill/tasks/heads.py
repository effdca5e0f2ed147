"""Which task a model has, from its class alone."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hfdistill.errors import HfDistillError, nearest
from hfdistill.tasks.pairs import scores_by_sigmoid
from hfdistill.tasks.table import TASKS
from hfdistill.tasks.task import Task
from hfdistill.tasks.two_heads import TWO_HEADED


def task_of(model: nn.Module, example_label: Any = None) -> Task:
    """The task of a model's head.

    Transformers' own mappings of the auto classes tell it. Of a classifier, `config.problem_type` or else Transformers'
    own rule tells more (`classification_task`). A module without a config is taken for a classifier.
    Errors: HfDistillError for a head without a row in the table.
    """
    if not isinstance(model, PreTrainedModel):
        return classification_task(None, None, example_label)
    name = architecture_task(type(model).__name__)
    if name is None:
        raise HfDistillError(
            f"{type(model).__name__} has no head that the table of tasks knows; expected an architecture of "
            f"{', '.join(sorted(known_auto_classes()))}, or task= with a row of your own (CONTRIBUTING.md shows one); "
            "task='sentence_embedding' for an encoder whose hidden states are pooled to one vector a text."
        )
    if name == CLASSIFICATION:
        kind = classification_task(model.config.problem_type, model.config.num_labels, example_label)
        return two_headed(kind) if type(model).__name__ in TWO_HEADED else kind
    if name == "seq2seq_lm" and "decoder_input_ids" not in inspect.signature(model.forward).parameters:
        # Speech and audio models that are decoders over one joint sequence.
        return TASKS["causal_lm"]
    parameters = inspect.signature(model.forward).parameters
    if name == "causal_lm" and model.config.is_encoder_decoder and "decoder_input_ids" in parameters:
        # Readers of pictures that are encoder-decoders: their labels are shifted already.
        return TASKS["seq2seq_lm"]
    if name == "image_text" and scores_by_sigmoid(model):
        return TASKS["image_text_sigmoid"]
    if name == "universal_segmentation" and "labels" in inspect.signature(model.forward).parameters:
        # Detectors with masks beside their boxes.
        return TASKS["instance_segmentation"]
    return TASKS[name]


CLASSIFICATION = "single_label_classification"


@functools.cache
def known_auto_classes() -> dict[str, str]:
    """Each auto class that a task names, with that task, in the order of the table."""
    return {auto_class: task.name for task in TASKS.values() for auto_class in task.auto_classes}


@functools.cache
def architecture_task(architecture: str) -> str | None:
    """The task of an architecture by its class name, such as ViTForImageClassification; None if no row has it."""
    auto_class = auto_class_name(architecture)
    return None if auto_class is None else known_auto_classes()[auto_class]


@functools.cache
def auto_class_name(architecture: str) -> str | None:
    """The name of the auto class that loads an architecture, of those that the tasks name."""
    for name in known_auto_classes():
        entries = getattr(transformers, name)._model_mapping._model_mapping.values()
        flat = {each for entry in entries for each in ((entry,) if isinstance(entry, str) else entry)}
        if architecture in flat:
            return name
    return None


def classification_task(problem_type: str | None, num_labels: int | None, example_label: Any) -> Task:
    """The task of a classifier head, by `config.problem_type` or else by Transformers' own rule.

    That rule: one output is a regression, class indices are single-label, vectors of floats are multi-label. A module
    that does not say how many outputs it has (`num_labels` is None) is a regression if its labels are single floats.
    `example_label` is any label of the data set, or None where there is none to look at.
    """
    kinds = (CLASSIFICATION, "multi_label_classification", "regression")
    if problem_type is None:
        if num_labels == 1 or (num_labels is None and _is_real_number(example_label)):
            problem_type = "regression"
        elif isinstance(example_label, (list, tuple)) or (
            isinstance(example_label, torch.Tensor) and example_label.is_floating_point()
        ):
            problem_type = "multi_label_classification"
        else:
            problem_type = CLASSIFICATION
    if problem_type not in kinds:
        raise HfDistillError(f"problem_type is {problem_type!r}; expected one of {', '.join(sorted(kinds))} or None.")
    return TASKS[problem_type]


def two_headed(kind: Task) -> Task:
    """The row of a classifier with a class head and a distillation head, for any kind of classifier."""
    return replace(
        TASKS["two_head_classification"],
        default_loss=kind.default_loss,
        label_loss=kind.label_loss,
        integer_labels=kind.integer_labels,
        classes=kind.classes,
    )


def named_task(task: Task | str) -> Task:
    """The row of a name; a row passes through. Errors: HfDistillError naming the nearest."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise HfDistillError(f"There is no task {task!r}{nearest(task, TASKS)} Known: {', '.join(TASKS)}.")
    return TASKS[task]


def _is_real_number(label: Any) -> bool:
    single = isinstance(label, torch.Tensor) and label.dim() == 0 and label.is_floating_point()
    return single or isinstance(label, float)
