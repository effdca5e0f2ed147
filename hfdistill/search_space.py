"""What a search over the default objective tries, for Trainer's `hyperparameter_search`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

TEMPERATURES = (1.0, 10.0)
ALPHAS = (0.1, 0.9)


def distillation_space(trial: optuna.Trial) -> dict[str, float]:
    """A temperature, log-uniform from 1 to 10, and an alpha, uniform from 0.1 to 0.9, as a trial of optuna draws them.

    It is an `hp_space` for `DistillationTrainer.hyperparameter_search(backend="optuna")`. More is searched by one of
    your own: `lambda trial: {**distillation_space(trial), "learning_rate": trial.suggest_float(...)}`. Ray takes a
    table instead: `lambda _: {"temperature": tune.loguniform(1, 10), "alpha": tune.uniform(0.1, 0.9)}`.
    """
    return {
        "temperature": trial.suggest_float("temperature", *TEMPERATURES, log=True),
        "alpha": trial.suggest_float("alpha", *ALPHAS),
    }
