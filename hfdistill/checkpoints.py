"""What a training leaves on disk: the student alone, projectors beside its checkpoints, the model card."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from hfdistill import contract
from hfdistill._version import __version__
from hfdistill.adapters import check_checkpoint
from hfdistill.balance import GradientBalance
from hfdistill.card import CardFacts, extend_card, known_licence, term_facts
from hfdistill.config import DistillationConfig
from hfdistill.errors import HfDistillError
from hfdistill.faults import FaultWatch
from hfdistill.features import FeatureWatch
from hfdistill.features.projectors import ATTACHED, without_projectors
from hfdistill.loading import has_weights, restore
from hfdistill.objective import Objective
from hfdistill.sight import unwrapped
from hfdistill.teachers import AverageTeacher, PeerTeacher, Teacher

logger = logging.getLogger(__name__)

BESIDE = "a second student, which learnt from this one in turn: deep mutual learning, arXiv 1706.00384"


class SavingTrainer(Trainer):
    """A Trainer whose checkpoints hold the student, whole or its adapters, and its projectors beside it."""

    args: DistillationConfig
    model: nn.Module
    # Not `objective`: Trainer keeps a number of that name during a search over hyperparameters.
    distillation_objective: Objective
    features: FeatureWatch
    balance: GradientBalance
    faults: FaultWatch
    teacher: Teacher | None
    teacher_name: str | None

    def _bind_features(self) -> None:
        """Make the projectors that the objective needs, where that has not been done."""
        raise NotImplementedError

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trainer's loop, with the projectors on the student as long as it lasts."""
        self._bind_features()
        self._check_sharding()
        checkpoint = kwargs.get("resume_from_checkpoint")
        if isinstance(self.teacher, AverageTeacher):
            self.teacher.restart(self.model)
            self.remove_callback(Averaging)
            self.add_callback(Averaging(self.teacher))
        if checkpoint is not None:
            self.features.load(Path(checkpoint))
            for companion in self._companions():
                companion.load(Path(checkpoint))
        with ExitStack() as stack:
            stack.enter_context(self.features.projectors.attached(self.model))
            if isinstance(self.teacher, PeerTeacher):
                stack.enter_context(self.teacher.attached(self.model))
            return super()._inner_training_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student alone; while a training lasts with its projectors beside it. All processes have to call."""
        if self.features.attached(self.model):
            folder = Path(output_dir or str(self.args.output_dir))
            self.features.projectors.save(folder, writes=self.args.should_save)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.is_in_train and self.args.should_save:
            for companion in self._companions():
                companion.save(Path(output_dir or str(self.args.output_dir)))
        if ATTACHED & set(unwrapped(self.model)._modules) and self.args.should_save:
            state_dict = without_projectors(self.model.state_dict() if state_dict is None else state_dict)
        super()._save(output_dir, state_dict)

    def save_peer(self, output_dir: str) -> None:
        """Write the peer that has learnt beside the student, as `save_model` writes the student.

        Errors: HfDistillError where `teacher_model` was no Peer, and for a peer that is no Transformers model.
        """
        peer = self.teacher.model if isinstance(self.teacher, PeerTeacher) else None
        if not isinstance(peer, (PreTrainedModel, PeftModel)):
            raise HfDistillError(
                f"save_peer() came, and the peer is {'missing' if peer is None else type(peer).__name__}; expected a "
                "Transformers model in teacher_model=Peer(...). Any other module is trainer.teacher.model, to be saved "
                "as you like."
            )
        if self.args.should_save:
            peer.save_pretrained(output_dir)

    def _check_sharding(self) -> None:
        """Refuse what beside the student would not be gathered whole."""
        version = self.accelerator.state.fsdp_plugin.fsdp_version if self.is_fsdp_enabled else 2
        if len(self.features.projectors) and (version == 1 or self.is_fsdp_xla_enabled):
            raise HfDistillError(
                f"The objective trains {len(self.features.projectors)} modules beside the student (projectors, learned "
                "temperatures), and FSDP came in its first version or that of XLA; expected fsdp_config "
                "{'version': 2}, DeepSpeed or DistributedDataParallel."
            )

    def _companions(self) -> list[GradientBalance | AverageTeacher | PeerTeacher]:
        """What of this training lies in a checkpoint beside the student and its projectors."""
        teacher = [self.teacher] if isinstance(self.teacher, (AverageTeacher, PeerTeacher)) else []
        return [*([self.balance] if self.balance.terms else []), *teacher]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.faults.check()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PreTrainedModel) and self._is_whole(resume_from_checkpoint):
            restore(self.model, resume_from_checkpoint)
        else:
            if isinstance(self.model, PeftModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                check_checkpoint(self.model, resume_from_checkpoint)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            self.features.load(Path(best))
            if isinstance(self.teacher, PeerTeacher):
                self.teacher.load(Path(best))
        if isinstance(self.model, PreTrainedModel) and best is not None and self._is_whole(best):
            logger.info("Loading the best student from %s (score %s).", best, self.state.best_metric)
            restore(self.model, best)
        else:
            super()._load_best_model()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write Trainer's card, then what was distilled from whom into it."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            extend_card(Path(self.args.output_dir or "."), self._card_facts())

    def _card_facts(self) -> CardFacts:
        return CardFacts(
            name=Path(self.args.output_dir or ".").resolve().name,
            teacher=self.teacher_name,
            teacher_revision=self.args.teacher_model_revision,
            teacher_training=BESIDE if isinstance(self.teacher, PeerTeacher) else None,
            teacher_licence=known_licence(self.teacher_name, self.args.teacher_model_revision),
            terms=term_facts(self.distillation_objective),
            base_model=self._start(),
            adapter=isinstance(self.model, PeftModel),
            versions={"hfdistill": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
        )

    def _start(self) -> str | None:
        bare = contract.bare(self.model)
        return (bare.config._name_or_path or None) if isinstance(bare, PreTrainedModel) else None

    def _is_whole(self, checkpoint: str) -> bool:
        return has_weights(checkpoint) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)


class Averaging(TrainerCallback):
    """Takes the student's weights into the moving average after each optimizer step."""

    def __init__(self, teacher: AverageTeacher) -> None:
        self.teacher = teacher

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called before a checkpoint of this step is written."""
        self.teacher.update(kwargs["model"])
