"""Each metric against a value worked out by hand."""

from __future__ import annotations

from math import nan, sqrt

import numpy as np
import pytest
from transformers import EvalPrediction

from hfdistill.errors import HfDistillError
from hfdistill.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, classification_metrics, metric_values

# Predicted classes 0, 0, 1, 1 for labels 0, 1, 1, 1.
FOUR = np.array([[2.0, 1.0], [3.0, 0.0], [0.0, 1.0], [-1.0, 4.0]])
FOUR_LABELS = np.array([0, 1, 1, 1])


def test_single_label() -> None:
    values = metric_values(SINGLE_LABEL, FOUR, FOUR_LABELS)
    assert values["accuracy"] == 3 / 4
    # Class 0: precision 1/2, recall 1, F1 2/3. Class 1: precision 1, recall 2/3, F1 4/5.
    assert values["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    # (TP·TN − FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN)) with TP 2, TN 1, FP 0, FN 1.
    assert values["matthews_correlation"] == pytest.approx(2 / sqrt(2 * 3 * 1 * 2))
    assert "top5_accuracy" not in values


def test_top_five_above_five_classes() -> None:
    logits = np.array([[7.0, 6, 5, 4, 3, 2, 1]] * 3)
    values = metric_values(SINGLE_LABEL, logits, np.array([0, 1, 5]))
    assert values["top5_accuracy"] == pytest.approx(2 / 3)
    assert values["accuracy"] == pytest.approx(1 / 3)


def test_multi_label() -> None:
    # Decisions 1,0 / 1,1 / 0,0 for labels 1,0 / 0,1 / 0,1.
    logits = np.array([[1.0, -1.0], [2.0, 0.25], [-1.0, -3.0]])
    values = metric_values(MULTI_LABEL, logits, np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    # Label 0: 1 hit of 2 decisions and 1 label, F1 2/3. Label 1: 1 hit of 1 and 2, F1 2/3. Together: 2·2 / (3 + 3).
    assert values["f1_micro"] == pytest.approx(4 / 6)
    assert values["f1_macro"] == pytest.approx(2 / 3)
    assert values["subset_accuracy"] == pytest.approx(1 / 3)


def test_regression() -> None:
    predicted, labels = np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 3.0, 5.0])
    values = metric_values(REGRESSION, predicted, labels)
    assert values["mse"] == pytest.approx((0 + 1 + 1) / 3)
    assert values["r2"] == pytest.approx(1 - 2 / 8)
    # Centred: predictions −2 −1 3, labels −2 0 2; the ranks agree.
    assert values["pearson"] == pytest.approx(10 / sqrt(14 * 8))
    assert values["spearman"] == pytest.approx(1)


def test_a_constant_prediction_has_no_correlation() -> None:
    values = metric_values(REGRESSION, np.ones((3, 1)), np.array([0.0, 1.0, 2.0]))
    assert (values["pearson"], values["spearman"], values["r2"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("problem_type", "logits", "labels"),
    [
        (SINGLE_LABEL, [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [1, -100, 1]),
        (REGRESSION, [[1.0], [9.0], [2.0]], [1.0, nan, 3.0]),
        (MULTI_LABEL, [[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]], [[1.0, 1.0], [nan, nan], [1.0, 1.0]]),
    ],
)
def test_examples_without_label_do_not_count(problem_type: str, logits: list[object], labels: list[object]) -> None:
    with_unlabelled = metric_values(problem_type, np.array(logits), np.array(labels))
    kept = [0, 2]
    assert with_unlabelled == metric_values(problem_type, np.array(logits)[kept], np.array(labels)[kept])


def test_compute_metrics_takes_the_first_of_several_outputs() -> None:
    evaluated = EvalPrediction(predictions=(FOUR, np.zeros((4, 7))), label_ids=FOUR_LABELS)
    assert classification_metrics(SINGLE_LABEL, 2)(evaluated)["accuracy"] == 3 / 4


def test_refusals() -> None:
    with pytest.raises(HfDistillError, match="'ranking', expected one of"):
        classification_metrics("ranking", 2)
    with pytest.raises(HfDistillError, match=r"shape \(4, 2\), expected \(examples, 3\)"):
        classification_metrics(SINGLE_LABEL, 3)(EvalPrediction(predictions=FOUR, label_ids=FOUR_LABELS))
    with pytest.raises(HfDistillError, match="none with a label"):
        metric_values(SINGLE_LABEL, FOUR, np.full(4, -100))


def test_one_class_everywhere_has_no_correlation_and_no_warning() -> None:
    values = metric_values(SINGLE_LABEL, np.array([[2.0, 1.0]] * 3), np.zeros(3, dtype=int))
    assert values["matthews_correlation"] == 0
