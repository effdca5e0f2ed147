"""Average precision of detected objects as COCO measures it: matched once by pycocotools, accumulated by weight.

The weights say how often each image counts, so that a bootstrap over images needs no second matching.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from hfdistill.errors import HfDistillError
from hfdistill.metrics import OfflineMetric, missing_extra

MOST_DETECTIONS = 100
"""Of one class in one image, as in COCO's evaluation; the surest ones count."""

RECALLS = np.linspace(0.0, 1.0, 101)
HALF, THREE_QUARTERS = 0, 5
"""Places of the thresholds 0.5 and 0.75 among COCO's ten, 0.5 to 0.95."""

_ANY_SIZE = [0.0, 1e10]
_BLOCK_ENTRIES = 8_000_000


@dataclass(frozen=True)
class ClassMatches:
    """All detections of one class, the surest first, and how many objects of it each image has.

    `image` is `(detections,)`; `right` and `counted` are `(thresholds, detections)`: whether a detection has found an
    object, and whether it counts at all (one of a crowd does not); `objects` is `(images,)`, without crowds.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]


def matches(detections: NDArray[Any], gold: NDArray[Any], images: int) -> list[ClassMatches]:
    """The matches of each class that is there, by COCO's rules.

    `detections` is `(n, 7)`: image, class, score, x0, y0, x1, y1; `gold` is `(m, 7)`: image, class, crowd (0 or 1),
    x0, y0, x1, y1; images are counted from 0 to `images - 1`.
    Errors: HfDistillError where pycocotools is not installed.
    """
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_extra("pycocotools", "detection", "The mean average precision") from error
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
        evaluator = COCOeval(_annotations(gold, images, "iscrowd"), _annotations(detections, images, "score"), "bbox")
        evaluator.params.catIds = np.unique(gold[:, 1]).astype(int).tolist()
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [_ANY_SIZE], ["all"]
        evaluator.params.maxDets = [MOST_DETECTIONS]
        evaluator.evaluate()
    found = evaluator.evalImgs  # class by class, image by image
    return [_class_matches(found[start : start + images]) for start in range(0, len(found), images)]


def _annotations(rows: NDArray[Any], images: int, third: str) -> Any:
    from pycocotools.coco import COCO

    made = COCO()
    annotations = []
    # An id of 0 would mean that there is no match.
    for number, (image, kind, value, x0, y0, x1, y1) in enumerate(rows.tolist(), start=1):
        width, height = max(x1 - x0, 0.0), max(y1 - y0, 0.0)
        whose = {"id": number, "image_id": int(image), "category_id": int(kind), "iscrowd": 0}
        annotations.append({**whose, "bbox": [x0, y0, width, height], "area": width * height, third: value})
    made.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": int(kind)} for kind in np.unique(rows[:, 1])],
        "annotations": annotations,
    }
    made.createIndex()
    return made


def _class_matches(found: Sequence[dict[str, Any] | None]) -> ClassMatches:
    there = [each for each in found if each is not None]
    scores = np.concatenate([each["dtScores"] for each in there])
    order = np.argsort(-scores, kind="mergesort")
    ignored = np.concatenate([each["dtIgnore"] for each in there], axis=1)[:, order].astype(bool)
    matched = np.concatenate([each["dtMatches"] for each in there], axis=1)[:, order] > 0
    image = np.concatenate([np.full(len(each["dtScores"]), each["image_id"]) for each in there])[order]
    objects = np.zeros(len(found), dtype=np.int64)
    for each in there:
        objects[each["image_id"]] = np.count_nonzero(each["gtIgnore"] == 0)
    return ClassMatches(image.astype(np.int64), matched & ~ignored, ~ignored, objects)


def average_precision(found: Sequence[ClassMatches], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean over classes of the average precision, `(samples, thresholds)`, where image i counts `weights[:, i]` times.

    The same as COCO's for a test split that holds each image so many times. A class without an object in a sample does
    not count there; a sample without any object gives NaN.
    """
    total = np.zeros((len(weights), len(found[0].right)))
    classes = np.zeros((len(weights), 1))
    for each in found:
        rows = max(1, _BLOCK_ENTRIES // max(1, len(each.image)))
        precision = np.concatenate(
            [_class_precision(each, weights[start : start + rows]) for start in range(0, len(weights), rows)]
        )
        there = ~np.isnan(precision[:, :1])
        total += np.where(there, precision, 0.0)
        classes += there
    mean: NDArray[np.float64] = np.divide(total, classes, out=np.full(total.shape, np.nan), where=classes > 0)
    return mean


def _class_precision(found: ClassMatches, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The average precision of one class, `(samples, thresholds)`: the mean of the precision at `RECALLS`."""
    objects = (weights @ found.objects)[:, None]
    own = weights[:, found.image]
    averages = np.zeros((len(weights), len(found.right)))
    for threshold, (right, counted) in enumerate(zip(found.right, found.counted, strict=True)):
        if threshold == 0 or (counted != found.counted[threshold - 1]).any():
            seen = np.cumsum(own * counted, axis=1)
        places = np.flatnonzero(right)
        hits = np.cumsum(own[:, places], axis=1)
        precision = _quotient(hits, seen[:, places])
        # At a recall counts the best precision that is reached there or beyond it.
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, _quotient(hits, np.broadcast_to(objects, hits.shape)), side="right")
        averages[:, threshold] = (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return np.where(objects > 0, averages, np.nan)


def _quotient(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
    return quotient


def precision_metrics(precision: NDArray[np.float64]) -> dict[str, float]:
    """map, map_50 and map_75 from the average precision at each threshold."""
    return {
        "map": float(precision.mean()),
        "map_50": float(precision[HALF]),
        "map_75": float(precision[THREE_QUARTERS]),
    }


class MeanAveragePrecision(OfflineMetric):
    """COCO's mean average precision of boxes: map (0.5 to 0.95), map_50 and map_75.

    predictions: `boxes` (x0, y0, x1, y1), `scores` and `labels` of each image; references: `boxes`, `labels` and, if
    need be, `crowd` (1 for a box around many objects, in which detections do not count). 100 detections of each class
    in an image count at most.
    """

    def _info(self) -> evaluate.MetricInfo:
        numbers, classes = datasets.Sequence(datasets.Value("float64")), datasets.Sequence(datasets.Value("int64"))
        predictions = {"boxes": datasets.Sequence(numbers), "scores": numbers, "labels": classes}
        references = {"boxes": datasets.Sequence(numbers), "labels": classes, "crowd": classes}
        return evaluate.MetricInfo(
            description="Mean average precision of detected objects, as COCO measures it.",
            citation="",
            inputs_description="Boxes, labels and scores of each image; boxes, labels and crowd of each image.",
            features=datasets.Features({"predictions": predictions, "references": references}),
        )

    def compute(self, *, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
        """map, map_50 and map_75; where there is no `crowd`, no box is one."""
        references = [{"crowd": [0] * len(each["labels"]), **each} for each in references]
        values: dict[str, float] = super().compute(predictions=predictions, references=references, **options)
        return values

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        detections = object_rows([(each["labels"], each["scores"], each["boxes"]) for each in predictions])
        gold = object_rows([(each["labels"], each["crowd"], each["boxes"]) for each in references])
        return mean_average_precision(detections, gold, len(references))


def object_rows(images: Sequence[tuple[Any, Any, Any]]) -> NDArray[np.float64]:
    """Rows `(objects, 7)`, as `matches` takes them, from each image's classes, scores or crowds, and boxes.

    Errors: HfDistillError for an image whose three are not of one length.
    """
    rows = [np.zeros((0, 7))]
    for image, columns in enumerate(images):
        kinds, values, boxes = (np.asarray(column, dtype=float) for column in columns)
        if not len(kinds) == len(values) == len(boxes) or (len(boxes) and boxes.shape[1:] != (4,)):
            raise HfDistillError(
                f"got {len(kinds)} labels, {len(values)} scores or crowds and boxes of shape {boxes.shape} for image "
                f"{image}, expected one of each and four numbers a box (x0, y0, x1, y1)"
            )
        rows.append(np.column_stack([np.full(len(kinds), float(image)), kinds, values, boxes.reshape(len(kinds), 4)]))
    return np.concatenate(rows)


def mean_average_precision(detections: NDArray[Any], gold: NDArray[Any], images: int) -> dict[str, float]:
    """map, map_50 and map_75; see `matches` for the rows.

    Errors: HfDistillError where there is no object to find.
    """
    if not (gold[:, 2] == 0).any():
        raise HfDistillError("got no object that is not a crowd, expected some to find; evaluate on a labelled split")
    found = matches(detections, gold, images)
    return precision_metrics(average_precision(found, np.ones((1, images), dtype=np.int64))[0])
