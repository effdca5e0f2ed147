"""The score sheet of a detector: what it has seen in each image, and what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfdistill.errors import HfDistillError
from hfdistill.fidelity import Calibration, Fidelity
from hfdistill.intervals import Estimate, bootstrap_difference, bootstrap_estimate, bootstrap_weights
from hfdistill.main_metric import MAIN_METRIC, MainMetric
from hfdistill.metrics_detection import ClassMatches, average_precision, matches, precision_metrics

if TYPE_CHECKING:
    from hfdistill.score_sheet import ScoreSheet

DETECTION = "object_detection"
SAMPLES = 400
"""Samples of the bootstrap; each sorts nothing and matches nothing anew, but goes through all detections."""


@dataclass(frozen=True)
class DetectionSheet:
    """Detections `(n, 7)`: image, class, score, x0, y0, x1, y1 in pixels; gold `(m, 7)`: crowd in place of the score.

    The images are counted from 0 in the order of the test split.
    """

    detections: NDArray[np.float64]
    gold: NDArray[np.float64]
    images: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The images."""
        return (self.images,)

    @property
    def counts(self) -> dict[str, int]:
        """Objects that are to be found."""
        return {"objects": int((self.gold[:, 2] == 0).sum())}

    @property
    def main_metric(self) -> MainMetric:
        """The mean average precision."""
        return MAIN_METRIC[DETECTION]

    @cached_property
    def _matches(self) -> list[ClassMatches]:
        return matches(self.detections, self.gold, self.images)

    @cached_property
    def _resampled(self) -> NDArray[np.float64]:
        """The mean average precision on samples of images, the same samples for every sheet of a split."""
        blocks = bootstrap_weights(self.images, SAMPLES)
        return np.concatenate([average_precision(self._matches, weights).mean(axis=1) for weights in blocks])

    def metrics(self) -> dict[str, float]:
        """map, map_50 and map_75."""
        return precision_metrics(average_precision(self._matches, np.ones((1, self.images), dtype=np.int64))[0])

    def main(self) -> Estimate:
        """By the bootstrap over images."""
        return bootstrap_estimate(self.metrics()["map"], _known(self._resampled), self.images)

    def gain_over(self, other: ScoreSheet) -> Estimate:
        """By the paired bootstrap over images."""
        assert isinstance(other, DetectionSheet), "a run has one task"
        gain = self.metrics()["map"] - other.metrics()["map"]
        return bootstrap_difference(gain, _known(self._resampled - other._resampled), self.images)

    def fidelity_to(self, teacher: ScoreSheet) -> Fidelity | None:
        """None: two detectors have no decisions in common."""
        return None

    def calibration(self) -> Calibration | None:
        """None: of the probabilities only the best is kept."""
        return None

    def same_split(self, other: ScoreSheet) -> bool:
        """Whether there are the same objects in the same images."""
        return (
            isinstance(other, DetectionSheet)
            and self.images == other.images
            and bool(np.array_equal(self.gold, other.gold))
        )


def detection_sheet(columns: Mapping[str, NDArray[Any]]) -> DetectionSheet:
    """The sheet from the columns detections, gold and examples.

    Errors: HfDistillError for missing columns, shapes that do not fit, values that are not finite, images that there
    are not, and a split without an object.
    """
    wanted = ("detections", "gold", "examples")
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise HfDistillError(f"got the columns {', '.join(sorted(columns))}, expected also {', '.join(missing)}")
    detections, gold, examples = (np.asarray(columns[name], dtype=np.float64) for name in wanted)
    if examples.shape != (1,) or examples[0] < 1:
        raise HfDistillError(f"got examples {examples.tolist()}, expected the number of images alone")
    for name, rows in (("detections", detections), ("gold", gold)):
        if rows.ndim != 2 or rows.shape[1] != 7:
            raise HfDistillError(f"got {name} of shape {rows.shape}, expected seven numbers for each")
        if not np.isfinite(rows).all():
            raise HfDistillError(f"got values in {name} that are not finite; did the training diverge?")
        if len(rows) and not 0 <= rows[:, 0].min() <= rows[:, 0].max() < examples[0]:
            raise HfDistillError(
                f"got {name} in the images {rows[:, 0].min():.0f} to {rows[:, 0].max():.0f}, expected 0 to "
                f"{examples[0] - 1:.0f}"
            )
    if not (gold[:, 2] == 0).any():
        raise HfDistillError("got no object that is not a crowd, expected some to find; evaluate on a labelled split")
    return DetectionSheet(detections, gold, int(examples[0]))


def _known(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the samples in whose images there is no object."""
    return resampled[~np.isnan(resampled)]
