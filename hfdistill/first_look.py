"""A look at the first examples before training: what would fail in a step, or never be learnt from, is said at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from hfdistill.errors import HfDistillError
from hfdistill.objective import Objective
from hfdistill.schedules import is_used
from hfdistill.tasks import Classes, Task
from hfdistill.views import TEACHER_PREFIX

POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe", "pos_emb")
"""What Transformers calls tables with a row for each place of a sequence."""
OTHER_INPUTS = ("vision", "visual", "image", "audio")
"""In the names of a model's parts that read something else than text."""


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave the generators of torch, NumPy and Python as they were: a look must not change what training draws."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def first_batch(dataset: Any, collator: Callable[[Any], Any]) -> Any:
    """The first two examples of a data set as a batch; nothing where there is no data set."""
    if dataset is None:
        return {}
    with same_random_numbers():
        return next(iter(DataLoader(dataset, batch_size=2, collate_fn=collator)), {})


def check_first_batch(
    dataset: Any,
    collator: Callable[[Any], Any],
    objective: Objective,
    task: Task,
    models: Mapping[str, nn.Module],
) -> None:
    """Refuse data that cannot be trained on, as far as the first two examples tell; a stream is left alone.

    Errors: HfDistillError for labels that every term needs and none has, for views of different length, and for
    sequences longer than a model (`models`, by role) has places for.
    """
    if dataset is None or isinstance(dataset, IterableDataset):
        return
    try:
        batch = first_batch(dataset, collator)
    except Exception:  # noqa: BLE001
        return  # Trainer will come to the same error, and says where it is.
    if not isinstance(batch, Mapping):
        return
    _check_labels(batch, objective, task)
    if task.classes in (Classes.VOCABULARY, Classes.PLACES) or "input_ids" in batch:
        _check_lengths(batch, task, models)


def _check_labels(batch: Mapping[str, Any], objective: Objective, task: Task) -> None:
    needing = [term.name for term in objective.active if is_used(term.weight) and term.needs_labels]
    learning = [term.name for term in objective.active if is_used(term.weight)]
    if not task.label_names or len(needing) < len(learning):
        return
    if all(batch.get(name) is None for name in task.label_names):
        raise HfDistillError(
            f"The train_dataset has no labels (its batches hold {', '.join(batch)}), and every term of {objective!r} "
            f"needs them; expected the key {task.label_names[0]!r}, or a term that learns from the teacher alone, such "
            "as Logits()."
        )


def _check_lengths(batch: Mapping[str, Any], task: Task, models: Mapping[str, nn.Module]) -> None:
    own, theirs = (batch.get(f"{prefix}input_ids") for prefix in ("", TEACHER_PREFIX))
    lengths = {role: _length(own) for role in models}
    if theirs is not None:
        lengths["teacher"] = _length(theirs)
        a_row_each = task.layout.labels_match and task.classes is not Classes.NAMED
        if a_row_each and None not in lengths.values() and len(set(lengths.values())) > 1:
            raise HfDistillError(
                f"The student reads {lengths.get('student')} tokens of an example and the teacher {lengths['teacher']}"
                f", and {task.name} compares them token by token; expected the same tokens in both: one tokenizer, one "
                "maximum length."
            )
    for role, model in models.items():
        length, places = lengths[role], _places(model)
        if length is not None and places is not None and length > places:
            raise HfDistillError(
                f"The first examples are {length} tokens long, and the {role} ({type(model).__name__}) has places for "
                f"{places}; expected texts cut to that: truncation=True, max_length={places} in the tokenizer."
            )


def _length(ids: Any) -> int | None:
    return int(ids.shape[-1]) if isinstance(ids, torch.Tensor) else None


def _places(model: nn.Module) -> int | None:
    """The length of the table of places for the text that a model reads; None for models that work places out."""
    tables = {
        name: module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS
    }
    of_text = {name: size for name, size in tables.items() if not any(word in name for word in OTHER_INPUTS)}
    read = {name: size for name, size in of_text.items() if "decoder" not in name.split(".")}
    return min((read or of_text).values(), default=None)
