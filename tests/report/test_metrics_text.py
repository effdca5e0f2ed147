"""Entities, answers and perplexity against values worked out by hand."""

from __future__ import annotations

from math import exp, inf, log

import pytest

from hfdistill.errors import HfDistillError
from hfdistill.metrics_text import (
    EntityF1,
    Perplexity,
    SpanOverlap,
    answer_scores,
    entities,
    entity_counts,
    normalized_answer,
    perplexity,
)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        # An I- after O begins an entity, and so does one of another type.
        ("O I-PER I-PER", {(1, 3, "PER")}),
        ("B-PER I-LOC I-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),
        # Two entities side by side.
        ("B-PER B-PER I-PER", {(0, 1, "PER"), (1, 3, "PER")}),
        ("B-PER I-PER", {(0, 2, "PER")}),
        ("B-geo-loc I-geo-loc", {(0, 2, "geo-loc")}),
        ("B I O I", {(0, 2, ""), (3, 4, "")}),
        ("S-PER B-PER I-PER E-PER S-LOC U-LOC", {(0, 1, "PER"), (1, 4, "PER"), (4, 5, "LOC"), (5, 6, "LOC")}),
        # Plain tags, also those that look like a prefix, are an entity each.
        ("NOUN NOUN E X-Y", {(0, 1, "NOUN"), (1, 2, "NOUN"), (2, 3, "E"), (3, 4, "X-Y")}),
        ("", set()),
    ],
)
def test_entities(tags: str, expected: set[tuple[int, int, str]]) -> None:
    assert entities(tags.split()) == expected


def test_an_entity_is_right_with_its_place_and_its_type() -> None:
    gold = ["B-PER", "I-PER", "O", "B-LOC", "O", "B-ORG"]
    assert entity_counts(gold, gold) == (3, 3, 3)
    # Of another type; cut short; broken in two.
    assert entity_counts(["B-PER", "I-PER", "O", "B-PER", "O", "O"], gold) == (1, 2, 3)
    assert entity_counts(["B-PER", "O", "O", "O", "O", "O"], gold) == (0, 1, 3)
    assert entity_counts(["B-PER", "B-PER", "O", "B-LOC", "B-LOC", "O"], gold) == (1, 4, 3)
    with pytest.raises(HfDistillError, match="2 predicted tags for 6 tokens"):
        entity_counts(["O", "O"], gold)


def test_entity_f1_is_over_all_sentences() -> None:
    gold = [["B-PER", "I-PER", "O"], ["B-LOC"], ["O"]]
    predicted = [["B-PER", "I-PER", "B-LOC"], ["B-PER"], ["O"]]
    values = EntityF1(keep_in_memory=True).compute(predictions=predicted, references=gold)
    # 1 right of 3 predicted and 2 there; 3 of 5 tags are right.
    assert values == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "accuracy": 3 / 5})
    nothing = EntityF1(keep_in_memory=True).compute(predictions=[["O"]], references=[["O"]])
    assert nothing == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 1}


def test_answers_are_normalized_as_squad_does() -> None:
    assert normalized_answer("  The  U.S.A.,\n an  Ant-eater! ") == "usa anteater"
    assert normalized_answer("theatre a–b") == "theatre –b"


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], (1, 1)),
        # 2 shared words of 3 and 4; the better of two answers counts.
        ("old eiffel tower", ["the great iron eiffel tower", "Rome"], (0, 4 / 7)),
        # A word counts as often as both have it.
        ("new new york", ["new york"], (0, 4 / 5)),
        ("Paris", ["London"], (0, 0)),
        ("", ["London"], (0, 0)),
        # A question without an answer.
        ("", [], (1, 1)),
        ("", ["the"], (1, 1)),
        ("Paris", [], (0, 0)),
    ],
)
def test_answer_scores(prediction: str, answers: list[str], expected: tuple[float, float]) -> None:
    assert answer_scores(prediction, answers) == pytest.approx(expected)


def test_span_overlap_is_the_mean() -> None:
    values = SpanOverlap(keep_in_memory=True).compute(
        predictions=["the Tower", "new new york"], references=[["tower"], ["new york", "York"]]
    )
    assert values == pytest.approx({"exact_match": 1 / 2, "f1": (1 + 4 / 5) / 2})


def test_perplexity_weighs_tokens() -> None:
    # 3 tokens at ln 2 and 1 at ln 8: a mean of 1.5 ln 2.
    values = Perplexity(keep_in_memory=True).compute(predictions=[3 * log(2), log(8)], references=[3, 1])
    assert values == pytest.approx({"loss": 1.5 * log(2), "perplexity": exp(1.5 * log(2))})
    assert perplexity(1e4) == inf
