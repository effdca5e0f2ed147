"""Questions: windows that overlap, and answers whose places lead back to the very characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from hfdistill import HfDistillError
from hfdistill.data.examples import Examples
from hfdistill.data.kinds import kind_of
from hfdistill.data.questions import AnswerReader, Questions
from hfdistill.data.texts import TextView
from hfdistill.data.windows import Windows, window_source
from hfdistill.recipe import DataSection, RecipeError
from hfdistill.stages.answers import Found, best_spans
from tests.recipes import inputs


def bar(items: Sequence[Any], title: str) -> Iterator[Any]:
    return iter(items)


def asked(*rows: tuple[str, str, list[tuple[str, int]] | None]) -> datasets.Dataset:
    """Question, context, and answers with their first characters."""
    answers = [
        None if each is None else {"text": [text for text, _ in each], "answer_start": [start for _, start in each]}
        for _, _, each in rows
    ]
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "context": datasets.Value("string"),
            "answers": {
                "text": datasets.List(datasets.Value("string")),
                "answer_start": datasets.List(datasets.Value("int32")),
            },
        }
    )
    columns = {"question": [row[0] for row in rows], "context": [row[1] for row in rows], "answers": answers}
    return datasets.Dataset.from_dict(columns, features=features)


def section(**changes: Any) -> DataSection:
    return DataSection("somewhere", task="question_answering", **changes)


def reader(data: datasets.Dataset) -> AnswerReader:
    return AnswerReader(data, section(), ("question", "context"))


def windows(data: datasets.Dataset, tokenizer: Any, length: int, stride: int) -> Windows:
    return window_source(data, reader(data), TextView(tokenizer, length), stride, bar)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, so that a character may have several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["[PAD]", "[CLS]", "[SEP]", *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


LONG = ("a b", "c d e f g h i j k", [("g", 8)])
"""A question of two tokens about a context of nine: in windows of ten tokens five of them have room."""


def test_a_long_context_is_read_in_windows_that_overlap() -> None:
    """[CLS] a b [SEP] + five of nine tokens + [SEP], two of them shared; "g" is the last of the first window's."""
    source = windows(asked(LONG), inputs.tokenizer(), 10, 2)
    batch = source.batch(torch.arange(3), "student", None)
    letter = {name: place for place, name in enumerate(inputs.WORDS)}
    assert batch["input_ids"].tolist() == [
        [2, letter["a"], letter["b"], 3, *(letter[each] for each in each_window), 3, *[0] * (5 - len(each_window))]
        for each_window in ("cdefg", "fghij", "ijk")
    ]
    # Where the answer is not, both places are those of [CLS].
    assert batch["start_positions"].tolist() == [8, 5, 0] and batch["end_positions"].tolist() == [8, 5, 0]
    assert batch["token_type_ids"][0].tolist() == [0] * 4 + [1] * 6
    assert source.owners.tolist() == [0, 0, 0]
    assert source.guess == pytest.approx((2 * np.log(10) + np.log(8)) / 3)


def test_places_lead_back_to_the_very_characters() -> None:
    """Any part of a text with characters of one to four bytes is found again, to the byte."""
    context = "Zoë’s café – 3 €, naïve 🦜 “parrot” talk; ok"
    generator = np.random.default_rng(0)
    rows: list[tuple[str, str, list[tuple[str, int]] | None]] = []
    for _ in range(60):
        start, end = sorted(generator.choice(len(context) + 1, 2, replace=False).tolist())
        if context[start:end].strip():
            rows.append(("wer?", context, [(context[start:end], start)]))
    data = asked(*rows)
    source = windows(data, byte_tokenizer(), 96, 8)
    assert len(source) == len(rows)
    first, last = source.character_spans(torch.arange(len(source)))
    batch = source.batch(torch.arange(len(source)), "student", None)
    ids = batch["input_ids"].tolist()
    decode = byte_tokenizer().decode
    for place, (_, _, answers) in enumerate(rows):
        begin, end = int(batch["start_positions"][place]), int(batch["end_positions"][place])
        assert answers is not None
        assert context[first[place, begin] : last[place, end]] == answers[0][0].strip()
        assert decode(ids[place][begin : end + 1]) == answers[0][0].strip()


def test_a_tokenizer_that_pads_on_the_left_reads_the_context_first() -> None:
    tokenizer = inputs.tokenizer()
    tokenizer.padding_side = "left"
    source = windows(asked(LONG, ("a", "b c", [("c", 2)])), tokenizer, 10, 2)
    batch = source.batch(torch.tensor([0, len(source) - 1]), "student", None)
    letter = {name: place for place, name in enumerate(inputs.WORDS)}
    short = [0, 0, 0, 0, 2, letter["b"], letter["c"], 3, letter["a"], 3]
    assert batch["input_ids"].tolist()[1] == short
    assert batch["start_positions"].tolist() == [5, 6] and batch["attention_mask"][1].tolist() == [0] * 4 + [1] * 6
    first, _ = source.character_spans(torch.tensor([0, len(source) - 1]))
    assert first[1].tolist() == [-1] * 5 + [0, 2, -1, -1, -1]
    assert source.placed(source.refusals[[0, len(source) - 1]], torch.tensor([0, len(source) - 1])).tolist() == [0, 4]


