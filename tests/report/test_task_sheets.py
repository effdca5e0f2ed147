"""Score sheets of written and heard texts, of label maps and of objects: every number worked out by hand."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from report.run_folders import (
    ctc_columns,
    object_columns,
    pixel_columns,
    speech_columns,
    summary_columns,
)

from hfdistill.errors import HfDistillError
from hfdistill.main_metric import MAIN_METRIC, main_metric
from hfdistill.score_sheet import sheet_of

PIXELS, OBJECTS = pixel_columns(0.8), object_columns(2)


def without(columns: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    """The other columns."""
    return {name: column for name, column in columns.items() if name not in names}


def test_written_texts() -> None:
    sheet = sheet_of("seq2seq_lm", summary_columns(0.3))
    assert sheet.metrics() == pytest.approx(
        {
            "rouge1": 0.5,
            "rouge2": 0.25,
            "rougeL": 0.4,
            "rougeLsum": 0.3,
            "loss": 2,
            "accuracy": 0.4,
            "perplexity": exp(2),
        }
    )
    assert (sheet.main_metric.key, sheet.main().mean) == ("rougeLsum", pytest.approx(0.3))
    assert sheet.counts == {"tokens": 1500}
    gain = sheet.gain_over(sheet_of("seq2seq_lm", summary_columns(0.25)))
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.05, 0.05, 0.05))


def test_texts_that_were_not_written() -> None:
    sheet = sheet_of("seq2seq_lm", summary_columns(0.3, written=False))
    assert sheet.metrics() == pytest.approx({"loss": 2, "accuracy": 0.4, "perplexity": exp(2)})
    assert (sheet.main_metric.key, sheet.main().mean) == ("loss", 2)
    assert main_metric("seq2seq_lm", ("loss",)).sign == -1
    assert main_metric("ctc", ()).key == "wer"


def test_transcripts() -> None:
    # 40 transcripts of 10 words and 40 characters; 2 wrong words each, and 10 more.
    sheet = sheet_of("speech_seq2seq", speech_columns(2))
    assert sheet.metrics() == pytest.approx({"wer": 90 / 400, "cer": 180 / 1600, "loss": 0.5, "accuracy": 0.4})
    assert sheet.counts == {"words": 400}
    heard = sheet_of("ctc", ctc_columns(2))
    assert heard.metrics() == pytest.approx({"wer": 90 / 400, "cer": 180 / 1600, "loss": 3})
    found = heard.fidelity_to(heard)
    assert found is not None
    assert (found.decisions, found.agreement, found.kl) == pytest.approx((1500, 0.8, 0.3))
    assert found.teacher_wrong_student_right is None
    followed = sheet.fidelity_to(sheet)
    assert followed is not None
    assert followed.teacher_right_student_wrong == 80


@pytest.mark.parametrize(("problem_type", "columns"), [("speech_seq2seq", speech_columns), ("ctc", ctc_columns)])
def test_fewer_errors_are_a_gain(problem_type: str, columns: object) -> None:
    better, worse = (sheet_of(problem_type, columns(errors)) for errors in (2, 3))
    gain = better.gain_over(worse)
    # One word of ten fewer, whatever sample is drawn.
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    assert worse.gain_over(better).below_zero
    main = better.main()
    assert main.low < 90 / 400 < main.high


def test_label_maps() -> None:
    sheet = sheet_of("semantic_segmentation", pixel_columns(0.8))
    # 30 pictures with 0.8 of the pixels right and 10 with 0.7: 0.775. Of 60 and 40 pixels a picture 46.5 and 31 are
    # right; 0.225 · 40 = 9 and 0.225 · 60 = 13.5 more are taken for the class.
    values = sheet.metrics()
    assert values["mean_iou"] == pytest.approx((46.5 / 69 + 31 / 53.5) / 2)
    assert (values["pixel_accuracy"], values["loss"]) == pytest.approx((0.775, 0.5))
    assert sheet.counts == {"pixels": 4000}
    assert sheet.shape == (40,)
    found = sheet.fidelity_to(sheet)
    assert found is not None
    assert (found.decisions, found.agreement) == (4000, 0.8)


def test_larger_overlaps_are_a_gain() -> None:
    better, worse = (sheet_of("semantic_segmentation", pixel_columns(right)) for right in (0.9, 0.8))
    gain = better.gain_over(worse)
    assert gain.above_zero
    assert gain.mean == pytest.approx(better.metrics()["mean_iou"] - worse.metrics()["mean_iou"])
    assert worse.gain_over(better).mean == -gain.mean
    main = better.main()
    assert main.low < main.mean < main.high


def test_a_bootstrap_over_many_classes_is_of_images() -> None:
    generator = np.random.default_rng(0)
    union = generator.integers(0, 50, size=(300, 150)).astype(float)
    columns = {"intersection": np.floor(union * generator.random((300, 1))), "union": union}
    columns |= {name: union.sum(axis=1) for name in ("pixels", "loss_sum", "correct")}
    main = sheet_of("semantic_segmentation", columns).main()
    # All classes of an image share its quality, whose standard deviation is that of an even distribution.
    expected = 2 * 1.96 * np.sqrt(1 / 12 / 300)
    assert main.high - main.low == pytest.approx(expected, rel=0.15)


def test_detected_objects() -> None:
    sheet = sheet_of("object_detection", object_columns(15))
    # Half of the detections is drawn up to the recall of 0.75: 76 of 101 recalls; the mistakes are last.
    assert sheet.metrics() == pytest.approx(dict.fromkeys(("map", "map_50", "map_75"), 76 / 101))
    assert (sheet.shape, sheet.counts) == ((20,), {"objects": 20})
    assert sheet.fidelity_to(sheet) is None
    assert sheet.calibration() is None
    main = sheet.main()
    assert main.mean == pytest.approx(76 / 101)
    # A share of 15 in 20, but for recalls that are a hundredth apart.
    assert main.high - main.low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 20), rel=0.15)
    better = sheet_of("object_detection", object_columns(18))
    gain = better.gain_over(sheet)
    assert gain.mean == pytest.approx((91 - 76) / 101)
    assert gain.above_zero or gain.low == 0
    assert sheet.gain_over(better).mean == -gain.mean
    assert sheet.gain_over(better).high == pytest.approx(-gain.low)


def test_detections_are_paired_by_image() -> None:
    sheet = sheet_of("object_detection", object_columns(15))
    gain = sheet.gain_over(sheet_of("object_detection", object_columns(15)))
    assert (gain.mean, gain.low, gain.high) == (0, 0, 0)


def test_the_same_split() -> None:
    pixels = sheet_of("semantic_segmentation", pixel_columns(0.8))
    assert pixels.same_split(sheet_of("semantic_segmentation", pixel_columns(0.9)))
    narrower = {name: column[:, :2] for name, column in pixel_columns(0.8).items() if column.ndim == 2}
    assert not pixels.same_split(sheet_of("semantic_segmentation", pixel_columns(0.8) | narrower))
    objects = sheet_of("object_detection", object_columns(15))
    assert objects.same_split(sheet_of("object_detection", object_columns(2)))
    moved = object_columns(15)["gold"] + [0, 0, 0, 1, 1, 1, 1]
    assert not objects.same_split(sheet_of("object_detection", object_columns(15) | {"gold": moved}))
    assert not objects.same_split(sheet_of("object_detection", object_columns(15) | {"examples": np.array([21.0])}))
    assert not objects.same_split(pixels)
    words = speech_columns(2)
    assert not sheet_of("ctc", ctc_columns(2)).same_split(
        sheet_of("ctc", ctc_columns(2) | {"words": words["words"] + 1})
    )


@pytest.mark.parametrize(
    ("problem_type", "columns", "message"),
    [
        ("seq2seq_lm", without(summary_columns(0.3), "rouge2"), "expected also rouge2"),
        ("seq2seq_lm", summary_columns(0.3) | {"texts": np.zeros(40)}, "no texts with a label"),
        ("speech_seq2seq", without(speech_columns(2), "chars"), "expected also chars"),
        ("ctc", ctc_columns(2) | {"words": np.zeros(40)}, "no words with a label"),
        ("semantic_segmentation", PIXELS | {"union": np.ones((40, 2))}, "the same classes in intersection and union"),
        ("semantic_segmentation", PIXELS | {"union": np.ones(40)}, r"\(40, 3\) and \(40,\)"),
        ("semantic_segmentation", PIXELS | {"correct": np.ones((40, 3))}, r"correct of shape \(40, 3\)"),
        ("object_detection", without(OBJECTS, "examples"), "expected also examples"),
        ("object_detection", OBJECTS | {"gold": np.ones((3, 6))}, r"gold of shape \(3, 6\)"),
        ("object_detection", OBJECTS | {"examples": np.array([10.0])}, "in the images 0 to 19, expected 0 to 9"),
        ("object_detection", OBJECTS | {"gold": np.ones((3, 7))}, "no object that is not a crowd"),
        ("object_detection", OBJECTS | {"detections": np.full((1, 7), np.nan)}, "detections that are not finite"),
        ("object_detection", OBJECTS | {"examples": np.zeros(2)}, "the number of images alone"),
    ],
)
def test_refusals(problem_type: str, columns: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(HfDistillError, match=message):
        sheet_of(problem_type, columns)


def test_how_numbers_are_written() -> None:
    errors, overlap, rouge = (MAIN_METRIC[task] for task in ("ctc", "semantic_segmentation", "seq2seq_lm"))
    assert (errors.value(0.125), errors.difference(0.02), errors.gain(0.25, 0.5)) == ("12.50 %", "+2.00 points", 0.25)
    assert (errors.better, errors.highest) == ("below", float("inf"))
    assert overlap.value(0.5) == "50.00 %"
    assert rouge.published(0.4) == ("rouge", 0.4)
    assert errors.published(0.1) == ("wer", 0.1)
