"""The three splits of a run with their labels: taken by name, or carved from the train split by a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from hfdistill.data.kind import Kind
from hfdistill.data.kinds import kind_of
from hfdistill.data.labels import SINGLE, UNLABELLED, LabelSpace, check_columns
from hfdistill.data.sampling import Indices, stratified
from hfdistill.data.sources import load_splits
from hfdistill.errors import HfDistillError
from hfdistill.recipe import DataSection, RecipeError


@dataclass(frozen=True)
class Split:
    """Rows with their labels."""

    dataset: datasets.Dataset
    labels: Tensor

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, rows: Indices) -> Split:
        """Some of the rows."""
        return Split(self.dataset.select(rows), self.labels[torch.from_numpy(rows)])


@dataclass(frozen=True)
class TaskData:
    """What the recipe's data section describes.

    `kind` says what is read and how; `labelled` marks the rows of `train` whose labels are used, and `notices` tell
    what a reader of the results has to know.
    """

    section: DataSection
    kind: Kind
    train: Split
    validation: Split
    test: Split
    labelled: Tensor
    notices: tuple[str, ...]

    @property
    def space(self) -> LabelSpace:
        """Kind of problem and classes."""
        return self.kind.reader.space

    def masked_labels(self) -> Tensor:
        """The train split's labels, with those that are not used taken away."""
        labels = self.train.labels.clone()
        labels[~self.labelled] = torch.tensor(self.space.missing(), dtype=labels.dtype)
        return labels


def read_data(section: DataSection, known_names: Sequence[str] | None = None) -> TaskData:
    """Load, check and split the data; `known_names` are the classes of a teacher that is used as it is.

    Errors: RecipeError for keys that do not fit the data, HfDistillError for rows that cannot be used.
    """
    raw = load_splits(section)
    kind = kind_of(raw[section.train_split], section, known_names)
    reader = kind.reader

    def labelled_split(name: str) -> Split:
        check_columns(raw[name], kind.columns, f"the {name} split")
        return Split(raw[name], reader(raw[name], name, allow_missing=name == section.train_split))

    notices: list[str] = []
    train = labelled_split(section.train_split)
    test = None if section.test_split is None else labelled_split(section.test_split)
    if section.test_fraction is not None:
        train, test = _carved(train, reader.space, section.test_fraction, section.split_seed + 1)
        notices.append(f"the test split is {len(test)} rows carved from {section.train_split!r}")
    if section.validation_split is None:
        train, validation = _carved(train, reader.space, section.validation_fraction, section.split_seed)
    else:
        validation = labelled_split(section.validation_split)
    if test is None:
        test = validation
        notices.append("there is no test split: the results are on the validation split, so choose no settings by them")
    train = _at_most(train, section.max_train_samples, reader.space, section.split_seed)
    validation = _at_most(validation, section.max_eval_samples, reader.space, section.split_seed)
    test = _at_most(test, section.max_eval_samples, reader.space, section.split_seed)
    labelled = _labelled(train, reader.space, section)
    if section.unlabelled == "drop" and not bool(labelled.all()):
        kept = np.flatnonzero(labelled.numpy())
        train, labelled = train.select(kept), torch.ones(len(kept), dtype=torch.bool)
    if not bool(labelled.all()):
        rest = int((~labelled).sum())
        notices.append(f"{len(train) - rest} labelled rows; the other {rest} are learnt from the teacher alone")
        if section.labelled is not None and section.teacher_labels == "all":
            notices.append("the teacher is trained on all labels, so part of a gain is its data")
    return TaskData(section, kind, train, validation, test, labelled, tuple(notices))


def _known(split: Split, space: LabelSpace) -> Tensor:
    """Which rows have a label."""
    if space.whole_numbers:
        return split.labels != UNLABELLED
    return ~torch.isnan(split.labels).reshape(len(split), -1).any(dim=1)


def _classes(labels: Tensor, space: LabelSpace) -> Any:
    return labels.numpy() if space.problem_type == SINGLE else None


def _carved(split: Split, space: LabelSpace, fraction: float, seed: int) -> tuple[Split, Split]:
    """The split without, and the part of, `fraction` of its labelled rows."""
    candidates = np.flatnonzero(_known(split, space).numpy())
    count = max(round(fraction * len(candidates)), 1)
    if count >= len(split):
        raise HfDistillError(
            f"A share of {fraction} of {len(candidates)} labelled train rows is {count} rows; expected at least "
            "one there and one left to train on. Name data.validation_split and data.test_split, or give more data."
        )
    labels = split.labels[torch.from_numpy(candidates)]
    part = candidates[stratified(_classes(labels, space), count, seed, len(candidates))]
    rest = np.delete(np.arange(len(split)), part)
    return split.select(rest), split.select(part)


def _at_most(split: Split, count: int | None, space: LabelSpace, seed: int) -> Split:
    if count is None or count >= len(split):
        return split
    return split.select(stratified(_classes(split.labels, space), count, seed, len(split)))


def _labelled(train: Split, space: LabelSpace, section: DataSection) -> Tensor:
    """Which rows of the train split have a label that is used."""
    known = _known(train, space)
    candidates = np.flatnonzero(known.numpy())
    if len(candidates) == 0:
        raise HfDistillError("No row of the train split has a label; the control and the metrics need some.")
    if section.labelled is None or section.labelled == len(candidates):
        return known
    least = len(space.names) if space.problem_type == SINGLE else 1
    if not least <= section.labelled <= len(candidates):
        raise RecipeError(
            f"data.labelled: got {section.labelled}; expected {least} (one a class) to {len(candidates)}, the "
            "labels that the train split has."
        )
    labels = train.labels[torch.from_numpy(candidates)]
    chosen = candidates[stratified(_classes(labels, space), section.labelled, section.split_seed, len(candidates))]
    mask = torch.zeros(len(train), dtype=torch.bool)
    mask[torch.from_numpy(chosen)] = True
    return mask
