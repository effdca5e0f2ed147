"""What a stage leaves behind: predictions over the test split, its numbers, and the folder that appears whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback

from hfdistill._atomic import new_folder, write_json, write_tensors
from hfdistill.config import DistillationConfig
from hfdistill.contract import aligned_classes, bare, class_names
from hfdistill.data import LabelSpace, whole_batch
from hfdistill.knowledge import TaskLoss
from hfdistill.measure import parameter_count, saved_bytes
from hfdistill.metrics import metric_values
from hfdistill.objective import Objective
from hfdistill.stages.exam import Exam, Outcome
from hfdistill.stages.folders import STAGE_FILE, Stage
from hfdistill.stages.models import Model
from hfdistill.stages.training import Trained, final_folder
from hfdistill.tasks import LABEL_LOSSES
from hfdistill.trainer import DistillationTrainer

PREDICTIONS = "predictions.safetensors"
LEFT_OUT = ("training_args.bin", "README.md")
"""A pickle with this machine's paths (stage.json says the same in words), and PEFT's form for a card, not filled in."""
NO_TRAINING = Trained(0.0, 0, 0, [])


@dataclass(frozen=True)
class Predictions:
    """Logits in the order of the label space, over a split in its order."""

    logits: Tensor
    labels: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """What is written to the stage's folder."""
        return {"logits": self.logits, "labels": self.labels}

    def metrics(self, space: LabelSpace) -> dict[str, float]:
        """The task's metrics and the mean loss against the labels."""
        label_loss = LABEL_LOSSES[space.problem_type]
        loss = label_loss(self.logits, _as_targets(self.labels, self.logits), 0.0).mean()
        return {**metric_values(space.problem_type, self.logits.numpy(), self.labels.numpy()), "loss": float(loss)}


def _as_targets(labels: Tensor, logits: Tensor) -> Tensor:
    return labels.reshape(logits.shape) if labels.is_floating_point() else labels


def predictions(exam: Exam) -> Predictions:
    """A model's logits over a split; a teacher whose classes stand in another order is put in ours.

    Errors: HfDistillError when its classes are not those of the data.
    """
    model, examples = exam.model, exam.own_examples()
    assert examples.labels is not None, "an example has a label"
    columns = aligned_classes(list(exam.space.names), class_names(model)).tensor()
    # Without labels: those of the data would be wrong for a teacher whose classes stand in another order.
    unlabelled = replace(examples, labels=None)
    config = copy(exam.config)
    # Grouping by length is for training, but Trainer evaluates in that order too, and the labels lie in the split's.
    config.train_sampling_strategy = "random"
    trainer = DistillationTrainer(
        model, config, objective=Objective([TaskLoss()]), eval_dataset=unlabelled, data_collator=whole_batch
    )
    trainer.remove_callback(PrinterCallback)
    logits = torch.from_numpy(np.asarray(trainer.predict(unlabelled).predictions, dtype=np.float32))
    logits = logits.reshape(len(examples), -1)
    return Predictions(logits if columns is None else logits[:, columns], examples.labels)


def finish(
    stage: Stage, model: Model, config: DistillationConfig | None, test: Outcome | None, facts: Mapping[str, Any]
) -> None:
    """Put the stage's folder in place: the trained model (if `config` is given), its predictions, stage.json.

    Without a `test` there are no predictions.
    """
    with new_folder(stage.folder) as folder:
        if config is not None:
            for file in final_folder(config).iterdir():
                if file.name not in LEFT_OUT:
                    shutil.move(file, folder / file.name)
            if isinstance(model, PeftModel):
                _write_config(model, folder)
        if test is not None:
            write_tensors(folder / PREDICTIONS, test.tensors())
        write_json(folder / STAGE_FILE, {**facts, **_size(model, folder if config is not None else None)})


def model_copied(stage: Path, target: Path) -> None:
    """Copy the model that a finished stage has left."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(stage, target, ignore=shutil.ignore_patterns(STAGE_FILE, PREDICTIONS))


def training_of(stage: Path) -> Trained:
    """What a finished stage has recorded of its training."""
    facts = json.loads((stage / STAGE_FILE).read_text(encoding="utf-8"))
    return Trained(facts["seconds"], facts["steps"], facts["examples_seen"], facts["log_history"])


def _size(model: Model, folder: Path | None) -> dict[str, int]:
    stored = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if isinstance(model, PeftModel):
        # The head that was there before its trained copy is no part of the student.
        named = list(model.named_parameters())
        replaced = sum(value.numel() for name, value in named if ".original_module." in name)
        used = [value for name, value in named if ".original_module." not in name]
        trained, every = model.get_nb_trainable_parameters()  # knows those that lie two to a byte
        return {
            "parameters": every - replaced,
            "trained_parameters": trained,
            "bytes": sum(value.numel() * value.element_size() for value in used),
        }
    return {"parameters": parameter_count(model), "bytes": stored if folder is None else saved_bytes(folder)}


def _write_config(model: PeftModel, folder: Path) -> None:
    """The config of the whole model beside its adapters, which know nothing of classes."""
    base = bare(model)
    assert isinstance(base, PreTrainedModel), "recipes name their student"
    config = deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)
