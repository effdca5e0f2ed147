"""Plain PyTorch modules, and a loss of your own, in one screen and some seconds.

    python examples/custom_loss.py --num_train_epochs 20 --learning_rate 5e-3 --per_device_train_batch_size 32

A loss is any function of student and teacher logits, both `(rows, classes)`, that gives one value a row. It knows
nothing of masks, batches or processes: the objective averages over the rows of the whole optimizer step.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import HfArgumentParser

from hfdistill import DistillationConfig, DistillationTrainer, Logits, Objective, TaskLoss


class Perceptron(nn.Module):
    """Two layers on 64 pixels; all that is asked of a model is an output with `.logits`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        """Logits of a batch of images, `(rows, 10)`."""
        return SimpleNamespace(logits=self.layers(pixels))


def huber(student: torch.Tensor, teacher: torch.Tensor, delta: float = 1.0) -> torch.Tensor:
    """Mean over classes of the Huber distance between centred logits, one value a row."""
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (student, teacher)]
    return nn.functional.huber_loss(*centred, delta=delta, reduction="none").mean(-1)


def main() -> None:
    """Train a teacher on the labels, then a student on labels and teacher."""
    (args,) = HfArgumentParser(DistillationConfig).parse_args_into_dataclasses()
    pixels, labels = load_digits(return_X_y=True)
    rows = [{"pixels": torch.tensor(x / 16).float(), "label": int(y)} for x, y in zip(pixels, labels, strict=True)]
    train, test = rows[:1200], rows[1200:]

    teacher = Perceptron(256)
    control = Objective([TaskLoss()])
    DistillationTrainer(teacher, args, teacher_model=None, objective=control, train_dataset=train).train()

    objective = Objective([TaskLoss(weight=0.2), Logits(huber, weight=1.0, name="huber", delta=2.0)])
    trainer = DistillationTrainer(
        Perceptron(16), args, teacher_model=teacher, objective=objective, train_dataset=train, eval_dataset=test
    )
    trainer.train()
    predictions = trainer.predict(test)
    agreement = (predictions.predictions.argmax(-1) == predictions.label_ids).mean()
    print(f"accuracy of the student {agreement:.3f}, loss/huber {predictions.metrics['test_loss/huber']:.3f}")


if __name__ == "__main__":
    main()
