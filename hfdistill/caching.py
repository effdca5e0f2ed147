"""A trainer's cache: its teacher opened, its loaders fed from it, and all of it filled in before a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers.utils.logging import tqdm

from hfdistill.cache import CachedTeacher, CachingCollator, KeepsTargets, Reading, StoredTeacher, TeacherIdentity
from hfdistill.checkpoints import SavingTrainer
from hfdistill.errors import HfDistillError
from hfdistill.filling import Filled, Filling, begin_view, check_sample, own_share
from hfdistill.objective import Objective
from hfdistill.pairing import Pairing
from hfdistill.tasks import Task
from hfdistill.teacher_forward import portions_of
from hfdistill.teachers import LiveTeacher, Teacher
from hfdistill.views import Views

logger = logging.getLogger(__name__)

Bar = Callable[[Any, str], Any]
"""Goes through batches and shows a title beside a bar."""


class CachingTrainer(SavingTrainer):
    """A Trainer whose teacher's targets may lie on the disk."""

    task: Task
    views: Views
    teacher: Teacher | None
    teacher_name: str | None
    distillation_objective: Objective

    def fill_cache(self, views: int = 1, bar: Bar | None = None) -> Filled:
        """Ask the teacher for all that its cache lacks of the training and evaluation data, before any training.

        `views` is how many epochs of changing views are kept, for data sets that replay them (`set_epoch`). It says
        bytes and time as the first batch shows them; `bar` goes through batches with a title, by default tqdm's. What
        is there already stays, so run it again after an interruption. Each process of a launch fills in its share.
        Errors: HfDistillError without a CachedTeacher that has its model.
        """
        teacher = self.teacher
        if not isinstance(teacher, StoredTeacher) or teacher.live is None:
            raise HfDistillError(
                "fill_cache() came without a teacher to ask; expected teacher_model=CachedTeacher(path, "
                "teacher_model=...)."
            )
        filling = Filling(teacher, self._prepare_inputs, self.views.teacher, self._say)
        others = self.eval_dataset if isinstance(self.eval_dataset, Mapping) else {"evaluation": self.eval_dataset}
        sets = [(f"view {view + 1} of {views}", self.train_dataset, view) for view in range(views)]
        sets += [(name, dataset, 0) for name, dataset in others.items()]
        sets = [each for each in sets if each[1] is not None]
        place, processes = self.accelerator.process_index, self.accelerator.num_processes
        shares = [own_share(dataset, place, processes) for _, dataset, _ in sets]
        if all(isinstance(share, Sized) for share in shares):
            filling.total = sum(map(len, shares))
        with self._collating(self.data_collator):
            for (title, dataset, view), share in zip(sets, shares, strict=True):
                begin_view(dataset, view)
                filling((bar or _with_tqdm)(self._plain_loader(share, title), title))
        self.accelerator.wait_for_everyone()
        teacher.store.index.refresh()
        return filling.filled

    def _stored(
        self, cached: CachedTeacher, teacher: nn.Module, pairing: Pairing, processing_class: Any
    ) -> StoredTeacher:
        """A teacher whose targets are on the disk, with the model beside it where it came."""
        if self.args.mixup or self.args.cutmix:
            raise HfDistillError(
                "A CachedTeacher came with mixup or cutmix, which mix the pictures of each batch anew, so that no "
                "cache can hold them; expected the mixing inside the data set: ReplayedViews(dataset, mixup=...)."
            )
        fields = (*self.distillation_objective.fields, *self.task.fields)
        live, identity = None, None
        if cached.teacher_model is not None:
            identity = TeacherIdentity.of(
                teacher, self._precision(teacher), self.teacher_name, self.args.teacher_model_revision
            )
            portions = portions_of(self.args, self.task, teacher)
            live = LiveTeacher(self._prepared(teacher), None, pairing.read, fields, portions=portions)
        reading = Reading(pairing.read, pairing.columns, fields, pairing.tokens.columns)
        settings = cached.settings(processing_class)
        stored = StoredTeacher(cached.store(), self.task, reading, settings, teacher, live, identity)
        self.add_callback(KeepsTargets(stored))
        return stored

    def _precision(self, teacher: nn.Module) -> str:
        """In what type the teacher computes: its own, or that of Accelerate's autocast."""
        given, mixed = self.args.teacher_dtype, self.accelerator.mixed_precision
        if given not in (None, "auto"):
            return str(given)
        types = [str(each.dtype).removeprefix("torch.") for each in teacher.parameters()]
        return {"fp16": "float16", "bf16": "bfloat16"}.get(mixed) or (types[0] if types else "float32")

    def _prepared(self, teacher: nn.Module) -> nn.Module:
        raise NotImplementedError

    def _check_cache(self) -> None:
        """Look a few examples up, where a cache is there to be looked in."""
        if isinstance(self.teacher, StoredTeacher):
            with self._collating(self.data_collator):
                collator = self._get_collator_with_removed_columns(self.data_collator)
            check_sample(self.teacher, self.train_dataset, collator, self._prepare_inputs, self.views.teacher)

    def _say(self, sentence: str) -> None:
        if self.is_world_process_zero():
            logger.warning("Cache: %s", sentence)

    def _plain_loader(self, dataset: Any, description: str) -> DataLoader[Any]:
        """All examples in their order, in batches of the evaluation's size."""
        collator = self._get_collator_with_removed_columns(self.data_collator, description)
        size, workers = self.args.eval_batch_size, self.args.dataloader_num_workers
        return DataLoader(dataset, batch_size=size, collate_fn=collator, num_workers=workers)

    @contextmanager
    def _collating(self, collator: Any) -> Iterator[None]:
        """Make loaders with this collator, and with what a cache adds to its batches."""
        plain = self.data_collator
        if isinstance(self.teacher, StoredTeacher):
            store, complete = self.teacher.store, self.teacher.complete
            collator = CachingCollator(collator, store, self.views, self.task, complete)
        self.data_collator = collator
        try:
            yield
        finally:
            self.data_collator = plain


def _with_tqdm(batches: Any, title: str) -> Any:
    return tqdm(batches, desc=f"Cache, {title}")
