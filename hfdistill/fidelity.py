"""Fidelity: how far the student follows its teacher, where each is right, and how far to trust their confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax

from hfdistill.intervals import Estimate
from hfdistill.metrics import MULTI_LABEL, REGRESSION, check_problem_type, class_decisions, labelled_rows

ECE_BINS = 15
"""Equal-width bins of confidence from 0 to 1."""


@dataclass(frozen=True)
class Fidelity:
    """Student against teacher on the same examples.

    `decisions` counts what is compared: examples, example × label pairs of a multi-label task, tokens, pixels or
    frames. Agreement and KL are over all of them; the counts of right and wrong over those with a label. What a task
    has not is None: a regression has no classes, so it has `distance` (root mean square between the two) and
    `correlation` in their place.
    """

    decisions: float
    agreement: float | None
    kl: float | None
    distance: float | None
    correlation: float | None
    ece_teacher: float | None
    ece_student: float | None
    both_right: int | None
    teacher_wrong_student_right: float | None
    teacher_right_student_wrong: float | None
    both_wrong_same: int | None
    both_wrong_different: int | None


@dataclass(frozen=True)
class Calibration:
    """One reliability curve: for each filled bin its mean confidence, its share of right answers and its size."""

    confidence: list[float]
    accuracy: list[float]
    count: list[int]
    ece: float


def fidelity(problem_type: str, teacher: NDArray[Any], student: NDArray[Any], labels: NDArray[Any]) -> Fidelity:
    """Compare two models' logits (examples, classes), given in the same order of examples and classes."""
    check_problem_type(problem_type)
    if problem_type == REGRESSION:
        return _regression_fidelity(teacher, student)
    known = labelled_rows(labels)
    taught, learnt = class_decisions(problem_type, teacher), class_decisions(problem_type, student)
    truth = labels.reshape(taught.shape)[known]
    teacher_right, student_right = taught[known] == truth, learnt[known] == truth
    wrong = ~teacher_right & ~student_right
    same = taught[known] == learnt[known]
    return Fidelity(
        decisions=int(taught.size),
        agreement=float((taught == learnt).mean()),
        kl=float(_divergence(problem_type, teacher, student).mean()),
        distance=None,
        correlation=None,
        ece_teacher=calibration(problem_type, teacher, labels).ece,
        ece_student=calibration(problem_type, student, labels).ece,
        both_right=int((teacher_right & student_right).sum()),
        teacher_wrong_student_right=int((~teacher_right & student_right).sum()),
        teacher_right_student_wrong=int((teacher_right & ~student_right).sum()),
        both_wrong_same=int((wrong & same).sum()),
        both_wrong_different=int((wrong & ~same).sum()),
    )


def fidelity_of_sums(
    kl_sum: float,
    agree: float,
    compared: float,
    teacher_wrong_student_right: float | None = None,
    teacher_right_student_wrong: float | None = None,
) -> Fidelity:
    """Two models that were compared token by token, or pixel by pixel or frame by frame, from sums over these."""
    return Fidelity(
        decisions=compared,
        agreement=agree / compared,
        kl=kl_sum / compared,
        distance=None,
        correlation=None,
        ece_teacher=None,
        ece_student=None,
        both_right=None,
        teacher_wrong_student_right=teacher_wrong_student_right,
        teacher_right_student_wrong=teacher_right_student_wrong,
        both_wrong_same=None,
        both_wrong_different=None,
    )


def calibration(problem_type: str, logits: NDArray[Any], labels: NDArray[Any]) -> Calibration:
    """Reliability curve and expected calibration error over `ECE_BINS` equal-width bins.

    Single label: the probability of the predicted class against whether it is right. Multi-label: the probability of
    each label against whether it holds.
    """
    known = labelled_rows(labels)
    logits, labels = logits[known].astype(float), labels[known]
    if problem_type == MULTI_LABEL:
        confidence, right = expit(logits).ravel(), labels.reshape(logits.shape).ravel().astype(float)
    else:
        confidence = np.exp(log_softmax(logits, axis=1)).max(axis=1)
        right = (logits.argmax(axis=1) == labels).astype(float)
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    filled = counts > 0
    mean_confidence = np.bincount(bins, confidence, ECE_BINS)[filled] / counts[filled]
    accuracy = np.bincount(bins, right, ECE_BINS)[filled] / counts[filled]
    ece = float((np.abs(mean_confidence - accuracy) * counts[filled]).sum() / counts.sum())
    return Calibration(mean_confidence.tolist(), accuracy.tolist(), counts[filled].tolist(), ece)


def share_recovered(lead: Estimate, gain: Estimate) -> float | None:
    """(student - control) / (teacher - control); None unless the teacher leads the control by more than the noise."""
    return gain.mean / lead.mean if lead.above_zero else None


def _divergence(problem_type: str, teacher: NDArray[Any], student: NDArray[Any]) -> NDArray[np.float64]:
    """KL(teacher‖student) of each example in nats at temperature 1; a multi-label example adds up its labels."""
    teacher, student = teacher.astype(float), student.astype(float)
    divergence: NDArray[np.float64]
    if problem_type == MULTI_LABEL:
        yes = expit(teacher) * (log_expit(teacher) - log_expit(student))
        no = expit(-teacher) * (log_expit(-teacher) - log_expit(-student))
        divergence = (yes + no).sum(axis=1)
    else:
        taught = log_softmax(teacher, axis=1)
        divergence = (np.exp(taught) * (taught - log_softmax(student, axis=1))).sum(axis=1)
    return divergence


def _regression_fidelity(teacher: NDArray[Any], student: NDArray[Any]) -> Fidelity:
    taught, learnt = teacher.astype(float).ravel(), student.astype(float).ravel()
    varies = np.ptp(taught) > 0 and np.ptp(learnt) > 0
    correlation = float(np.corrcoef(taught, learnt)[0, 1]) if varies else 0.0
    distance = float(np.sqrt(((taught - learnt) ** 2).mean()))
    return Fidelity(taught.size, None, None, distance, correlation, *[None] * 7)
