"""Temperature and alpha by optuna, and the best student before the test, in some seconds.

    python examples/hyperparameter_search.py --n_trials 8 --num_train_epochs 10 --learning_rate 2e-2 \
        --per_device_train_batch_size 64

It is Trainer's own `hyperparameter_search`: each trial draws its numbers from a space, trains a new student and is
judged on validation data; the test rows are looked at once, at the end. With `--storage sqlite:///study.db` the same
command again adds trials to those of before. For a few listed values of a recipe there is `hfdistill sweep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import EvalPrediction, HfArgumentParser, set_seed

from hfdistill import DistillationConfig, DistillationTrainer, Objective, TaskLoss, distillation_space


@dataclass
class ScriptArguments:
    """How long to search."""

    n_trials: int = 8
    storage: str | None = None


class Perceptron(nn.Module):
    """Two layers on 64 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        """Logits of a batch of images, `(rows, 10)`."""
        return SimpleNamespace(logits=self.layers(pixels))


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows whose highest logit is at the label."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Train a teacher, search for the student's settings, and test the student that has the best."""
    script, args = HfArgumentParser((ScriptArguments, DistillationConfig)).parse_args_into_dataclasses()
    set_seed(args.seed)
    pixels, labels = load_digits(return_X_y=True)
    rows = [{"pixels": torch.tensor(x / 16).float(), "label": int(y)} for x, y in zip(pixels, labels, strict=True)]
    train, validation, test = rows[:1000], rows[1000:1200], rows[1200:]

    teacher = Perceptron(256)
    DistillationTrainer(teacher, args, objective=Objective([TaskLoss()]), train_dataset=train).train()

    trainer = DistillationTrainer(
        None,
        args,
        teacher_model=teacher,
        model_init=lambda: Perceptron(16),
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=accuracy,
    )
    best = trainer.hyperparameter_search(
        hp_space=distillation_space,
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=script.n_trials,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=args.seed),
        # A student that begins slowly may end well: none is stopped early.
        pruner=optuna.pruners.NopPruner(),
        study_name="digits",
        storage=script.storage,
        load_if_exists=True,
    )
    found = ", ".join(f"{name} {value:.3g}" for name, value in best.hyperparameters.items())
    print(f"best of {script.n_trials} on validation data: {found}, accuracy {best.objective:.3f}")

    for name, value in best.hyperparameters.items():
        setattr(args, name, value)
    set_seed(args.seed)
    chosen = DistillationTrainer(
        Perceptron(16), args, teacher_model=teacher, train_dataset=train, compute_metrics=accuracy
    )
    chosen.train()
    print(f"its accuracy on the test rows: {chosen.predict(test).metrics['test_accuracy']:.3f}")


if __name__ == "__main__":
    main()
