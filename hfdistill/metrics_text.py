"""Metrics of tagged and of answered texts, and of language models, that need no download.

The functions score one example, so that a stage can keep what each example adds to the sums.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from hfdistill.errors import HfDistillError
from hfdistill.metrics import OfflineMetric

OUTSIDE = "O"

_GOES_ON = frozenset("IEL")
_ENDS = frozenset({"", *"ELSU"})
_PREFIXES = _GOES_ON | _ENDS | {"B"}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The entities of one tagged sentence: first token, token after the last, type.

    IOB2: B- begins an entity and I- of the same type goes on with it; an I- after anything else begins one too, as the
    evaluation of CoNLL reads it, so IOB1 means what it meant there. E-, L- end an entity, S- and U- are a whole one. A
    tag without such a prefix, as in tagging parts of speech, is an entity of its own.
    """
    found: set[tuple[int, int, str]] = set()
    begun: tuple[int, str] | None = None
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = _parts(tag)
        if begun is not None and (prefix not in _GOES_ON or kind != begun[1]):
            found.add((begun[0], place, begun[1]))
            begun = None
        if tag == OUTSIDE:
            continue
        if begun is None:
            begun = (place, kind)
        if prefix in _ENDS:
            found.add((begun[0], place + 1, kind))
            begun = None
    return found


def _parts(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag; a bare B or I has no type, a tag without a prefix is its own."""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if prefix in _PREFIXES and (dash or prefix in ("B", "I")) else ("", tag)


def entity_counts(predicted_tags: Sequence[str], gold_tags: Sequence[str]) -> tuple[int, int, int]:
    """Entities of one sentence that are right (place and type), that were predicted, and that there are.

    Errors: HfDistillError when the two are not of the same length.
    """
    if len(predicted_tags) != len(gold_tags):
        raise HfDistillError(
            f"got {len(predicted_tags)} predicted tags for {len(gold_tags)} tokens, expected one for each token; "
            "leave out special tokens and continued words on both sides"
        )
    predicted, gold = entities(predicted_tags), entities(gold_tags)
    return len(predicted & gold), len(predicted), len(gold)


def normalized_answer(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation and articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def answer_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of the words against the best of several answers, each 0 to 1, by SQuAD's rules.

    No answer at all, or only empty ones, means that the question has none: then an empty prediction is right.
    """
    wanted = [normal for answer in answers if (normal := normalized_answer(answer))] or [""]
    given = normalized_answer(prediction)
    return float(given in wanted), max(_word_f1(given.split(), answer.split()) for answer in wanted)


def _word_f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


def perplexity(loss: float) -> float:
    """exp(loss) of a mean loss in nats a token; infinite where no float is as large."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class EntityF1(OfflineMetric):
    """Precision, recall and F1 of entities over all sentences, as seqeval counts them, and the share of right tags."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Precision, recall and F1 of the entities of tagged sentences, and the share of right tags.",
            citation="",
            inputs_description="Tags of each sentence, such as B-PER, I-PER, O.",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        counts = np.array([entity_counts(*pair) for pair in zip(predictions, references, strict=True)])
        right, predicted, gold = counts.sum(axis=0).tolist()
        same = [
            given == tag for pair in zip(predictions, references, strict=True) for given, tag in zip(*pair, strict=True)
        ]
        return {
            "precision": share(right, predicted),
            "recall": share(right, gold),
            "f1": share(2 * right, predicted + gold),
            "accuracy": share(sum(same), len(same)),
        }


class SpanOverlap(OfflineMetric):
    """SQuAD's exact match and F1 of answers, each 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of answers that match exactly, and mean F1 of their words, by SQuAD's rules.",
            citation="",
            inputs_description="predictions: an answer for each question; references: the accepted answers of each.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        scores = [answer_scores(*pair) for pair in zip(predictions, references, strict=True)]
        exact, f1 = np.mean(scores, axis=0).tolist()
        return {"exact_match": exact, "f1": f1}


class Perplexity(OfflineMetric):
    """Perplexity of a language model over all tokens, from sums of the loss."""

    def _info(self) -> evaluate.MetricInfo:
        sums = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="exp of the mean loss a token.",
            citation="",
            inputs_description="predictions: summed loss in nats of each text; references: its number of tokens.",
            features=datasets.Features(sums),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        loss = share(float(np.sum(predictions)), float(np.sum(references)))
        return {"loss": loss, "perplexity": perplexity(loss)}


def share(part: float, whole: float) -> float:
    """part / whole, and 0 of nothing."""
    return part / whole if whole else 0.0
