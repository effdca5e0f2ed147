"""Score sheets made of sums: every number against a value worked out by hand."""

from __future__ import annotations

from math import exp, inf, sqrt

import numpy as np
import pytest
from report.run_folders import language_columns, tag_columns

from hfdistill.errors import HfDistillError
from hfdistill.main_metric import MAIN_METRIC
from hfdistill.score_sheet import sheet_of
from hfdistill.sum_sheet import SUM_TASKS

# Two texts: 2 tokens that cost 6 nats and 6 tokens that cost 10, so 16 / 8.
TWO_TEXTS = {
    "loss_sum": np.array([6.0, 10.0]),
    "tokens": np.array([2.0, 6.0]),
    "correct": np.array([1.0, 3.0]),
    "kl_sum": np.array([1.0, 3.0]),
    "agree": np.array([2.0, 4.0]),
    "compared": np.array([2.0, 6.0]),
    "teacher_wrong_student_right": np.array([0.0, 1.0]),
    "teacher_right_student_wrong": np.array([1.0, 2.0]),
}


def test_a_language_model_is_measured_by_token() -> None:
    sheet = sheet_of("causal_lm", TWO_TEXTS)
    assert sheet.metrics() == pytest.approx({"loss": 2.0, "perplexity": exp(2), "accuracy": 0.5})
    assert (sheet.shape, sheet.counts) == ((2,), {"tokens": 8})
    assert sheet.main().mean == 2
    assert sheet.calibration() is None
    found = sheet.fidelity_to(sheet)
    assert found is not None
    assert (found.decisions, found.agreement, found.kl) == (8, 6 / 8, 4 / 8)
    assert (found.teacher_wrong_student_right, found.teacher_right_student_wrong) == (1, 3)
    assert (found.ece_student, found.both_right) == (None, None)
    taught = {name: TWO_TEXTS[name] for name in ("loss_sum", "tokens", "correct")}
    assert sheet_of("causal_lm", taught).fidelity_to(sheet) is None


def test_entities_and_answers() -> None:
    sheet = sheet_of("token_classification", tag_columns(2, 3))
    # Of 40 sentences 30 have 2 of 3 right, and there are 4 in each of the 40.
    values = sheet.metrics()
    assert values["f1"] == pytest.approx(2 * 60 / (90 + 160))
    assert (values["precision"], values["recall"]) == pytest.approx((60 / 90, 60 / 160))
    assert (values["accuracy"], values["loss"]) == pytest.approx((0.9, 0.5))
    nothing = sheet_of("token_classification", tag_columns(0, 0) | {"gold": np.zeros(40)})
    assert nothing.metrics()["f1"] == 0
    answers = {
        "loss_sum": np.array([1.0, 3.0]),
        "tokens": np.array([1.0, 1.0]),
        "exact": np.array([1.0, 0.0]),
        "f1": np.array([1.0, 0.5]),
        "questions": np.array([1.0, 1.0]),
    }
    sheet = sheet_of("question_answering", answers)
    assert sheet.metrics() == {"f1": 0.75, "exact_match": 0.5, "loss": 2.0}
    assert sheet.counts == {}


def test_less_loss_is_a_gain() -> None:
    better, worse = (sheet_of("causal_lm", language_columns(loss, spread=0.5)) for loss in (2.0, 2.1))
    gain = better.gain_over(worse)
    # Every text is 0.1 nats a token better, so whatever sample is drawn.
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    assert worse.gain_over(better).mean == pytest.approx(-0.1)
    assert worse.gain_over(better).below_zero


def test_more_entities_are_a_gain() -> None:
    better, worse = (sheet_of("token_classification", tag_columns(right, 3)) for right in (3, 2))
    gain = better.gain_over(worse)
    assert gain.mean == pytest.approx(2 * 30 / (90 + 160))
    assert gain.above_zero
    assert worse.gain_over(better).mean == -gain.mean


def test_bootstrap_of_a_loss_agrees_with_the_delta_method() -> None:
    generator = np.random.default_rng(3)
    tokens = generator.integers(10, 100, size=500).astype(float)
    loss = generator.gamma(4.0, 0.5, size=500) * tokens
    estimate = sheet_of("masked_lm", {"loss_sum": loss, "tokens": tokens, "correct": tokens}).main()
    ratio = loss.sum() / tokens.sum()
    standard_error = np.std(loss - ratio * tokens) / tokens.mean() / sqrt(500)
    assert estimate.mean == pytest.approx(ratio)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_the_same_split_is_known_by_what_the_data_decides() -> None:
    sheet = sheet_of("causal_lm", TWO_TEXTS)
    assert sheet.same_split(sheet_of("causal_lm", TWO_TEXTS | {"loss_sum": np.zeros(2)}))
    assert not sheet.same_split(sheet_of("causal_lm", TWO_TEXTS | {"tokens": np.array([6.0, 2.0])}))
    logits = sheet_of("regression", {"logits": np.zeros((2, 1)), "labels": np.zeros(2)})
    assert not sheet.same_split(logits)
    assert not logits.same_split(sheet)


@pytest.mark.parametrize(
    ("problem_type", "change", "message"),
    [
        ("causal_ml", {}, "did you mean 'causal_lm'"),
        ("token_classification", {}, "expected also gold, predicted, true_positive"),
        ("regression", {}, "expected logits and labels"),
        ("causal_lm", {"correct": np.zeros(3)}, r"correct of shape \(3,\)"),
        ("causal_lm", {"loss_sum": np.array([1.0, np.nan])}, "loss_sum that are not finite"),
        ("causal_lm", {"tokens": np.zeros(2)}, "no tokens with a label"),
    ],
)
def test_refusals(problem_type: str, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(HfDistillError, match=message):
        sheet_of(problem_type, TWO_TEXTS | change)


def test_every_task_of_sums_has_its_main_metric() -> None:
    for problem_type, task in SUM_TASKS.items():
        assert MAIN_METRIC[problem_type].key in {**task.ratios, **task.written}
        assert task.counted in task.columns
        assert set(task.given) <= task.columns


def test_how_numbers_are_written() -> None:
    loss, f1, fit = (MAIN_METRIC[task] for task in ("causal_lm", "token_classification", "regression"))
    assert [loss.value(np.log(number)) for number in (3.2174, 12.345, 1234.5)] == ["3.217", "12.35", "1,235"]
    assert loss.value(1e4) == "inf"
    assert (loss.difference(0.05), loss.span(-0.1, 0.2)) == (
        "+0.0500 nats a token",
        "−0.1000 to +0.2000 nats a token",
    )
    assert (loss.gain(2.0, 2.5), f1.gain(0.5, 0.75)) == (0.5, -0.25)
    assert (loss.published(0.0), f1.published(0.5)) == (("perplexity", 1.0), ("f1", 0.5))
    assert (f1.value(0.5), f1.difference(-0.1), fit.value(0.5)) == ("50.00 %", "−10.00 points", "0.5000")
    assert (loss.lowest, loss.highest, f1.highest, fit.lowest) == (0, inf, 1, -inf)
