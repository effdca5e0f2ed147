"""Overlaps of regions against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hfdistill.errors import HfDistillError
from hfdistill.metrics_dense import MeanIoU, mean_iou, region_counts

LABELS = np.array([[0, 0, 1], [1, 255, 2]])
PREDICTED = np.array([[0, 1, 1], [1, 2, 2]])


def test_counts_of_one_picture() -> None:
    intersection, union = region_counts(PREDICTED, LABELS, 4)
    # The pixel that does not count is outside of both regions, whatever was predicted.
    assert intersection.tolist() == [1, 2, 1, 0]
    assert union.tolist() == [2, 3, 1, 0]
    assert mean_iou(intersection, union) == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    negative = region_counts(PREDICTED, np.where(LABELS == 255, -1, LABELS), 3, ignore=None)
    assert [counts.tolist() for counts in negative] == [[1, 2, 1], [2, 3, 1]]


def test_the_ignored_class_is_the_one_that_is_named() -> None:
    labels = np.array([0, 1, 2, 2])
    intersection, union = region_counts(np.array([0, 0, 1, 2]), labels, 3, ignore=2)
    assert (intersection.tolist(), union.tolist()) == ([1, 0, 0], [2, 1, 0])


def test_mean_over_the_classes_that_occur() -> None:
    assert mean_iou(np.zeros(3), np.zeros(3)) == 0
    assert mean_iou(np.array([0.0, 2.0]), np.array([3.0, 4.0])) == 1 / 4
    # One row of sums after the other.
    assert mean_iou(np.array([[1, 0], [1, 1]]), np.array([[2, 0], [2, 1]])).tolist() == [1 / 2, 3 / 4]


def test_mean_iou_sums_over_pictures_first() -> None:
    more = np.array([[0, 0], [0, 1]])
    values = MeanIoU(keep_in_memory=True).compute(
        predictions=[PREDICTED.tolist(), more.tolist()], references=[LABELS.tolist(), [[0, 0], [1, 1]]]
    )
    # Class 0: 1 + 2 of 2 + 3, class 1: 2 + 1 of 3 + 2, class 2: 1 of 1; 4 of 5 and 3 of 4 pixels.
    assert values == pytest.approx({"mean_iou": (3 / 5 + 3 / 5 + 1) / 3, "pixel_accuracy": 7 / 9})
    values = MeanIoU(keep_in_memory=True).compute(predictions=[[[0, 1]]], references=[[[0, 3]]], ignore_index=3)
    assert values == {"mean_iou": 1, "pixel_accuracy": 1}


def test_refusals() -> None:
    with pytest.raises(HfDistillError, match=r"shape \(2, 2\) for labels of shape \(2, 3\)"):
        region_counts(np.zeros((2, 2)), LABELS, 3)
    with pytest.raises(HfDistillError, match="labelled as class 255, expected 0 to 2"):
        region_counts(PREDICTED, LABELS, 3, ignore=None)
    with pytest.raises(HfDistillError, match="predicted as class -1"):
        region_counts(np.full(2, -1), np.zeros(2), 3)
