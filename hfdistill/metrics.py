"""Metrics that need no download: subclasses of `evaluate.Metric`, and a `compute_metrics` for each kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction

from hfdistill.errors import HfDistillError

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

LOGIT_TASKS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
"""The tasks measured by one vector of logits an example: the problem types of a Transformers config."""

TOP_K = 5

_CLASS = datasets.Value("int64")
_REAL = datasets.Value("float64")


def _metric_info(description: str, inputs: str, feature: Any) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=inputs,
        features=datasets.Features({"predictions": feature, "references": feature}),
    )


class OfflineMetric(evaluate.Metric):  # type: ignore[misc]  # `evaluate` ships no types
    """An `evaluate.Metric` whose code is here, so that `evaluate.load` and the Hub are not needed."""


class Accuracy(OfflineMetric):
    """Share of examples whose predicted class is the label."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info("Share of examples whose predicted class is the label.", "Class indices.", _CLASS)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class MacroF1(OfflineMetric):
    """Mean over classes of F1; a class that is neither a label nor predicted does not count."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info("Unweighted mean of the classes' F1.", "Class indices.", _CLASS)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        f1 = sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0)
        return {"f1_macro": float(f1)}


class MatthewsCorrelation(OfflineMetric):
    """Matthews correlation of predicted classes and labels; 0 where one side is constant."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info("Matthews correlation coefficient.", "Class indices.", _CLASS)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        # With one class in both there is nothing to correlate; scikit-learn says 0 too, and warns.
        constant = len({*predictions, *references}) == 1
        value = 0.0 if constant else sklearn_metrics.matthews_corrcoef(references, predictions)
        return {"matthews_correlation": float(value)}


class TopKAccuracy(OfflineMetric):
    """Share of examples whose label is among the k classes given for it (k = width of `predictions`)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of examples whose label is among the k best classes.",
            citation="",
            inputs_description="predictions: k class indices for each example; references: class indices.",
            features=datasets.Features({"predictions": datasets.Sequence(_CLASS), "references": _CLASS}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        best = np.asarray(predictions)
        hits = (best == np.asarray(references)[:, None]).any(axis=1)
        return {f"top{best.shape[1]}_accuracy": float(hits.mean())}


class MultiLabelF1(OfflineMetric):
    """Micro and macro F1 over labels, and the share of examples with every label right."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info("Micro F1, macro F1, subset accuracy.", "0/1 for each label.", datasets.Sequence(_CLASS))

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, labels = np.asarray(predictions), np.asarray(references)
        hits = (predicted * labels).sum(axis=0)
        marked = predicted.sum(axis=0) + labels.sum(axis=0)
        by_label = np.divide(2 * hits, marked, out=np.zeros(hits.shape), where=marked > 0)
        return {
            "f1_micro": float(2 * hits.sum() / marked.sum()) if marked.sum() else 0.0,
            "f1_macro": float(by_label.mean()),
            "subset_accuracy": float((predicted == labels).all(axis=1).mean()),
        }


class RegressionFit(OfflineMetric):
    """Mean squared error, R² and the correlations of Pearson and Spearman; a correlation with a constant is 0."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info("MSE, R², Pearson, Spearman.", "Real numbers for each target.", datasets.Sequence(_REAL))

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, labels = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        error = float(((predicted - labels) ** 2).sum())
        spread = float(((labels - labels.mean(axis=0)) ** 2).sum())
        varies = (np.ptp(predicted, axis=0) > 0) & (np.ptp(labels, axis=0) > 0)
        columns = [column for column in range(labels.shape[1]) if varies[column]]
        pearson = [stats.pearsonr(predicted[:, c], labels[:, c]).statistic for c in columns]
        spearman = [stats.spearmanr(predicted[:, c], labels[:, c]).statistic for c in columns]
        return {
            "mse": error / labels.size,
            "r2": 1 - error / spread if spread else 0.0,
            "pearson": float(np.sum(pearson)) / labels.shape[1],
            "spearman": float(np.sum(spearman)) / labels.shape[1],
        }


def missing_extra(package: str, extra: str, purpose: str) -> HfDistillError:
    """The error for a library that only one of the package's extras installs."""
    return HfDistillError(
        f"{purpose} needs the package {package}, which is not installed; expected the extra {extra!r}: "
        f"pip install 'hfdistill[{extra}]'"
    )


def check_problem_type(problem_type: str) -> None:
    """Refuse a problem type that is none of the three of Transformers."""
    if problem_type not in LOGIT_TASKS:
        raise HfDistillError(
            f"got problem_type {problem_type!r}, expected one of {', '.join(sorted(LOGIT_TASKS))}; "
            "set config.problem_type of the student"
        )


def labelled_rows(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which examples carry a label: not -100 (class indices), no NaN (real numbers)."""
    flat = labels.reshape(len(labels), -1)
    known: NDArray[np.bool_] = (flat != -100 if np.issubdtype(labels.dtype, np.integer) else ~np.isnan(flat)).all(
        axis=1
    )
    return known


def class_decisions(problem_type: str, logits: NDArray[Any]) -> NDArray[np.int64]:
    """What the model decides: the largest logit, or for each label whether its logit is above 0."""
    decisions: NDArray[np.int64] = (
        (logits > 0).astype(np.int64) if problem_type == MULTI_LABEL else logits.argmax(axis=1)
    )
    return decisions


def metric_values(problem_type: str, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """All metrics of the task from logits (examples, classes) and labels; examples without a label are left out."""
    check_problem_type(problem_type)
    known = labelled_rows(labels)
    if not known.any():
        raise HfDistillError(
            f"got {len(labels)} examples and none with a label, expected labels to measure against; "
            "evaluate on a labelled split"
        )
    logits, labels = logits[known], labels[known]
    if problem_type == REGRESSION:
        return _values(RegressionFit, logits.reshape(len(logits), -1), labels.reshape(len(labels), -1))
    decisions = class_decisions(problem_type, logits)
    if problem_type == MULTI_LABEL:
        return _values(MultiLabelF1, decisions, labels.reshape(logits.shape).astype(np.int64))
    values: dict[str, float] = {}
    for metric in (Accuracy, MacroF1, MatthewsCorrelation):
        values |= _values(metric, decisions, labels)
    if logits.shape[1] > TOP_K:
        values |= _values(TopKAccuracy, np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K], labels)
    return values


def _values(metric: type[OfflineMetric], predictions: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
    # In memory: the cache folder of `evaluate` may be read-only, and every process has all gathered rows.
    values: dict[str, float] = metric(keep_in_memory=True).compute(predictions=predictions, references=references)
    return values


def classification_metrics(problem_type: str, num_labels: int) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` for `Trainer`.

    Single label: accuracy, macro F1, Matthews correlation, top-5 accuracy above five classes. Multi-label (decision at
    probability one half): micro and macro F1, subset accuracy. Regression: MSE, R², Pearson, Spearman.
    Examples without a label (-100 or NaN) are left out; of several outputs the first is taken as the logits.
    """
    check_problem_type(problem_type)

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        outputs = evaluated.predictions
        logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
        if logits.ndim != 2 or logits.shape[1] != num_labels:
            raise HfDistillError(
                f"got predictions of shape {logits.shape}, expected (examples, {num_labels}); "
                "give the student a classification head with that many outputs, or your own compute_metrics"
            )
        return metric_values(problem_type, logits, np.asarray(evaluated.label_ids))

    return compute_metrics
