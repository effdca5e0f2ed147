"""DistillationTrainer: where student, teacher and objective meet the Transformers Trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import nested_detach
from transformers.trainer_utils import EvalLoopOutput

from hfdistill import contract, loading
from hfdistill.adapters import adapted
from hfdistill.arguments import (
    AnyTeacher,
    check_batch_size,
    checked_args,
    first_example,
    label_of,
    student_settings,
    teacher_module,
)
from hfdistill.balance import GradientBalance, gradient_lengths
from hfdistill.boxes import with_pairs
from hfdistill.cache import StoredTeacher
from hfdistill.config import DistillationConfig
from hfdistill.ensembles import gathered
from hfdistill.faults import FaultWatch, lookups_explained
from hfdistill.features import FeatureWatch
from hfdistill.first_look import check_first_batch
from hfdistill.knowledge import StepContext
from hfdistill.mixing import MixingCollator, mixing_of
from hfdistill.mutual import turned
from hfdistill.objective import Objective, weight_at
from hfdistill.pairing import with_heads
from hfdistill.parts import PartSums
from hfdistill.replay import following
from hfdistill.rows import RowCounts
from hfdistill.sight import unwrapped
from hfdistill.tasks import Queries, Task, named_task, task_of
from hfdistill.tasks.objects import collated, padded
from hfdistill.teachers import LiveTeacher, OwnBaseTeacher, PeerTeacher
from hfdistill.teaching import TaughtTrainer
from hfdistill.views import RETURN_LOSS, as_mapping, fields_of, model_loss

logger = logging.getLogger(__name__)


class DistillationTrainer(TaughtTrainer):
    """A Trainer whose loss is an objective of terms, some of them against a frozen teacher.

    `model` and `teacher_model` are Hub ids, folders or modules whose output has `.logits`. Without `objective` the loss
    is `(1 - alpha) * task + alpha * T^2 * KL(teacher || student)` with alpha and T of `args`. `teacher_model` may be
    None only where the objective needs no teacher: that is the control. `teacher_processing_class` gives the teacher
    its own view of each raw example. `task` is a row of `hfdistill.tasks.TASKS`, its name, or a row of your own; by
    default the model's class tells it. `peft_config` (LoRA, ...) wraps the student: adapters alone learn and are saved,
    and `teacher_model=OwnBase()` takes the student without them as its teacher; `EnsembleTeacher` is several teachers,
    `MappedTeacher` one of other classes, `Peer` a second student. All other arguments are Trainer's own.

    The update depends on the global batch only, not on how micro-batches and processes cut it. Rows labelled -100
    (class indices) or NaN (floats) learn from the teacher alone. Logs carry each unweighted part as `loss/<term>`,
    evaluation as `eval_loss/<term>`. Errors: HfDistillError, raised here, for two models that do not fit together.
    """

    # Both say that our loss is already divided by the whole optimizer step; the second is read by Transformers >= 5.19.
    model_accepts_loss_kwargs = True
    loss_is_scaled_for_ga = True

    _signature_columns: list[str] | None  # type: ignore[assignment]

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | None = None,
        args: DistillationConfig | None = None,
        *,
        teacher_model: AnyTeacher = None,
        objective: Objective | None = None,
        teacher_processing_class: Any = None,
        task: Task | str | None = None,
        peft_config: PeftConfig | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        args = checked_args(args, trainer_kwargs)
        given = named_task(task) if task is not None else None
        several = gathered(teacher_model, args, objective, given)
        one = several.first if several else teacher_module(teacher_model, args, objective, given, model)
        teacher, self.teacher_name = one
        if isinstance(model, str):
            model = loading.load_student(model, teacher, student_settings(teacher_model, args.model_init_kwargs), given)
        self._peft_config = peft_config
        if model is not None:
            model = adapted(model, peft_config, args)
        smoothing = args.label_smoothing_factor
        if not isinstance(model, PreTrainedModel):
            # Trainer asks model.config about smoothing, which a plain module lacks; our task loss does the smoothing.
            args.label_smoothing_factor = 0.0
        super().__init__(model, args, **trainer_kwargs)
        self.args.label_smoothing_factor = smoothing
        self.model_accepts_loss_kwargs = True
        example = first_example(self.train_dataset)
        row = given or task_of(contract.bare(self.model), label_of(example))
        self.task = row.bound(contract.bare(self.model))
        if isinstance(self.task.layout, Queries) and trainer_kwargs.get("data_collator") is None:
            self.data_collator = collated
        if self.args.label_names is None or not self.task.label_names:
            self.label_names = list(self.task.label_names)
        self._objective_given = objective
        self._choose_objective()
        if several is not None:
            teacher_processing_class = self._bind_several(several, row, teacher_processing_class, example)
        else:
            teacher_processing_class = self._bind_one(teacher_model, teacher, row, teacher_processing_class)
        self._prepare_two_views(teacher, teacher_processing_class, example)
        self.faults = FaultWatch()
        collator = self._get_collator_with_removed_columns(self.data_collator)
        models = {"student": contract.bare(self.model)} | (
            {} if teacher is None else {"teacher": contract.bare(teacher)}
        )
        check_first_batch(self.train_dataset, collator, self.distillation_objective, self.task, models)
        self._bind_features()
        for callback in following(self.train_dataset, self.eval_dataset):
            self.add_callback(callback)
        self._check_cache()
        self._arrange_teacher()

    # ---- construction --------------------------------------------------------------------------------------------

    def _choose_objective(self) -> None:
        objective = self._objective_given or Objective.default(self.task, self.args.alpha, self.args.temperature)
        self.task = with_heads(self.task, objective)
        objective.check(contract.class_count(self.model, self.task), self.task)
        check_batch_size(self.args, objective, self.task, self.train_dataset)
        self.distillation_objective = objective
        training = self.train_dataset is not None
        self.mixing = mixing_of(self.args, self.task, self.label_names, objective) if training else None
        self.features = FeatureWatch.of(objective.active, self.args.device)
        self.balance = GradientBalance.of(objective.active, self.is_fsdp_enabled or self.is_deepspeed_enabled)
        names = [term.name for term in objective.active]
        needs_labels = [term.needs_labels for term in objective.active]
        self.train_parts = PartSums(names, needs_labels, self.args.device)
        self.eval_parts = PartSums(names, needs_labels, self.args.device)
        self.peer_parts = PartSums(names, needs_labels, self.args.device)

    def _bind_features(self) -> None:
        """Find out by one forward of each model what the terms compare, and make their projectors."""
        teacher = self.teacher
        if not self.features or self.features.bindings:
            return
        if not isinstance(teacher, (LiveTeacher, OwnBaseTeacher, StoredTeacher)):
            return
        bare = self.model if isinstance(teacher, OwnBaseTeacher) else unwrapped(teacher.model)
        teacher.sight = self.features.look(self.model, bare)
        inputs = self._first_inputs()
        if inputs:
            own = self.views.teacher(inputs)
            shown = teacher.look(own) if isinstance(teacher, StoredTeacher) else teacher(own).seen
            self.features.bind(self.model, self.views.student(inputs), shown, self.args.seed)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new student, with adapters where they were asked for."""
        return adapted(super().call_model_init(trial), self._peft_config, self.args)

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        self._choose_objective()

    # ---- columns -------------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = list(dict.fromkeys([*(self._signature_columns or []), *self.views.columns]))

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        return dataset if self._reads_raw_columns else super()._remove_unused_columns(dataset, description)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        if self._reads_raw_columns:
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    def get_train_dataloader(self) -> Any:
        """Trainer's, whose pictures are mixed where `mixup` or `cutmix` ask for it."""
        collator = self.data_collator if self.mixing is None else MixingCollator(self.data_collator, self.mixing)
        with self._collating(collator):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Trainer's, beside whose batches lies what a cache holds of them."""
        with self._collating(self.data_collator):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Trainer's, beside whose batches lies what a cache holds of them."""
        with self._collating(self.data_collator):
            return super().get_test_dataloader(test_dataset)

    # ---- the step ------------------------------------------------------------------------------------------------

    def get_batch_samples(  # type: ignore[override]
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], RowCounts | None]:
        """The micro-batches of one optimizer step, and the rows that they hold over all ranks."""
        batches = self._drawn(epoch_iterator, num_batches)
        if not batches:
            return batches, None
        own = self.distillation_objective.own_counts(batches, device)
        counts = RowCounts.of([self.task.rows(batch) for batch in batches], device, own)
        if self.accelerator.num_processes > 1:
            counts = counts.unstacked(self.accelerator.reduce(counts.stacked(), reduction="sum"))
        if self.balance.is_due(self.state.global_step):
            # Not the distributed wrapper, which waits for a backward of its own after each forward.
            of_batch = partial(self._parts, counts=counts)
            self.balance.add(gradient_lengths(self.model, batches, of_batch, self.accelerator))
        for parts in (self.train_parts, self.peer_parts):
            parts.begin_step(counts, self.accelerator.num_processes)
        return batches, counts

    def _parts(self, batch: Any, counts: RowCounts) -> dict[str, torch.Tensor]:
        with self.compute_loss_context_manager():
            _, context = self.outputs_and_context(self.model, self._prepare_inputs(batch))
            return self.distillation_objective.parts(self._smoothed(context), counts)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: RowCounts | torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The objective for one micro-batch, divided by the rows of its whole optimizer step."""
        counts = num_items_in_batch if isinstance(num_items_in_batch, RowCounts) else None
        if counts is None and self._loss_alone:
            counts = RowCounts.of([self.task.rows(inputs)], self.args.device)
        outputs, context = self.outputs_and_context(model, inputs, counts)
        self._watch_faults(context)
        if isinstance(num_items_in_batch, RowCounts):
            total = self._training_total(context, num_items_in_batch)
        else:
            total = self._evaluation_total(context)
        if not return_outputs:
            return total
        # Predictions are of all queries, in the model's own order, and not of the pairs that the terms see.
        logits = context.logits if context.pairs is None else self.task.logits(outputs, inputs)
        return total, as_mapping(outputs, logits, self.task)

    def outputs_and_context(
        self, model: nn.Module, inputs: Mapping[str, Any], counts: RowCounts | None = None
    ) -> tuple[Any, StepContext]:
        """What the student gives for a micro-batch, and what the terms see of it and of the teacher.

        With the `counts` of the rows a fused head may compute its terms here and give no logits.
        """
        fused = None if counts is None else self._fused_head()
        rows, epoch = self.task.rows(inputs), float(self.state.epoch or 0.0)
        with lookups_explained(inputs):
            # The teacher first: its activations are gone before the student's have to be kept.
            peer = self.teacher if isinstance(self.teacher, PeerTeacher) and model.training else None
            targets = None if peer else self._targets(inputs, fused)
            # Except for a peer, which learns too, and runs inside the student's forward.
            beside = peer.beside(self.model, self.views.teacher(inputs)) if peer else nullcontext()
            smoothing = self.args.label_smoothing_factor
            within = nullcontext() if not (fused and counts) else fused.within(rows, targets, counts, epoch, smoothing)
            watching = self.features.watching(self.model, self.views.student(inputs))
            with watching as seen, beside as forward, within as step:
                seen.told(inputs, None if targets is None else targets.seen)
                outputs = model(**seen.inputs, **self.features.arguments)
            targets = targets if forward is None else forward.targets()
        logits = self.task.logits(outputs, inputs)
        features = self.features.step(seen, outputs, targets)
        context = StepContext(
            logits,
            targets,
            rows,
            self.task,
            model_loss=model_loss(outputs, self.task),
            fields=fields_of(outputs, self.distillation_objective.fields),
            inputs=inputs,
            features=features,
            epoch=epoch,
            balanced=self.balance.weights,
            learned=self.features.temperatures(seen),
            fused=None if step is None else step.done(logits),
        )
        return outputs, with_pairs(context, outputs)

    def _training_total(self, context: StepContext, counts: RowCounts) -> torch.Tensor:
        total, parts = self.distillation_objective(self._smoothed(context), counts)
        self.train_parts.add(parts)
        of_peer = turned(context)
        if of_peer is not None:
            other, parts = self.distillation_objective(self._smoothed(of_peer), counts)
            self.peer_parts.add(parts)
            total = total + other
        # DDP, FSDP and DeepSpeed average gradients over ranks, and the counts are global already.
        processes: int = self.accelerator.num_processes
        return total * processes if processes > 1 else total

    def _smoothed(self, context: StepContext) -> StepContext:
        return replace(context, label_smoothing=self.args.label_smoothing_factor)

    def _evaluation_total(self, context: StepContext) -> torch.Tensor:
        device = context.logits.device
        counts = RowCounts.of([context.rows], device, self.distillation_objective.own_counts([context.inputs], device))
        total, parts = self.distillation_objective(context, counts)
        self.eval_parts.add_means(parts, counts)
        return total

    def _watch_faults(self, context: StepContext) -> None:
        step = self.state.global_step + 1
        where = f"a batch of optimizer step {step}" if self.model.training else "an evaluation batch"
        if context.targets is not None:
            self.faults.targets(context.targets, where, step)
        if self.task.integer_labels:
            classes = context.logits.shape[-1] if context.fused is None else context.fused.classes
            self.faults.labels(context.rows, self.task.compared or classes, where, step)

    # ---- logs and evaluation -------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as Trainer does, with each term's mean since the last log."""
        if "loss" in logs:
            self.faults.check()
            logs.update(self.train_parts.means(self.accelerator, prefix=""))
            if isinstance(self.teacher, PeerTeacher):
                logs.update(self.peer_parts.means(self.accelerator, prefix="peer/"))
            logs.update(self._changing_weights())
            logs.update(self.features.learned_temperatures())
        super().log(logs, *args, **kwargs)

    def _changing_weights(self) -> dict[str, float]:
        """The present weights that are no constants, as `weight/<term>`."""
        changing = [term for term in self.distillation_objective.active if not isinstance(term.weight, float)]
        epoch, balanced = float(self.state.epoch or 0.0), self.balance.weights
        return {f"weight/{term.name}": weight_at(term, epoch, balanced) for term in changing}

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop, with each term's mean over the evaluated rows as `<prefix>_loss/<term>`."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        self.faults.check()
        metrics = output.metrics or {}
        metrics.update(self.eval_parts.means(self.accelerator, prefix=f"{metric_key_prefix}_"))
        return output._replace(metrics=metrics)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Trainer's step; without labels the student alone predicts."""
        if not self.label_names:
            # Such tasks have no label column; this is how Trainer is told to score a batch all the same.
            inputs = {**inputs, RETURN_LOSS: True}
        if all(inputs.get(name) is not None for name in self.label_names):
            self._loss_alone = prediction_loss_only
            try:
                scored = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            finally:
                self._loss_alone = False
            if scored[2] is None or not isinstance(self.task.layout, Queries):
                return scored
            # Trainer puts batches together entry by entry, and a picture's objects are a list of their own.
            return scored[0], scored[1], padded(scored[2])
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**self.views.student(inputs))
        if prediction_loss_only:
            return None, None, None
        given = as_mapping(outputs, self.task.logits(outputs, inputs), self.task)
        ignored = {"loss", *(contract.keys_ignored_at_inference(self.model) if ignore_keys is None else ignore_keys)}
        kept = tuple(value for key, value in given.items() if key not in ignored)
        detached: Any = nested_detach(kept[0] if len(kept) == 1 else kept)  # type: ignore[no-untyped-call]
        return None, detached, None
