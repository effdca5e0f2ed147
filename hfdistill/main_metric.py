"""The one number a run is judged by: what it is called, which way is better, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import ClassVar

from hfdistill.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from hfdistill.metrics_text import perplexity


@dataclass(frozen=True)
class MainMetric:
    """A number without a unit, such as R², of which more is better.

    `key` is its name among a stage's metrics, `name` what people call it, `reading` what it means where that is not
    plain, `hub` its name on the Hub where that is not `key`. Differences are oriented: above zero is better, whichever
    way the number itself goes.
    """

    key: str
    name: str
    reading: str = ""
    hub: str | None = None
    sign: ClassVar[int] = 1
    lowest: ClassVar[float] = -math.inf
    highest: ClassVar[float] = 1.0
    scale: ClassVar[float] = 1.0
    digits: ClassVar[int] = 4
    unit: ClassVar[str] = ""
    axis_unit: ClassVar[str] = ""

    @property
    def better(self) -> str:
        """Where a better model's number lies."""
        return "above" if self.sign > 0 else "below"

    @property
    def worse(self) -> str:
        """Where a worse model's number lies."""
        return "below" if self.sign > 0 else "above"

    def gain(self, first: float, second: float) -> float:
        """How much better the first is."""
        return self.sign * (first - second)

    def shown(self, number: float) -> float:
        """The number as it is drawn."""
        return self.scale * number

    def value(self, number: float) -> str:
        """The number in words: 0.8730."""
        return f"{self.shown(number):.{self.digits}f}"

    def spread(self, deviation: float) -> str:
        """What follows a value as its standard deviation: " ± 0.0021"."""
        return f" ± {self.value(deviation)}"

    def difference(self, number: float) -> str:
        """An oriented difference: +0.0120."""
        return signed(self.scale * number, self.digits) + self.unit

    def span(self, low: float, high: float) -> str:
        """The interval of an oriented difference."""
        low, high = self.scale * low, self.scale * high
        return f"{signed(low, self.digits)} to {signed(high, self.digits)}{self.unit}"

    def published(self, number: float) -> tuple[str, float]:
        """Name and value for the Hub."""
        return self.hub or self.key, number


class ShareMetric(MainMetric):
    """A share, of which more is better: written in per cent, its differences in points."""

    lowest = 0.0
    scale = 100.0
    digits = 2
    unit = " points"
    axis_unit = " (%)"

    def value(self, number: float) -> str:
        """93.42 %."""
        return f"{super().value(number)} %"


class ErrorRateMetric(ShareMetric):
    """Errors for each thing that could be right, of which less is better; there may be more errors than things."""

    sign = -1
    highest = math.inf


class LossMetric(MainMetric):
    """A mean loss in nats a token, of which less is better: written as perplexity, its differences in nats a token."""

    sign = -1
    lowest = 0.0
    highest = math.inf
    unit = " nats a token"

    def shown(self, number: float) -> float:
        """The perplexity."""
        return perplexity(number)

    def value(self, number: float) -> str:
        """The perplexity: 3.217, 12.34, 1,234."""
        shown = self.shown(number)
        return f"{shown:,.{3 if shown < 10 else 2 if shown < 1000 else 0}f}"

    def spread(self, deviation: float) -> str:
        """Nothing: the deviation is that of the loss, which has a column of its own."""
        return ""

    def published(self, number: float) -> tuple[str, float]:
        """The perplexity."""
        return "perplexity", self.shown(number)


_LANGUAGE = LossMetric(
    "loss",
    "perplexity",
    "*Perplexity* is exp(loss), the loss being the mean over tokens: lower is better. Gains are in nats a token, above "
    "zero where the loss is lower.",
)
_WORD_ERRORS = ErrorRateMetric(
    "wer",
    "word error rate",
    "*Word error rate*: words that are wrong, missing or too many, for each word that was said: lower is better. Gains "
    "are above zero where the rate is lower.",
)

MAIN_METRIC: dict[str, MainMetric] = {
    SINGLE_LABEL: ShareMetric("accuracy", "accuracy"),
    MULTI_LABEL: ShareMetric("f1_micro", "micro F1"),
    REGRESSION: MainMetric("r2", "R²"),
    "token_classification": ShareMetric("f1", "entity F1"),
    "question_answering": ShareMetric("f1", "answer F1"),
    "causal_lm": _LANGUAGE,
    "masked_lm": _LANGUAGE,
    "seq2seq_lm": ShareMetric(
        "rougeLsum",
        "ROUGE-Lsum",
        "*ROUGE-Lsum*: F-measure of the words that a written text has in common with its reference in the same order, "
        "line by line; the mean over texts.",
        hub="rouge",
    ),
    "speech_seq2seq": _WORD_ERRORS,
    "ctc": _WORD_ERRORS,
    "semantic_segmentation": ShareMetric(
        "mean_iou",
        "mean IoU",
        "*Mean IoU*: for each class the pixels in both its predicted and its true region, as a share of those in "
        "either, over all images; the mean over the classes that occur.",
    ),
    "object_detection": ShareMetric(
        "map",
        "mAP",
        "*mAP*: COCO's mean average precision of the boxes, over classes and over overlaps (IoU) from 0.5 to 0.95.",
    ),
}
"""The main metric of each task that a run can measure."""

WITHOUT_TEXTS: dict[str, MainMetric] = {"seq2seq_lm": _LANGUAGE}
"""The main metric where the model was scored on given texts and has written none."""


def main_metric(problem_type: str, measured: Container[str]) -> MainMetric:
    """The main metric of a task among the metrics that were measured, by their keys."""
    first = MAIN_METRIC[problem_type]
    return first if first.key in measured else WITHOUT_TEXTS.get(problem_type, first)


def signed(number: float, digits: int) -> str:
    """A number with its sign and a proper minus."""
    return f"{number:+.{digits}f}".replace("-", "−")