def test_a_question_that_leaves_no_room_is_cut() -> None:
    source = windows(asked(("a b c d e f g h i", "j k l", [("k", 2)])), inputs.tokenizer(), 10, 2)
    # Ten less three special tokens, two shared ones and two new ones.
    assert (source.batch(torch.tensor([0]), "student", None)["token_type_ids"][0] == 0).sum() == 3 + 2


def test_unlabelled_questions_have_no_places() -> None:
    data = asked(LONG, ("a", "b c", None))
    kind = kind_of(data, section(max_length=10, doc_stride=2), None)
    assert isinstance(kind, Questions) and kind.columns == ("question", "context")
    marks = kind.reader(data, "train", allow_missing=True)
    assert marks[0] >= 0 and marks[1] == -100
    source = windows(data, inputs.tokenizer(), 10, 2)
    spread = kind.of_rows(source, marks)
    assert spread.tolist() == [int(marks[0])] * 3 + [-100]
    kept = Examples(source, torch.tensor([-100, 5, 5, 5]), {"": "student"}, torch.arange(4)).__getitems__([0, 1, 3])
    assert kept["start_positions"].tolist() == [-100, 5, -100] and kept["end_positions"].tolist() == [-100, 5, -100]


def test_the_best_span_lies_in_the_context_and_is_short_enough() -> None:
    """Of all pairs the sum counts: 4 + 3 over three tokens beats 4 + 1 on one, but not where two are the most."""
    source = windows(asked(LONG), inputs.tokenizer(), 10, 2)
    rows = torch.tensor([0, 2])
    logits = torch.zeros(2, 2, 10)
    logits[:, :, 0] = 9.0  # [CLS]
    logits[0, 0, 5], logits[0, 1, 5], logits[0, 1, 7] = 4.0, 1.0, 3.0
    logits[0, 1, 4] = 8.0  # before the start, so that only a span of one token may end there
    logits[1, 1, 6] = 2.0
    score, refusal, first, last = best_spans(logits, source, rows, 3)
    assert score.tolist() == [8.0, 2.0] and refusal.tolist() == [18.0, 18.0]
    logits[0, 1, 4] = 0.0
    score, _, first, last = best_spans(logits, source, rows, 3)
    assert score.tolist() == [7.0, 2.0]
    context = LONG[1]
    assert context[int(first[0]) : int(last[0])] == "d e f"
    score, _, first, last = best_spans(logits, source, rows, 2)
    assert score[0] == 5.0 and context[int(first[0]) : int(last[0])] == "d"


def test_the_best_window_answers_and_the_least_refusal_decides() -> None:
    """The second window's span has the higher score; no answer wins only where every window prefers it."""
    data = asked(LONG, ("a", "b c", [("c", 2)]), ("b", "c d", []))
    source, contexts = windows(data, inputs.tokenizer(), 10, 2), data["context"][:]
    score, first, last = ([4.0, 5.0, 1.0, 3.0, 2.0], [0.0, 6.0, 12.0, 2.0, 0.0], [1.0, 9.0, 13.0, 3.0, 3.0])
    refusal = [9.0, 9.0, 4.0, 3.5, 1.0]
    found = Found(*(torch.tensor(each, dtype=torch.float64) for each in (score, refusal, first, last)))
    assert source.reader.refuses and found.texts(source, contexts) == ["f g", "", "c d"]
    source.reader.refuses = False
    assert found.texts(source, contexts) == ["f g", "c", "c d"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "b c", [("c", 1)])], r"Row 0 .* answer 'c' at character 1 of 'context', where the text goes ' '"),
        ([("a", "b c", [("c", -1)])], "at character -1"),
        ([("a", "b c", [("c d", 2)])], "where the text goes 'c'"),
        ([("a", "b c", None)], "holds None in 'answers'; expected its answers"),
        ([("a", None, [("c", 2)])], "Row 0 holds None in the text column 'context'"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(rows: list[Any], message: str) -> None:
    data = asked(*rows)
    with pytest.raises(HfDistillError, match=message):
        reader(data)(data, "validation", allow_missing=False)


def test_answers_come_in_several_forms() -> None:
    pairs = [[{"text": "c", "answer_start": 2}], []]
    plain = {"question": ["a", "a"], "context": ["b c", "b c"]}
    data = datasets.Dataset.from_dict(plain | {"answers": pairs})
    assert reader(data).answers(data) == [[("c", 2)], []] and reader(data).refuses
    single = datasets.Dataset.from_dict(plain | {"answers": [{"text": "c", "answer_start": 2}] * 2})
    assert reader(single).answers(single) == [[("c", 2)]] * 2 and not reader(single).refuses
    wrong = datasets.Dataset.from_dict(plain | {"answers": ["c", "c"]})
    with pytest.raises(RecipeError, match="expected answers as SQuAD gives them"):
        reader(wrong)


def test_columns_and_windows_that_do_not_fit_are_refused() -> None:
    data = asked(LONG)
    with pytest.raises(RecipeError, match="expected two, the question and the text"):
        kind_of(data, section(text_columns=["context"]), None)
    with pytest.raises(RecipeError, match="there is no column 'passage'"):
        kind_of(data, section(text_columns=["question", "passage"]), None)
    with pytest.raises(RecipeError, match="got 8 for windows of 10 tokens"):
        windows(data, inputs.tokenizer(), 10, 8)
    with pytest.raises(HfDistillError, match="ByT5Tokenizer does not tell which characters"):
        windows(data, ByT5Tokenizer(), 30, 8)
