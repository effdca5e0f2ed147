"""Fidelity and calibration of a handful of examples, worked out by hand."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest

from hfdistill.fidelity import calibration, fidelity, share_recovered
from hfdistill.intervals import Estimate
from hfdistill.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL


def logits_of(*shares: tuple[float, ...]) -> np.ndarray:
    """Logits whose softmax is these probabilities."""
    return np.log(np.array(shares))


def test_ece_of_four_examples() -> None:
    # Confidence .9 and right, .9 and wrong: one bin (.867 to .933), mean .9, half right. .55 right: bin .533 to .6.
    # .7 right: bin .667 to .733.
    logits = logits_of((0.9, 0.1), (0.1, 0.9), (0.55, 0.45), (0.3, 0.7))
    curve = calibration(SINGLE_LABEL, logits, np.array([0, 0, 0, 1]))
    assert curve.count == [1, 1, 2]
    assert curve.confidence == pytest.approx([0.55, 0.7, 0.9])
    assert curve.accuracy == [1, 1, 0.5]
    assert curve.ece == pytest.approx((1 * 0.45 + 1 * 0.3 + 2 * 0.4) / 4)


def test_ece_of_two_labels() -> None:
    # Probabilities .75 and .25, both labels hold: |.75 − 1| and |.25 − 1|.
    logits = np.array([[log(3), -log(3)]])
    curve = calibration(MULTI_LABEL, logits, np.array([[1.0, 1.0]]))
    assert curve.ece == pytest.approx((0.25 + 0.75) / 2)


def test_who_is_right() -> None:
    eye = np.eye(3) * 4
    teacher = eye[[0, 1, 0, 1, 2, 2]]
    student = eye[[0, 0, 1, 1, 0, 2]]
    labels = np.array([0, 0, 0, 0, 1, -100])
    # right/right, wrong/right, right/wrong, wrong same, wrong different, unlabelled (agrees).
    found = fidelity(SINGLE_LABEL, teacher, student, labels)
    assert (found.both_right, found.teacher_wrong_student_right, found.teacher_right_student_wrong) == (1, 1, 1)
    assert (found.both_wrong_same, found.both_wrong_different) == (1, 1)
    assert found.agreement == 3 / 6
    assert found.decisions == 6


def test_divergence_is_from_teacher_to_student() -> None:
    teacher, student = logits_of((0.75, 0.25)), logits_of((0.5, 0.5))
    found = fidelity(SINGLE_LABEL, teacher, student, np.array([0]))
    assert found.kl == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5))
    # Two labels, each .75 against .5: twice the same.
    teacher, student = np.full((1, 2), log(3)), np.zeros((1, 2))
    found = fidelity(MULTI_LABEL, teacher, student, np.array([[1.0, 0.0]]))
    assert found.kl == pytest.approx(2 * (0.75 * log(1.5) + 0.25 * log(0.5)))
    # At exactly 0 the student decides against the label.
    assert (found.both_wrong_same, found.teacher_right_student_wrong, found.teacher_wrong_student_right) == (0, 1, 1)


def test_regression_has_a_distance_in_place_of_classes() -> None:
    found = fidelity(REGRESSION, np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]]), np.array([0.0, 0.0]))
    assert found.distance == pytest.approx(sqrt(2))
    assert found.correlation == pytest.approx(1)
    assert found.agreement is None
    assert found.ece_student is None


def test_share_recovered_needs_a_lead() -> None:
    def estimate(mean: float, reach: float) -> Estimate:
        return Estimate(mean, mean - reach, mean + reach, None, 3, "")

    assert share_recovered(lead=estimate(0.08, 0.01), gain=estimate(0.02, 0.01)) == pytest.approx(0.25)
    assert share_recovered(lead=estimate(0.08, 0.09), gain=estimate(0.02, 0.01)) is None
    assert share_recovered(lead=estimate(-0.08, 0.01), gain=estimate(0.02, 0.01)) is None
