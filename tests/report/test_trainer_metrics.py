"""Metrics inside Trainer's evaluation, for language models and tagged sentences."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, Objective, TaskLoss
from hfdistill.trainer_metrics import (
    decisions,
    language_model_metrics,
    language_model_sums,
    token_classification_metrics,
)
from tests.tasks import token_models

NAMES = ["O", "B-PER", "I-PER", "B-LOC"]


def evaluation(name: str, folder: Path, **metrics: Any) -> tuple[dict[str, float], Any, list[token_models.Batch]]:
    """Trainer's evaluation of seven examples, three a batch; what it predicted; the examples."""
    examples = token_models.examples(name, 7)
    config = DistillationConfig(
        str(folder), per_device_eval_batch_size=3, use_cpu=True, report_to=[], remove_unused_columns=False
    )
    trainer = DistillationTrainer(
        token_models.model(name),
        config,
        objective=Objective([TaskLoss()]),
        eval_dataset=examples,
        data_collator=token_models.padded,
        **metrics,
    )
    output = trainer.predict(examples, metric_key_prefix="eval")
    return output.metrics, output.predictions, examples


@pytest.mark.parametrize("name", ["gpt2", "bert_masked", "t5"])
def test_a_language_model_keeps_three_sums_a_text(name: str, tmp_path: Path) -> None:
    task = token_models.MODELS[name][2]
    values, predictions, examples = evaluation(
        name,
        tmp_path,
        compute_metrics=language_model_metrics(),
        preprocess_logits_for_metrics=language_model_sums(task),
    )
    assert predictions.shape == (7, 3)
    # The trainer's own mean over tokens, which does not go this way.
    assert values["eval_perplexity"] == pytest.approx(exp(values["eval_loss/task"]), rel=1e-5)
    shift = 1 if task == "causal_lm" else 0
    assert predictions[:, 1].tolist() == [int((row["labels"][shift:] != -100).sum()) for row in examples]
    assert values["eval_accuracy"] == pytest.approx(predictions[:, 2].sum() / predictions[:, 1].sum())


def test_sums_of_two_tokens_by_hand() -> None:
    # The first token's logits are about the second: 0.75 for what it is; the second's are about the third, -100.
    logits = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5]] * 3]).log()
    labels = torch.tensor([[0, 1, -100], [-100, -100, 0]])
    sums = language_model_sums("causal_lm")((logits, torch.zeros(2)), labels)
    assert sums.tolist() == [pytest.approx([-np.log(0.75), 1, 1]), pytest.approx([np.log(2), 1, 1])]
    assert language_model_metrics()(EvalPrediction(sums.numpy(), labels.numpy())) == pytest.approx(
        {"perplexity": (0.75 * 0.5) ** -0.5, "accuracy": 1.0}
    )


@pytest.mark.parametrize("whole", [False, True], ids=["decisions", "logits"])
def test_tagged_sentences_in_trainer(whole: bool, tmp_path: Path) -> None:
    options = {} if whole else {"preprocess_logits_for_metrics": decisions}
    values, predictions, examples = evaluation(
        "bert_tags", tmp_path, compute_metrics=token_classification_metrics(NAMES), **options
    )
    assert predictions.ndim == (3 if whole else 2)
    chosen = predictions.argmax(-1) if whole else predictions
    same = [
        given == tag
        for row, example in zip(chosen, examples, strict=True)
        for given, tag in zip(row, example["labels"].tolist(), strict=False)
        if tag != -100
    ]
    assert values["eval_accuracy"] == pytest.approx(np.mean(same))
    assert 0 <= values["eval_f1"] <= 1


def test_tokens_without_a_label_are_left_out() -> None:
    # A first token and padding without a label; the second sentence's LOC is missed.
    labels = np.array([[-100, 1, 2, 0, -100], [-100, 3, 0, 3, 0]])
    given = np.array([[1, 1, 2, 0, 3], [0, 3, 0, 0, 0]])
    values = token_classification_metrics(NAMES)(EvalPrediction(given, labels))
    assert values == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 4 / 5, "accuracy": 6 / 7})


def test_refusals() -> None:
    with pytest.raises(HfDistillError, match="did you mean 'causal_lm'"):
        language_model_sums("causal")
    with pytest.raises(HfDistillError, match="preprocess_logits_for_metrics=language_model_sums"):
        language_model_metrics()(EvalPrediction(np.zeros((2, 3, 9)), np.zeros((2, 3))))
    with pytest.raises(HfDistillError, match="no token with a label"):
        language_model_metrics()(EvalPrediction(np.zeros((2, 3)), np.zeros((2, 3))))
    with pytest.raises(HfDistillError, match="got class 4 and 4 names"):
        token_classification_metrics(NAMES)(EvalPrediction(np.full((1, 2), 4), np.zeros((1, 2), dtype=int)))
    with pytest.raises(HfDistillError, match="a class or logits for each token"):
        token_classification_metrics(NAMES)(EvalPrediction(np.zeros((1, 2)), np.zeros((1, 3), dtype=int)))
