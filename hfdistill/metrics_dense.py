"""Metrics of label maps: how far the regions of each class overlap with those that are there."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from hfdistill.errors import HfDistillError
from hfdistill.metrics import OfflineMetric
from hfdistill.metrics_text import share

IGNORED = 255
"""The label of a pixel that does not count, where nothing else is said; so are labels below 0."""


def region_counts(
    predicted: NDArray[Any], labels: NDArray[Any], classes: int, ignore: int | None = IGNORED
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of one picture in the intersection and in the union of the predicted and the true region of each class.

    Takes two maps of class indices, of one shape, and gives two arrays `(classes,)`. Pixels whose label is `ignore` or
    below 0 do not count, whatever was predicted there.
    Errors: HfDistillError for maps of different shapes, and for classes that there are not.
    """
    if predicted.shape != labels.shape:
        raise HfDistillError(
            f"got a predicted map of shape {predicted.shape} for labels of shape {labels.shape}, expected a class for "
            "each pixel; resize the logits to the label map first"
        )
    counted = labels >= 0 if ignore is None else (labels >= 0) & (labels != ignore)
    given, truth = predicted[counted].astype(np.int64), labels[counted].astype(np.int64)
    for name, found in (("predicted", given), ("labelled", truth)):
        if found.size and not 0 <= found.min() <= found.max() < classes:
            wrong = int(found.max() if found.max() >= classes else found.min())
            raise HfDistillError(
                f"got a pixel {name} as class {wrong}, expected 0 to {classes - 1}; check the number of classes and "
                f"the label of pixels that do not count ({ignore})"
            )
    intersection = np.bincount(truth[given == truth], minlength=classes)
    union = np.bincount(given, minlength=classes) + np.bincount(truth, minlength=classes) - intersection
    return intersection, union


def mean_iou(intersection: NDArray[Any], union: NDArray[Any]) -> Any:
    """Mean of intersection / union `(..., classes)` over the classes with a union, and 0 where there is none."""
    shares = np.divide(intersection, union, out=np.zeros(np.shape(union)), where=union > 0).sum(axis=-1)
    seen = (union > 0).sum(axis=-1)
    return np.divide(shares, seen, out=np.zeros(np.shape(seen)), where=seen > 0)[()]


class MeanIoU(OfflineMetric):
    """Mean over classes of intersection over union, summed over all pictures, and the share of right pixels.

    Classes that occur in no prediction and no label do not count; nor do pixels labelled `ignore_index` or below 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of the classes, and the share of right pixels.",
            citation="",
            inputs_description="A map of class indices for each picture.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions: Any, references: Any, ignore_index: int | None = IGNORED) -> dict[str, float]:
        pairs = [(np.asarray(given), np.asarray(truth)) for given, truth in zip(predictions, references, strict=True)]
        classes = 1 + max(int(max(given.max(), truth.max())) for given, truth in pairs)
        counts = np.array([region_counts(given, truth, classes, ignore_index) for given, truth in pairs])
        intersection, union = counts.sum(axis=0)
        pixels = sum(int(((truth >= 0) & (truth != ignore_index)).sum()) for _, truth in pairs)
        return {
            "mean_iou": float(mean_iou(intersection, union)),
            "pixel_accuracy": share(int(intersection.sum()), pixels),
        }
