"""Terms on a decoder whose inputs are made from the labels: what is padding there, the labels say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hfdistill import DistillationTrainer, Objective, TaskLoss
from hfdistill.features import HiddenStates, Relations
from hfdistill.knowledge import Term
from tests import by_sgd
from tests.tasks import token_models
from tests.tasks.trajectory import examples
from tests.trainer.trajectory import assert_same


@pytest.mark.parametrize(
    "term",
    [
        HiddenStates(layers="uniform", part="decoder"),
        HiddenStates("attention_transfer", layers="uniform", part="decoder"),
        Relations("similarity_preserving", part="decoder"),
    ],
    ids=["hint", "attention transfer", "similarity"],
)
def test_padding_of_the_decoder_is_no_hidden_state(term: Term, tmp_path: Path) -> None:
    """Wider batches of the same examples change nothing."""

    def trained(padding: int) -> dict[str, torch.Tensor]:
        def wide(rows: list[token_models.Batch]) -> token_models.Batch:
            batch = token_models.padded(rows)
            batch["labels"] = torch.nn.functional.pad(batch["labels"], (0, padding), value=-100)
            return batch

        trainer = DistillationTrainer(
            token_models.model("t5", seed=1),
            by_sgd.arguments(tmp_path, learning_rate=0.2),
            objective=Objective([TaskLoss(weight=0.5), term]),
            teacher_model=token_models.model("t5", layers=2, seed=2),
            train_dataset=[row for place, row in enumerate(examples("t5")) if place % 5],
            data_collator=wide,
        )
        trainer.train()
        return by_sgd.seen_in(trainer)

    assert_same(trained(0), trained(3))
