"""`compute_metrics` for Trainer where each example has many labels: tagged sentences and language models.

Trainer gathers what `preprocess_logits_for_metrics` returns. Give it the function beside the metrics here, so that no
logits over a whole vocabulary are kept: decisions of a tagger, three sums of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from hfdistill.errors import HfDistillError, nearest
from hfdistill.metrics_text import entity_counts, perplexity, share
from hfdistill.tasks import TASKS, UNLABELLED

LANGUAGE_TASKS = ("causal_lm", "masked_lm", "seq2seq_lm")
SUMS = ("loss_sum", "tokens", "correct")

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]
Preprocess = Callable[[Any, Any], Tensor]


def decisions(logits: Any, labels: Any) -> Tensor:
    """The class with the largest logit: a `preprocess_logits_for_metrics` for `token_classification_metrics`."""
    decided: Tensor = _first(logits).argmax(-1)
    return decided


def token_classification_metrics(names: Sequence[str]) -> ComputeMetrics:
    """A `compute_metrics` for Trainer: precision, recall and F1 of entities, and the share of right tags.

    `names` are the tags in the order of the classes, such as O, B-PER, I-PER. Tokens labelled -100 do not count. Takes
    `decisions` as well as logits.
    """

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        predictions, labels = np.asarray(_first(evaluated.predictions)), np.asarray(evaluated.label_ids)
        classes = predictions.argmax(-1) if predictions.ndim == labels.ndim + 1 else predictions
        if classes.shape != labels.shape:
            raise HfDistillError(
                f"got predictions of shape {predictions.shape} for labels of shape {labels.shape}, expected a class or "
                "logits for each token; give the student a head for token classification"
            )
        known = labels != UNLABELLED
        largest = int(max(classes[known].max(), labels[known].max())) if known.any() else -1
        if largest >= len(names):
            raise HfDistillError(f"got class {largest} and {len(names)} names, expected a name for each class")
        counts = np.array(
            [
                entity_counts([names[place] for place in given[own]], [names[place] for place in gold[own]])
                for given, gold, own in zip(classes, labels, known, strict=True)
            ]
        )
        right, predicted, gold = counts.sum(axis=0).tolist()
        return {
            "precision": share(right, predicted),
            "recall": share(right, gold),
            "f1": share(2 * right, predicted + gold),
            "accuracy": share(int((classes == labels)[known].sum()), int(known.sum())),
        }

    return compute_metrics


def language_model_sums(task: str) -> Preprocess:
    """A `preprocess_logits_for_metrics` for `language_model_metrics`: summed loss, tokens, right tokens of each text.

    `task` is causal_lm (a token's logits are about the next one), masked_lm or seq2seq_lm.
    """
    if task not in LANGUAGE_TASKS:
        known = ", ".join(LANGUAGE_TASKS)
        raise HfDistillError(f"got the task {task!r}, expected one of {known}{nearest(task, LANGUAGE_TASKS)}")
    row = TASKS[task]

    def preprocess_logits_for_metrics(logits: Any, labels: Any) -> Tensor:
        logits, labels = _first(logits), _first(labels)
        rows = row.rows({"labels": labels})
        assert rows.labelled.index is not None and rows.labels is not None, "tokens are picked, and they have labels"
        loss = row.label_values(logits, rows, 0.0, None)
        right = (rows.labelled(logits.argmax(-1)).squeeze(-1) == rows.labels).to(loss.dtype)
        each = torch.stack([loss, torch.ones_like(loss), right], dim=1)
        sums = torch.zeros(len(labels), len(SUMS), dtype=loss.dtype, device=loss.device)
        return sums.index_add(0, rows.labelled.index // labels.shape[1], each)

    return preprocess_logits_for_metrics


def language_model_metrics() -> ComputeMetrics:
    """A `compute_metrics` for Trainer: perplexity and the share of tokens that were the likeliest.

    It reads what `language_model_sums` leaves, so give that as `preprocess_logits_for_metrics`. The mean loss itself is
    in `eval_loss/task`.
    """

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        sums = np.asarray(evaluated.predictions, dtype=np.float64)
        if sums.ndim != 2 or sums.shape[1] != len(SUMS):
            raise HfDistillError(
                f"got predictions of shape {sums.shape}, expected (texts, {len(SUMS)}); give Trainer "
                "preprocess_logits_for_metrics=language_model_sums(task) beside these metrics"
            )
        loss, tokens, correct = sums.sum(axis=0).tolist()
        if not tokens:
            raise HfDistillError(f"got {len(sums)} texts and no token with a label; evaluate on texts with labels")
        return {"perplexity": perplexity(loss / tokens), "accuracy": correct / tokens}

    return compute_metrics


def _first(given: Any) -> Any:
    """The first of several outputs."""
    return given[0] if isinstance(given, (tuple, list)) else given
