"""Random views that replay: each follows from seed, epoch and place alone, so that a cache can hold it."""

from __future__ import annotations

import logging
import math
import operator
import random
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainerCallback

from hfdistill.errors import HfDistillError
from hfdistill.first_look import same_random_numbers
from hfdistill.mixed_views import ViewMixing

logger = logging.getLogger(__name__)

LOOKS = 4
"""How many examples are looked at twice when views are made."""


class ReplayedViews(Dataset[Any]):
    """A map-style data set around another, whose random views are the same again in every run.

    While an example is fetched, the generators of Python, NumPy and torch (CPU) are seeded from (seed, epoch mod
    `epochs`, index), and put back afterwards: crops, flips and whatever else draws from them replay, whatever the
    order, workers, processes or a resume, so that CachedTeacher holds `epochs` views of each example. The trainer tells
    the epoch; past `epochs` of them the views repeat.
    `mixup` and `cutmix` mix the pictures (keys that end in pixel_values) of a share `mix_probability` of the examples
    with the view of another one, as DistillationConfig's do within a batch: mixup with l ~ Beta(mixup, mixup), cutmix a
    rectangle of 1 - l, l ~ Beta(cutmix, cutmix). A mixed example has no label (-100, NaN).
    Errors: HfDistillError for a stream, for data without a length, for views that do not replay, and for pictures that
    cannot be mixed.
    Sources: Shen and Xing (FKD), arXiv 2112.01528; Wu et al. (TinyViT), arXiv 2207.10666; Zhang et al. (mixup),
    arXiv 1710.09412; Yun et al. (CutMix), arXiv 1905.04899.
    """

    def __init__(
        self,
        dataset: Any,
        epochs: int,
        *,
        seed: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
    ) -> None:
        _check_map_style(dataset)
        if operator.index(epochs) < 1:
            raise HfDistillError(f"epochs={epochs}; expected at least 1: how many epochs have views of their own.")
        if operator.index(seed) < 0:
            raise HfDistillError(f"seed={seed}; expected a number of at least 0.")
        self.dataset = dataset
        self.epochs = epochs
        self.seed = seed
        self.mixing = ViewMixing(mixup, cutmix, mix_probability) if mixup or cutmix else None
        # In shared memory, where worker processes see it change.
        self._epoch: torch.Tensor = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._told = False
        self._check_replays()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several examples: one by one, because each has its own random numbers."""
        places = range(len(self))
        with same_random_numbers():
            return [self._example(places[operator.index(index)]) for index in indices]

    @property
    def epoch(self) -> int:
        """The epoch whose views are shown, below `epochs`."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Show the views of an epoch, counted from 0; the trainer calls this."""
        if epoch >= self.epochs and not self._told and _is_first_process():
            logger.warning(
                "Epoch %d shows the views of epoch %d again: there are views of %d epochs.",
                epoch + 1,
                epoch % self.epochs + 1,
                self.epochs,
            )
            self._told = True
        self._epoch[0] = epoch % self.epochs

    def _example(self, index: int) -> Any:
        example = self._view(index)
        if self.mixing is None:
            return example
        # Another stream than that of the views, whose entropy has three numbers.
        draws = np.random.default_rng([self.seed, self.epoch, index, 1])
        return self.mixing(example, draws, lambda shift: self._view((index + shift) % len(self)), len(self))

    def _view(self, index: int) -> Any:
        words = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(4, np.uint64).tolist()
        random.seed(words[0])
        np.random.seed([words[1] >> 32, words[1] % 2**32])
        # Not torch.manual_seed, which would seed the accelerator's generator too, and nobody puts that back.
        torch.default_generator.manual_seed(words[2])
        return self.dataset[index]

    def _check_replays(self) -> None:
        """Fetch a few examples twice. Errors: HfDistillError where they differ."""
        for index in range(min(LOOKS, len(self))):
            if not _is_same(self[index], self[index]):
                raise HfDistillError(
                    f"Example {index} came out differently when it was fetched again with the same random numbers; "
                    "expected changes that draw from random, numpy.random or torch. Does a transform have a generator "
                    "of its own? Give it none, or draw there from NumPy's global one."
                )


class FollowsEpochs(TrainerCallback):
    """Tells a data set which epoch it is, before its first batch is fetched.

    Accelerate (1.15) does so in one process alone, and not where a resume skips batches:
    DataLoaderShard.set_epoch stops at a sampler that it finds two batch samplers deep.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed state stands in the middle of its epoch."""
        self.dataset.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))


def following(train_dataset: Any, eval_dataset: Any) -> list[TrainerCallback]:
    """The callback that a training needs for data with views of each epoch, if it has such.

    Errors: HfDistillError where the very same data set is evaluated on, which would change the training's epoch.
    """
    if isinstance(train_dataset, IterableDataset) or "set_epoch" not in dir(type(train_dataset)):
        return []
    others = eval_dataset.values() if isinstance(eval_dataset, Mapping) else [eval_dataset]
    if any(other is train_dataset for other in others):
        raise HfDistillError(
            f"One {type(train_dataset).__name__} came for training and evaluation, and evaluating would set it back to "
            "another epoch; expected two. Evaluate on the data set without random changes."
        )
    return [FollowsEpochs(train_dataset)]


def _check_map_style(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset) or "__getitem__" not in dir(type(dataset)):
        raise HfDistillError(
            f"ReplayedViews came for a {type(dataset).__name__}, a stream, whose examples have no place that a view "
            "could follow from; expected a map-style data set: one that gives dataset[index]."
        )
    if not isinstance(dataset, Sized):
        raise HfDistillError(
            f"ReplayedViews came for a {type(dataset).__name__} without a length; expected a data set with __len__."
        )


def _is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        # NaN is the same as NaN here.
        return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
    compares: object = type(one).__eq__
    # Objects that only know themselves tell nothing.
    return compares is object.__eq__ or bool(one == other) or one != one


def _is_first_process() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
