"""How a trainer gets its teacher: one model, several, or the student's own base; and what each reads of a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

from peft import PeftModel
from torch import nn

from hfdistill.adapters import check_base_teaches
from hfdistill.arguments import AnyTeacher, processing_class_of
from hfdistill.checkpoints import SavingTrainer
from hfdistill.ensembles import Gathered, Pupil, bound
from hfdistill.errors import HfDistillError
from hfdistill.mutual import check_peers, check_trainable_together
from hfdistill.pairing import Pairing, paired, view_differences
from hfdistill.shards import partitioned, same_everywhere
from hfdistill.tasks import Task
from hfdistill.teachers import (
    AverageTeacher,
    EmaTeacher,
    LiveTeacher,
    MappedTeacher,
    OwnBase,
    OwnBaseTeacher,
    Peer,
    PeerTeacher,
    Teacher,
)
from hfdistill.views import TEACHER_PREFIX, RawCollator, Views
from hfdistill.vocabulary import VocabularyAlignment

logger = logging.getLogger(__name__)


class TaughtTrainer(SavingTrainer):
    """A Trainer with a teacher beside the student, frozen and no part of it, and with views of a batch for both."""

    task: Task
    tokens: VocabularyAlignment
    views: Views
    model_init: Callable[..., nn.Module] | None  # type: ignore[assignment]
    _reads_raw_columns: bool

    def _bind_several(self, several: Gathered, row: Task, given: Any, example: Mapping[str, Any]) -> Any:
        """Make an ensemble and the views of a batch; returns what the teachers' own view is made by."""
        self.tokens = VocabularyAlignment()
        processing_classes = several.processing_classes(given, self.processing_class)
        models = (self.model, row, self.task, self.distillation_objective)
        pupil = Pupil(*models, self.processing_class, self.label_names, self.args.device)
        ensemble, self.views = bound(several, pupil, processing_classes, example, self._prepared)
        self.teacher = ensemble
        self.task = ensemble.task
        return processing_classes[0]

    def _bind_one(self, given: AnyTeacher, teacher: nn.Module | None, row: Task, processing_class: Any) -> Any:
        """Make a single teacher, if there is one, and the views; returns what the teacher's own view is made by."""
        self.tokens = VocabularyAlignment()
        if processing_class is None:
            revision = self.args.teacher_model_revision
            processing_class = processing_class_of(teacher, self.teacher_name, self.processing_class, revision)
        own = self._of_its_own(given) if self.distillation_objective.needs_teacher else None
        mapping = given if isinstance(given, MappedTeacher) else None
        self.teacher = own or self._teacher(teacher, row, processing_class, mapping, isinstance(given, Peer))
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
        return LiveTeacher(
            self._prepared(teacher),
            pairing.columns,
            pairing.read,
            (*self.distillation_objective.fields, *self.task.fields),
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
        """A teacher on this process's device, whole, with Accelerate's mixed precision.

        Errors: HfDistillError for one that ZeRO-3 has partitioned.
        """
        if partitioned(teacher):
            raise HfDistillError(
                f"The teacher's parameters ({type(teacher).__name__}) are partitioned by DeepSpeed's ZeRO-3, which "
                "gathers those of the student alone; expected a whole model: load it before the DistillationConfig is "
                "made, or give teacher_model its name."
            )
        known = list(self.accelerator._models)
        # By itself Accelerate leaves a model where it is under FSDP, which would bring it to the device.
        prepared: nn.Module = self.accelerator.prepare_model(
            teacher, device_placement=True if self.is_fsdp_enabled else None, evaluation_mode=True
        )
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
            # With it a model may be loaded on the first process alone, and FSDP hands out the student's weights only.
            same_everywhere(prepared)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # Among Accelerate's models it would pass for the student, which then is not prepared for an evaluation.
            self.accelerator._models = known
        return prepared

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
