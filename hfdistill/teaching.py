"""How a trainer gets its teacher: one model, several, or the student's own base; and what each reads of a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hfdistill.adapters import check_base_teaches
from hfdistill.arguments import AnyTeacher, processing_class_of
from hfdistill.cache import CachedTeacher
from hfdistill.caching import CachingTrainer
from hfdistill.channels import contiguous, laid_out, lay_out, pictures_laid_out
from hfdistill.ensembles import Gathered, Pupil, bound
from hfdistill.errors import HfDistillError
from hfdistill.faults import lookups_explained
from hfdistill.first_look import first_batch
from hfdistill.fused_head import FusedHead, Pair, fused_head_of
from hfdistill.heads import KnownHeads
from hfdistill.mutual import check_peers, check_trainable_together
from hfdistill.pairing import Pairing, paired, view_differences
from hfdistill.tasks import Task
from hfdistill.tasks.layouts import EXAMPLES
from hfdistill.teacher_forward import check_own_forward, further_arguments, portions_of, prepared, reads_no_logits
from hfdistill.teachers import (
    AverageTeacher,
    EmaTeacher,
    LiveEnsemble,
    LiveTeacher,
    MappedTeacher,
    OwnBase,
    OwnBaseTeacher,
    Peer,
    PeerTeacher,
    Targets,
    Teacher,
)
from hfdistill.teachers.ahead import Ahead
from hfdistill.views import TEACHER_PREFIX, RawCollator, Views
from hfdistill.vocabulary import VocabularyAlignment

logger = logging.getLogger(__name__)


class TaughtTrainer(CachingTrainer):
    """A Trainer with a teacher beside the student, frozen and no part of it, and with views of a batch for both."""

    task: Task
    tokens: VocabularyAlignment
    views: Views
    model_init: Callable[..., nn.Module] | None  # type: ignore[assignment]
    _reads_raw_columns: bool
    _fused: tuple[Pair, FusedHead | None] | None = None
    _heads: KnownHeads
    _ahead: Ahead | None = None
    # Whether an evaluation asks for the loss alone, and for no logits.
    _loss_alone = False

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new student, laid out in memory as the arguments ask for."""
        model: nn.Module = super().call_model_init(trial)
        return laid_out(model) if self.args.channels_last else model

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        ready: dict[str, Any] = super()._prepare_inputs(inputs)
        return pictures_laid_out(ready) if self.args.channels_last else ready

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.channels_last and not isinstance(self.model, (PreTrainedModel, PeftModel)):
            # Such a state goes to the file as it is, and a safetensors file holds no other layout.
            state_dict = contiguous(self.model.state_dict() if state_dict is None else state_dict)
        super()._save(output_dir, state_dict)

    def _lay_out(self, teachers: Mapping[str, nn.Module | None]) -> None:
        """Bring both models to channels last, where the arguments ask for it."""
        if not self.args.channels_last:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.teacher_sharded:
            raise HfDistillError(
                "channels_last=True came with FSDP, DeepSpeed or teacher_sharded, which cut parameters along their "
                "first axis; expected whole models. Leave it out."
            )
        lay_out({"student": self.model, **teachers})

    def _arrange_teacher(self) -> None:
        """Have the teacher do what the terms ask for and no more, a micro-batch ahead where it may be."""
        self._look_for_heads()
        if self.args.teacher_prefetch and self.teacher is not None:
            if not isinstance(self.teacher, (LiveTeacher, LiveEnsemble)):
                raise HfDistillError(
                    f"teacher_prefetch came beside a {type(self.teacher).__name__}, whose targets are there at once or "
                    "depend on the step before; expected a model in memory that stands still. Leave it out."
                )
            if self.args.device.type != "cuda":
                logger.warning("teacher_prefetch: there is no CUDA device, so nothing runs beside the student.")
            self._ahead = Ahead(self._asked_ahead, self.args.device)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's; the teacher may be on its way to the next micro-batch meanwhile."""
        with nullcontext() if self._ahead is None else self._ahead.of(inputs):
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def _drawn(self, source: Iterator[Any], count: int) -> list[Any]:
        """The next micro-batches."""
        return list(islice(source, count)) if self._ahead is None else self._ahead.batches(source, count)

    def _asked_ahead(self, batch: Mapping[str, Any]) -> Targets | None:
        with lookups_explained(batch), self.compute_loss_context_manager():
            return self._asked(self._prepare_inputs(dict(batch)), self._fused_head())

    def _targets(self, inputs: Mapping[str, Any], fused: FusedHead | None = None) -> Targets | None:
        """What the teacher says of a micro-batch on the device, or has said already."""
        present = None if self._ahead is None else self._ahead.present()
        return self._asked(inputs, fused) if present is None else present.targets

    def _asked(self, inputs: Mapping[str, Any], fused: FusedHead | None) -> Targets | None:
        if self.teacher is None or not self.distillation_objective.needs_teacher:
            return None
        own = self.views.teacher(inputs)
        return self.teacher(own) if fused is None else fused.targets(self.teacher, own)

    def _look_for_heads(self) -> None:
        """Find out what needs no logits over a vocabulary: the terms on them, or a teacher that shows other things."""
        self._fused_head()
        teacher, objective = self.teacher, self.distillation_objective
        if type(teacher) is not LiveTeacher or self.args.torch_compile:
            return
        unread = reads_no_logits(teacher.model, objective, self.task)
        head = self._heads.of(teacher.model, self.task) if unread else None
        if head is not None:
            self.teacher = teacher.without_head(head.replaced)

    def _sample(self, model: nn.Module) -> Mapping[str, Any]:
        """What a model of this training reads of the first two examples."""
        own = self.views.student if model is self.model else self.views.teacher
        return own(self._first_inputs())

    def _first_inputs(self) -> Mapping[str, Any]:
        """The first two examples as a batch on the device; nothing without data."""
        with self._collating(self.data_collator):
            collator = self._get_collator_with_removed_columns(self.data_collator)
        dataset: Any = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()), None)
        batch = first_batch(dataset, collator)
        return self._prepare_inputs(dict(batch)) if batch else {}

    def _fused_head(self) -> FusedHead | None:
        """What computes losses over a vocabulary without logits; looked for once with each student and objective."""
        pair = Pair(self.model, self.teacher, self.task, self.distillation_objective, self.tokens.columns)
        if self._fused is None:
            self._heads = KnownHeads(self._sample)
        if self._fused is None or self._fused[0] != pair:
            self._fused = (pair, fused_head_of(pair, self.args, self._heads))
        return self._fused[1]

    def _bind_several(self, several: Gathered, row: Task, given: Any, example: Mapping[str, Any]) -> Any:
        """Make an ensemble and the views of a batch; returns what the teachers' own view is made by."""
        self.tokens = VocabularyAlignment()
        self._lay_out({member.who: member.module for member in several.members})
        processing_classes = several.processing_classes(given, self.processing_class)
        models = (self.model, row, self.task, self.distillation_objective)
        pupil = Pupil(*models, self.processing_class, self.label_names, self.args.device)
        ensemble, self.views = bound(several, pupil, processing_classes, example, self._prepared)
        for member in ensemble.members:
            if isinstance(member.teacher, LiveTeacher):
                member.teacher.portions = portions_of(self.args, self.task, member.teacher.model)
        self.teacher = ensemble
        self.task = ensemble.task
        return processing_classes[0]

    def _bind_one(self, given: AnyTeacher, teacher: nn.Module | None, row: Task, processing_class: Any) -> Any:
        """Make a single teacher, if there is one, and the views; returns what the teacher's own view is made by."""
        self.tokens = VocabularyAlignment()
        if processing_class is None:
            revision = self.args.teacher_model_revision
            processing_class = processing_class_of(teacher, self.teacher_name, self.processing_class, revision)
        check_own_forward(self.args, given)
        self._lay_out({"teacher": teacher})
        own = self._of_its_own(given) if self.distillation_objective.needs_teacher else None
        mapping = given if isinstance(given, MappedTeacher) else None
        cached = given if isinstance(given, CachedTeacher) else None
        self.teacher = own or self._teacher(teacher, row, processing_class, mapping, isinstance(given, Peer), cached)
        self.views = Views(self.model, self.model if own else teacher, self.label_names, self.task)
        self.views.translate = self.tokens.translation(self.task)
        return processing_class

    def _teacher(
        self,
        teacher: nn.Module | None,
        row: Task,
        processing_class: Any,
        mapping: MappedTeacher | None,
        learning: bool,
        cached: CachedTeacher | None = None,
    ) -> Teacher | None:
        if learning and not self.distillation_objective.needs_teacher:
            return None
        if teacher is None:
            if self.distillation_objective.needs_teacher:
                raise HfDistillError(
                    f"No teacher came, and {self.distillation_objective!r} needs one; pass teacher_model, or "
                    "objective=Objective([TaskLoss()]) to train without."
                )
            return None
        processing_classes = (self.processing_class, processing_class)
        pairing = paired(
            self.model,
            teacher,
            row,
            self.task,
            self.distillation_objective,
            processing_classes,
            self.args.device,
            mapping,
            learning,
        )
        self.task, self.tokens = pairing.task, pairing.tokens
        if learning:
            return self._peer(teacher, pairing)
        if cached is not None:
            return self._stored(cached, teacher, pairing, processing_class or self.processing_class)
        told = further_arguments(teacher, self.distillation_objective, self.task)
        return LiveTeacher(
            self._prepared(teacher),
            None if told else pairing.columns,
            EXAMPLES.logits if told else pairing.read,
            (*self.distillation_objective.fields, *self.task.fields),
            portions=portions_of(self.args, self.task, teacher),
            arguments=told,
        )

    def _peer(self, peer: nn.Module, pairing: Pairing) -> PeerTeacher:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.n_gpu > 1:
            raise HfDistillError(
                "A Peer came with FSDP, DeepSpeed or DataParallel, which take the student apart; expected one device, "
                "or several processes with DistributedDataParallel (torchrun, accelerate launch)."
            )
        if self.model_init is not None:
            raise HfDistillError(
                "A Peer came with model_init, which makes the student anew for each training and not the peer; "
                "expected model=, and a trainer of its own for each trial of a search."
            )
        if pairing.tokens.columns is not None:
            raise HfDistillError(
                "The student and its peer have heads of different vocabularies; expected one tokenizer and heads of "
                "one size, as both learn from the same tokens."
            )
        check_peers(self.model, peer, self.task, self.distillation_objective)
        groups = None if self.optimizer is None else self.optimizer.param_groups
        optimized = None if groups is None else [each for group in groups for each in group["params"]]
        check_trainable_together(self.model, peer, optimized, self.accelerator.num_processes)
        run = self.accelerator.prepare_model(peer, evaluation_mode=True)
        return PeerTeacher(peer, run, pairing.read, pairing.columns)

    def _prepared(self, teacher: nn.Module) -> nn.Module:
        """A teacher as it is run, on its device and in its dtype."""
        return prepared(
            teacher, self.args, self.accelerator, fsdp=self.is_fsdp_enabled, deepspeed=self.is_deepspeed_enabled
        )

    def _of_its_own(self, given: AnyTeacher) -> Teacher | None:
        """A teacher that is made of the student, where one was asked for."""
        fields = (*self.distillation_objective.fields, *self.task.fields)
        if isinstance(given, EmaTeacher):
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise HfDistillError(
                    "EmaTeacher averages whole weights, and FSDP and DeepSpeed shard them; expected a run on one "
                    "device or with DistributedDataParallel."
                )
            self.teacher_name = None
            return AverageTeacher(self.model, given.decay, self.task.logits, fields)
        if not isinstance(given, OwnBase):
            return None
        check_base_teaches(self.model)
        self.teacher_name = self._start()
        return OwnBaseTeacher(lambda: cast(PeftModel, self.model), self.task.logits, fields)

    def _prepare_two_views(self, teacher: nn.Module | None, processing_class: Any, example: Mapping[str, Any]) -> None:
        if any(key.startswith(TEACHER_PREFIX) for key in example):
            self._reads_raw_columns = False
            return
        differences = []
        if teacher is not None:
            processing_classes = (self.processing_class, processing_class)
            differences = view_differences(self.model, teacher, self.task, processing_classes)
        unprocessed = bool(example) and not any(key in self.views.student_names for key in example)
        self._reads_raw_columns = bool(differences) or (unprocessed and self.processing_class is not None)
        if not self._reads_raw_columns:
            return
        if differences and (processing_class is None or self.processing_class is None):
            raise HfDistillError(
                f"Student and teacher read different inputs ({'; '.join(differences)}). Pass processing_class and "
                "teacher_processing_class with raw image or text columns, or give the teacher's tensors in columns "
                "with the prefix 'teacher_'."
            )
        if differences:
            logger.info("Teacher and student each get their own view: %s.", "; ".join(differences))
        teachers_own = processing_class if differences else None
        self.data_collator = RawCollator(
            self.data_collator, self.processing_class, teachers_own, self.views, self.args.input_columns
        )
