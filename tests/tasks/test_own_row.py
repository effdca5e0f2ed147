"""A head of one's own: a plain module, and a row of the table for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hfdistill import DistillationTrainer, HfDistillError
from hfdistill.losses import forward_kl
from hfdistill.tasks import Examples, Task
from hfdistill.tasks.label_losses import cross_entropy
from tests import by_sgd

ROW = Task("scores", forward_kl, cross_entropy, Examples(output="scores"))


class Scorer(nn.Module):
    """Gives its logits in a field of another name."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, features: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(scores=self.layers(features))


def trainer(folder: Path, micro_batch: int, accumulation: int, task: Task | str | None) -> DistillationTrainer:
    generator = torch.Generator().manual_seed(0)
    rows = [{"features": torch.randn(4, generator=generator), "labels": torch.tensor(place % 3)} for place in range(8)]
    cut = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation}
    config = by_sgd.arguments(folder, max_steps=2, **cut)
    return DistillationTrainer(
        Scorer(4, 1), config, teacher_model=Scorer(8, 2), task=task, train_dataset=rows, eval_dataset=rows
    )


def test_a_row_of_one_s_own_is_trained_and_evaluated(tmp_path: Path) -> None:
    whole, cut = trainer(tmp_path, 8, 1, ROW), trainer(tmp_path, 2, 4, ROW)
    for each in (whole, cut):
        each.train()
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert {"eval_loss/task", "eval_loss/kd"} <= whole.evaluate().keys()
    assert whole.predict(whole.eval_dataset).predictions.shape == (8, 3)


def test_without_the_row_the_missing_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="gave no 'logits'"):
        trainer(tmp_path, 8, 1, None).train()


def test_a_name_that_is_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="did you mean 'causal_lm'"):
        trainer(tmp_path, 8, 1, "casual_lm")
