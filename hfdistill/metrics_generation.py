"""Metrics of texts that a model has written or heard: ROUGE, word and character errors.

The functions score one example, so that a stage can keep what each example adds to the sums.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import datasets
import evaluate
import numpy as np

from hfdistill.errors import HfDistillError
from hfdistill.metrics import OfflineMetric, missing_extra

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TRANSCRIPT_COUNTS = ("word_errors", "words", "char_errors", "chars")

_APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"


def rouge_scores(prediction: str, reference: str, *, stemmer: bool = False) -> dict[str, float]:
    """F-measures of rouge1, rouge2, rougeL and rougeLsum, each 0 to 1.

    Words are runs of a to z and 0 to 9 in lower case, as in ROUGE-1.5.5, so that a text in another script scores 0.
    rougeLsum takes the lines of a text for its sentences. With `stemmer` words are cut to their stems (Porter's), as
    most papers do for summaries.
    Errors: HfDistillError where rouge-score is not installed.
    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    found = _rouge_scorer(stemmer).score(reference, prediction)
    return {name: float(found[name].fmeasure) for name in ROUGE}


@functools.cache
def _rouge_scorer(stemmer: bool) -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise missing_extra("rouge-score", "text", "ROUGE") from error
    return rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=stemmer)


def transcript_errors(prediction: str, reference: str, *, normalized: bool = False) -> dict[str, int]:
    """Errors of a transcript, and how much there was to hear: word_errors, words, char_errors, chars.

    Errors are the fewest replacements, insertions and deletions; runs of white space count as one space, which is a
    character too. As they stand, `Yes.` and `yes` differ; with `normalized` both sides go through
    `normalized_transcript` first.
    Errors: HfDistillError where jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise missing_extra("jiwer", "speech", "The word error rate") from error
    given, wanted = (
        normalized_transcript(text) if normalized else " ".join(text.split()) for text in (prediction, reference)
    )
    counts = {"words": len(wanted.split()), "chars": len(wanted)}
    if wanted:
        words, chars = jiwer.process_words(wanted, given), jiwer.process_characters(wanted, given)
        errors = [each.substitutions + each.insertions + each.deletions for each in (words, chars)]
    else:  # silence: whatever was heard is too much
        errors = [len(given.split()), len(given)]
    return {"word_errors": errors[0], "words": counts["words"], "char_errors": errors[1], "chars": counts["chars"]}


def normalized_transcript(text: str) -> str:
    """A transcript in lower case, without punctuation and symbols but for apostrophes, with single spaces."""
    kept = (
        "'" if letter in _APOSTROPHES else " " if unicodedata.category(letter)[0] in "PS" else letter
        for letter in text.lower()
    )
    return " ".join("".join(kept).split())


def _texts_info(description: str) -> evaluate.MetricInfo:
    text = datasets.Value("string")
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="A text each.",
        features=datasets.Features({"predictions": text, "references": text}),
    )


class Rouge(OfflineMetric):
    """Mean over texts of the F-measures of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, each 0 to 1.

    `compute(..., stemmer=True)` compares stems of words; `rouge_scores` tells the rest.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _texts_info("Mean F-measures of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum.")

    def _compute(self, predictions: Any, references: Any, stemmer: bool = False) -> dict[str, float]:
        scores = [rouge_scores(*pair, stemmer=stemmer) for pair in zip(predictions, references, strict=True)]
        return {name: float(np.mean([each[name] for each in scores])) for name in ROUGE}


class WordErrorRate(OfflineMetric):
    """Word and character errors over all transcripts, divided by the words and characters of the references.

    Less is better; above 1 there are more errors than words. `compute(..., normalized=True)` does not look at case and
    punctuation.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _texts_info("Word error rate and character error rate over all transcripts.")

    def _compute(self, predictions: Any, references: Any, normalized: bool = False) -> dict[str, float]:
        found = [transcript_errors(*pair, normalized=normalized) for pair in zip(predictions, references, strict=True)]
        return error_rates({name: sum(each[name] for each in found) for name in TRANSCRIPT_COUNTS})


def error_rates(counts: dict[str, int]) -> dict[str, float]:
    """Word and character error rate from summed `transcript_errors`.

    Errors: HfDistillError where nothing was said.
    """
    if not counts["words"]:
        raise HfDistillError(
            "got references without a word, expected at least one to count errors against; evaluate on transcribed "
            "speech"
        )
    return {
        "wer": counts["word_errors"] / counts["words"],
        "cer": counts["char_errors"] / counts["chars"],
    }
