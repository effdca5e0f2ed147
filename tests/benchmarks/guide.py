"""The trainer of the Transformers guide "Knowledge distillation for computer vision", repaired just enough to run.

The pattern is the guide's: a Trainer subclass that holds student and teacher, calls `self.student` in `compute_loss`,
gives the teacher the same inputs (labels included), and mixes the student's own `outputs.loss` with
`KLDivLoss("batchmean") * T ** 2` by `lambda_param`. The code is ours; repaired for Transformers 5.23 is

- `compute_loss` takes `num_items_in_batch`, which Trainer passes and without which the guide stops at its first step;
- model and arguments go to Trainer under their names: the guide's own signature puts a positional argument in the place
  of a model;
- both softmaxes say `dim=-1`, as the guide does and many copies of it do not.

Not repaired, because it runs: the loss is not divided by accumulation steps, the teacher is frozen by `no_grad` alone,
computes a loss of its own and is moved by hand, and the step goes past whatever wraps the model for several processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments


class GuideTrainer(Trainer):  # type: ignore[misc]
    """A Trainer with the loss `(1 - lambda_param) * outputs.loss + lambda_param * T ** 2 * KL(teacher || student)`.

    `model` is the student; both models are modules, the guide loads no names. 5 and 0.5 are the guide's values.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        teacher_model: nn.Module,
        temperature: float = 5.0,
        lambda_param: float = 0.5,
        **trainer_kwargs: Any,
    ) -> None:
        super().__init__(model=model, args=args, **trainer_kwargs)
        self.student = model
        self.teacher = teacher_model.to(self.args.device)
        self.teacher.eval()
        self.loss_function = nn.KLDivLoss(reduction="batchmean")
        self.temperature = temperature
        self.lambda_param = lambda_param

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The mixed loss of one batch, a mean over its examples."""
        student_output = self.student(**inputs)
        with torch.no_grad():
            teacher_output = self.teacher(**inputs)
        soft_student = functional.log_softmax(student_output.logits / self.temperature, dim=-1)
        soft_teacher = functional.softmax(teacher_output.logits / self.temperature, dim=-1)
        distillation_loss = self.loss_function(soft_student, soft_teacher) * self.temperature**2
        loss = (1.0 - self.lambda_param) * student_output.loss + self.lambda_param * distillation_loss
        return (loss, student_output) if return_outputs else loss
