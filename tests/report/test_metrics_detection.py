"""Mean average precision against values worked out by hand, and against pycocotools' own accumulation."""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from hfdistill.errors import HfDistillError
from hfdistill.metrics_detection import (
    MeanAveragePrecision,
    _annotations,
    average_precision,
    matches,
    mean_average_precision,
    object_rows,
    precision_metrics,
)

SQUARE = [0.0, 0.0, 10.0, 10.0]
# A sure and exact detection, one of nothing, and one that covers 62 % of the object of the second image.
DETECTIONS = np.array([[0, 4, 0.9, *SQUARE], [0, 4, 0.8, 50, 50, 60, 60], [1, 4, 0.7, 0, 0, 10, 6.2]])
GOLD = np.array([[0, 4, 0, *SQUARE], [1, 4, 0, *SQUARE]])
# Of the 101 recalls 51 are up to one half. Both objects are found at the overlaps 0.5, 0.55 and 0.6.
BOTH, ONE = (51 + 50 * 2 / 3) / 101, 51 / 101


def test_two_images_by_hand() -> None:
    values = mean_average_precision(DETECTIONS, GOLD, 2)
    assert values == pytest.approx({"map": (3 * BOTH + 7 * ONE) / 10, "map_50": BOTH, "map_75": ONE})
    # Without detections, and with objects that are elsewhere.
    assert set(mean_average_precision(DETECTIONS[:0], GOLD, 2).values()) == {0}
    assert mean_average_precision(DETECTIONS, GOLD + np.array([0, 0, 0, 100, 100, 100, 100]), 2)["map"] == 0


def test_boxes_are_two_corners() -> None:
    # An object of 20 times 20 and a detection of 20 times 15.4 in it: found at the six overlaps up to 0.75.
    values = mean_average_precision(np.array([[0, 0, 0.5, 10, 30, 30, 45.4]]), np.array([[0, 0, 0, 10, 30, 30, 50]]), 1)
    assert values == pytest.approx({"map": 6 / 10, "map_50": 1, "map_75": 1})


def test_what_does_not_count() -> None:
    crowd = np.array([[1, 4, 1, 100, 100, 200, 200]])
    inside = np.array([[1, 4, 0.95, 110, 110, 120, 120]])
    other = np.array([[1, 5, 0.99, *SQUARE]])
    values = mean_average_precision(
        np.concatenate([DETECTIONS, inside, other]), np.concatenate([GOLD, crowd, [[0, 6, 1, *SQUARE]]]), 2
    )
    # One of a crowd is no mistake; classes without an object, or with crowds alone, are in no mean.
    assert values["map_50"] == pytest.approx(BOTH)
    found_twice = np.concatenate([DETECTIONS, [[0, 4, 0.85, *SQUARE]]])
    assert mean_average_precision(found_twice, GOLD, 2)["map_50"] == pytest.approx((51 + 50 * 2 / 4) / 101)
    with pytest.raises(HfDistillError, match="no object that is not a crowd"):
        mean_average_precision(DETECTIONS, crowd, 2)


def test_the_mean_is_over_classes() -> None:
    missed = np.concatenate([GOLD, [[1, 9, 0, *SQUARE]]])
    assert mean_average_precision(DETECTIONS, missed, 2)["map_75"] == pytest.approx(ONE / 2)


def scene(images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects, some of them crowds, and detections around them and elsewhere."""
    generator = np.random.default_rng(0)
    gold = []
    for image in range(images):
        for _ in range(generator.integers(0, 5)):
            corner, size = generator.uniform(0, 300, 2), generator.uniform(10, 200, 2)
            gold.append(
                [image, generator.integers(classes), float(generator.random() < 0.15), *corner, *(corner + size)]
            )
    gold = np.array(gold)
    near = np.repeat(gold, 3, axis=0)
    near[:, 3:] += generator.normal(0, 12, (len(near), 4))
    near[:, 1] = np.where(generator.random(len(near)) < 0.2, generator.integers(classes, size=len(near)), near[:, 1])
    near[:, 2] = generator.random(len(near))
    return near, gold


def coco(detections: np.ndarray, gold: np.ndarray, images: int) -> np.ndarray:
    """The first three numbers of COCO's own summary."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(_annotations(gold, images, "iscrowd"), _annotations(detections, images, "score"), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[:3]


def repeated(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rows of each image as often as its weight, as images of their own."""
    parts = []
    for number, image in enumerate(np.repeat(np.arange(len(weights)), weights)):
        part = rows[rows[:, 0] == image].copy()
        part[:, 0] = number
        parts.append(part)
    return np.concatenate(parts)


def test_weights_are_repeated_images() -> None:
    detections, gold = scene(25, 3)
    weights = np.random.default_rng(1).multinomial(25, np.full(25, 1 / 25), size=3)
    weights[0] = 1
    weights[2] *= np.arange(25) < 4  # a sample of few images, in which some class may have no object
    found = average_precision(matches(detections, gold, 25), weights)
    for precision, own in zip(found, weights, strict=True):
        expected = coco(repeated(detections, own), repeated(gold, own), int(own.sum()))
        assert list(precision_metrics(precision).values()) == pytest.approx(expected.tolist(), abs=1e-9)


def test_a_sample_without_objects_has_no_precision() -> None:
    found = matches(DETECTIONS, GOLD[:1], 2)
    assert np.isnan(average_precision(found, np.array([[0, 2]]))).all()
    assert not np.isnan(average_precision(found, np.array([[1, 1]]))).any()


def test_the_metric_reads_images() -> None:
    predictions = [
        {"boxes": DETECTIONS[:2, 3:].tolist(), "scores": [0.9, 0.8], "labels": [4, 4]},
        {"boxes": DETECTIONS[2:, 3:].tolist(), "scores": [0.7], "labels": [4]},
    ]
    references = [{"boxes": [SQUARE], "labels": [4]}, {"boxes": [SQUARE], "labels": [4]}]
    expected = pytest.approx({"map": (3 * BOTH + 7 * ONE) / 10, "map_50": BOTH, "map_75": ONE})
    compute = MeanAveragePrecision(keep_in_memory=True).compute
    assert compute(predictions=predictions, references=references) == expected
    crowds = [{**references[0], "crowd": [0]}, {"boxes": [SQUARE, SQUARE], "labels": [4, 5], "crowd": [0, 1]}]
    assert MeanAveragePrecision(keep_in_memory=True).compute(predictions=predictions, references=crowds) == expected


def test_rows_of_images() -> None:
    rows = object_rows([([], [], []), ([4], [0.5], [SQUARE])])
    assert rows.tolist() == [[1, 4, 0.5, *SQUARE]]
    assert object_rows([]).shape == (0, 7)
    with pytest.raises(HfDistillError, match="2 labels, 1 scores or crowds"):
        object_rows([([4, 4], [0.5], [SQUARE])])


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(HfDistillError, match=r"pycocotools, which is not installed.*'hfdistill\[detection\]'"):
        mean_average_precision(DETECTIONS, GOLD, 2)
