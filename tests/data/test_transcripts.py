"""Transcripts: how they are read, tokenised, padded, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoConfig, AutoProcessor, HubertConfig, Wav2Vec2FeatureExtractor

from hfdistill import HfDistillError
from hfdistill.data.kind import SourceRequest
from hfdistill.data.kinds import kind_of
from hfdistill.data.transcripts import SpokenCharacters, SpokenTexts, TranscriptView
from hfdistill.recipe import DataSection, RecipeError, StudentSection, TeacherSection
from hfdistill.stages.exam import without_bar
from hfdistill.stages.transcripts import _errors
from tests import sounds

TEACHER = TeacherSection(config=sounds.WAV2VEC2, finetune={})
STUDENT = StudentSection(config=sounds.WAV2VEC2)
SAID = ["ab  ba", "cab", "b c"]


def dataset(texts: list[Any]) -> datasets.Dataset:
    return sounds.recordings([sounds.stored(sounds.tone(300, 1600))] * len(texts), label=texts)


def section(task: str = "ctc", **settings: Any) -> DataSection:
    return DataSection("anywhere", task=task, sampling_rate=sounds.RATE, **settings)


def characters(texts: list[Any], **settings: Any) -> SpokenCharacters:
    return SpokenCharacters(dataset(texts), section(**settings), ("audio",))


def view_of(kind: Any, given: Any = TEACHER, teacher: Any = None) -> TranscriptView:
    settings = dict(given.config)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return kind.view(given, config, None, teacher)


def source_of(kind: Any, view: TranscriptView, data: datasets.Dataset) -> Any:
    return kind.source(SourceRequest(data, "train", {"student": view}, 2**30, without_bar))


def test_the_characters_of_the_train_split_are_the_vocabulary(tmp_path: Path) -> None:
    kind = characters(SAID)
    view = view_of(kind)
    assert view.tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "c": 5}
    assert view.ids("ab ba").tolist() == [3, 4, 2, 4, 3]
    assert kind.config_settings(TEACHER, TEACHER) == {"vocab_size": 6, "pad_token_id": 0}
    assert view_of(kind, STUDENT, view).tokenizer is view.tokenizer
    view.processor.save_pretrained(tmp_path)
    HubertConfig().save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.tokenizer("ab ba").input_ids == [3, 4, 2, 4, 3]
    assert again.feature_extractor.sampling_rate == sounds.RATE


def test_a_named_tokenizer_is_taken_and_its_size_told(tmp_path: Path) -> None:
    view_of(characters(SAID)).processor.save_pretrained(tmp_path)
    sounds_only = tmp_path / "sounds"
    Wav2Vec2FeatureExtractor().save_pretrained(sounds_only)
    for folder in (tmp_path, sounds_only):
        HubertConfig().save_pretrained(folder)
    kind = characters(["abcd"])
    named = TeacherSection(model=str(tmp_path), finetune={})
    assert kind.config_settings(named, named) == {}
    assert kind.config_settings(STUDENT, named) == {"vocab_size": 6, "pad_token_id": 0}
    own = TeacherSection(model=str(tmp_path), processor="characters", finetune={})
    assert kind.config_settings(own, own) == {"vocab_size": 7, "pad_token_id": 0}
    assert len(kind.view(own, HubertConfig(), dataset(SAID)).tokenizer) == 7
    bare = TeacherSection(model=str(sounds_only), finetune={})
    with pytest.raises(HfDistillError, match=r"has no tokenizer; name .* or 'characters'"):
        kind.view(bare, HubertConfig(), dataset(SAID))


def test_batches_and_the_texts_beside_them() -> None:
    data = dataset(SAID)
    kind = SpokenCharacters(data, section(), ("audio",))
    source = source_of(kind, view_of(kind), data)
    assert source.texts == ["ab ba", "cab", "b c"]
    batch = source.batch(torch.tensor([1, 0]), "student", None)
    assert batch["labels"].tolist() == [[5, 3, 4, -100, -100], [3, 4, 2, 4, 3]]
    assert batch["input_values"].shape == batch["attention_mask"].shape == (2, 1600)


def test_marks_tell_transcripts_apart_and_what_is_missing() -> None:
    data = dataset([*SAID, None])
    kind = SpokenCharacters(data, section(), ("audio",))
    marks = kind.reader(data, "train", allow_missing=True)
    assert marks[3] == -100 and (marks[:3] >= 0).all() and len(set(marks.tolist())) == 4
    assert source_of(kind, view_of(kind), data).batch(torch.tensor([3]), "student", None)["labels"].tolist() == [[-100]]
    with pytest.raises(
        HfDistillError, match=r"Row 3 of the split 'test' has no words in 'label'; expected a transcript"
    ):
        kind.reader(data, "test", allow_missing=False)
    with pytest.raises(HfDistillError, match=r"Row 1 of the split 'train' has no words"):
        kind.reader(dataset(["ab", " "]), "train", allow_missing=True)
    written = SpokenTexts(data, section("seq2seq_lm"), ("audio",))
    with pytest.raises(HfDistillError, match=r"Row 3 of the split 'train' has no words"):
        written.reader(data, "train", allow_missing=True)


def test_transcripts_without_case_and_punctuation() -> None:
    kind = characters(["Ab, BA!"], normalized_transcripts=True)
    assert set(kind.characters.get_vocab()) == {"<pad>", "<unk>", "|", "a", "b"}
    assert kind.transcripts.texts(dataset(["Ab, BA!"])) == ["ab ba"]
    written = SpokenTexts(dataset(["Ab, BA!"]), section("seq2seq_lm", normalized_transcripts=True), ("audio",))
    assert written.transcripts.texts(dataset(["Ab, BA!"])) == ["Ab, BA!"]
    wanted = {"word_errors": [1.0], "words": [2.0], "char_errors": [2.0], "chars": [5.0]}
    assert {name: column.tolist() for name, column in _errors(["ab b"], ["AB, bxa"], True).items()} == wanted | {
        "chars": [6.0]
    }


def test_a_tokenizer_of_another_case_is_refused() -> None:
    kind = characters(["ABC"])
    with pytest.raises(HfDistillError, match=r"does not know 67% of the transcripts' tokens, such as those of 'abab'"):
        source_of(kind, view_of(kind), dataset(["abab", "AB"]))


def test_whisper_is_told_language_and_task(tmp_path: Path) -> None:
    named = TeacherSection(model=sounds.whisper_folder(tmp_path))
    config = AutoConfig.from_pretrained(tmp_path)
    told = section("seq2seq_lm", generation={"language": "cs", "task": "transcribe"}, max_target_length=8)
    view = SpokenTexts(dataset(SAID), told, ("audio",)).view(named, config, dataset(SAID))
    tokens = view.tokenizer.convert_ids_to_tokens(view.ids("ab").tolist())
    # The decoder begins with <|startoftranscript|> by itself.
    assert tokens == ["<|cs|>", "<|transcribe|>", "<|notimestamps|>", "a", "b", "<|endoftext|>"]
    assert len(view.ids("abc abc abc")) == 7 and view.longest == 8
    longest = SpokenTexts(dataset(SAID), section("seq2seq_lm"), ("audio",)).view(named, config, dataset(SAID)).longest
    assert longest == 40


@pytest.mark.parametrize(
    ("settings", "column", "message"),
    [
        ({"label_column": ["label"]}, SAID, r"expected the column of the transcripts"),
        ({"label_column": "words"}, SAID, r"data\.label_column: there is no column 'words'"),
        ({}, [1, 2, 3], r"'label' holds Value\('int64'\); expected transcripts"),
    ],
)
def test_columns_that_hold_no_transcripts_are_refused(settings: dict[str, Any], column: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        kind_of(dataset(column), section(**settings), None)


def test_what_a_decoder_needs_is_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"data\.generation: null came, and the word error rate needs transcripts"):
        SpokenTexts(dataset(SAID), section("seq2seq_lm", generation=None), ("audio",))
    kind = SpokenTexts(dataset(SAID), section("seq2seq_lm"), ("audio",))
    made = TeacherSection(config=sounds.SPEECH_TO_TEXT, finetune={})
    with pytest.raises(RecipeError, match=r"teacher\.processor: a model built from a config has no tokenizer"):
        view_of(kind, made)
    with pytest.raises(RecipeError, match=r"is for data\.task ctc; a decoder needs ends of texts too"):
        view_of(kind, TeacherSection(config=sounds.SPEECH_TO_TEXT, processor="characters", finetune={}))
