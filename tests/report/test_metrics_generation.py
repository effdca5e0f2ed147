"""ROUGE and errors of transcripts against values worked out by hand."""

from __future__ import annotations

import sys

import pytest

from hfdistill import metrics_generation
from hfdistill.errors import HfDistillError
from hfdistill.metrics_generation import Rouge, WordErrorRate, normalized_transcript, rouge_scores, transcript_errors


def test_rouge_of_a_shortened_text() -> None:
    scores = rouge_scores("the cat the mat", "the cat sat on the mat")
    # All 4 words of 4 and 6, in the same order; 2 pairs of 3 and 5.
    assert scores == pytest.approx({"rouge1": 4 / 5, "rouge2": 1 / 2, "rougeL": 4 / 5, "rougeLsum": 4 / 5})


def test_rouge_looks_at_the_order_within_lines() -> None:
    scores = rouge_scores("on the mat\nthe cat sat", "the cat sat\non the mat")
    # 4 of the 5 pairs of words; 3 words of 6 in one order; line by line all of them.
    assert scores == pytest.approx({"rouge1": 1, "rouge2": 4 / 5, "rougeL": 1 / 2, "rougeLsum": 1})


def test_rouge_of_stems() -> None:
    assert rouge_scores("Walking, dogs!", "walked dog")["rouge1"] == 0
    assert rouge_scores("Walking, dogs!", "walked dog", stemmer=True)["rouge1"] == 1
    assert set(rouge_scores("", "walked dog").values()) == {0}


def test_rouge_is_the_mean_over_texts() -> None:
    texts = {"predictions": ["the cat the mat", "no"], "references": ["the cat sat on the mat", "yes"]}
    values = Rouge(keep_in_memory=True).compute(**texts)
    assert values == pytest.approx({"rouge1": 2 / 5, "rouge2": 1 / 4, "rougeL": 2 / 5, "rougeLsum": 2 / 5})
    stems = Rouge(keep_in_memory=True).compute(predictions=["dogs"], references=["dog"], stemmer=True)
    assert stems["rouge1"] == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # d heard as e, and f too much; runs of spaces are one.
        ("ab  ce f ", "ab cd", (2, 2, 3, 5)),
        ("ab", "ab cd", (1, 2, 3, 5)),
        ("", "ab cd", (2, 2, 5, 5)),
        ("uh huh", "", (2, 0, 6, 0)),
        ("Ab, cd.", "ab cd", (2, 2, 3, 5)),
    ],
)
def test_errors_of_a_transcript(prediction: str, reference: str, expected: tuple[int, ...]) -> None:
    counts = transcript_errors(prediction, reference)
    assert tuple(counts[name] for name in ("word_errors", "words", "char_errors", "chars")) == expected


def test_case_and_punctuation_count_unless_told() -> None:
    assert normalized_transcript("Don’t — it's 5 €, “well-known”!") == "don't it's 5 well known"
    assert transcript_errors("Ab, CD.", "ab cd!", normalized=True) == {
        "word_errors": 0, "words": 2, "char_errors": 0, "chars": 5,
    }  # fmt: skip


def test_error_rates_are_over_all_words() -> None:
    heard = {"predictions": ["ab ce f", "Yes"], "references": ["ab cd", "yes"]}
    values = WordErrorRate(keep_in_memory=True).compute(**heard)
    # 2 and 1 wrong of 2 and 1 words, 3 and 1 of 5 and 3 characters.
    assert values == pytest.approx({"wer": 3 / 3, "cer": 4 / 8})
    values = WordErrorRate(keep_in_memory=True).compute(**heard, normalized=True)
    assert values == pytest.approx({"wer": 2 / 3, "cer": 3 / 8})
    with pytest.raises(HfDistillError, match="references without a word"):
        WordErrorRate(keep_in_memory=True).compute(predictions=["uh"], references=[""])


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rouge_score", "jiwer"):
        monkeypatch.setitem(sys.modules, name, None)
    metrics_generation._rouge_scorer.cache_clear()
    with pytest.raises(HfDistillError, match=r"rouge-score, which is not installed.*'hfdistill\[text\]'"):
        rouge_scores("a", "a")
    with pytest.raises(HfDistillError, match=r"jiwer, which is not installed.*'hfdistill\[speech\]'"):
        transcript_errors("a", "a")
