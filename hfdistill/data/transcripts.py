"""Recordings with a transcript each: for models that say a character a frame (CTC), and for those that write texts."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import (
    PROCESSOR_MAPPING,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedConfig,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
    WhisperTokenizer,
)

from hfdistill.contract import processing_differences
from hfdistill.data.changes import Draws
from hfdistill.data.extractors import Extractor, extractor_of
from hfdistill.data.kind import SourceRequest
from hfdistill.data.labels import UNLABELLED, LabelSpace, check_columns
from hfdistill.data.processors import loaded_processor, processor_name
from hfdistill.data.recordings import RecordingKind, Recordings
from hfdistill.data.texts import BYTES
from hfdistill.errors import HfDistillError
from hfdistill.metrics_generation import normalized_transcript
from hfdistill.recipe import DataSection, RecipeError, StudentSection, TeacherSection

CHARACTERS = "characters"
"""As a processor's name: the characters of the train split's transcripts as tokens, which needs no file."""
BLANK, UNKNOWN, SPACE = "<pad>", "<unk>", "|"
MOST_UNKNOWN = 0.05
"""A tokenizer that does not know more than this share of a split's tokens is the wrong one."""
LANGUAGE = ("language", "task")
"""Options of Whisper's generate() that its transcripts begin with, too."""


@dataclass(frozen=True)
class TranscriptView:
    """How one model hears a recording and reads a transcript, of at most `longest` tokens.

    `start` is the token that a decoder begins with by itself; `processor` holds both and is saved beside the model.
    """

    extractor: Extractor
    tokenizer: Any
    processor: Any
    longest: int | None = None
    start: int | None = None

    def differences(self, other: TranscriptView) -> list[str]:
        """In words what the other view does differently."""
        sounds = processing_differences(self.extractor.inner, other.extractor.inner)
        return sounds + processing_differences(self.tokenizer, other.tokenizer)

    def ids(self, text: str) -> Tensor:
        """The tokens of a transcript."""
        cut = {} if self.longest is None else {"truncation": True, "max_length": self.longest}
        ids: list[int] = self.tokenizer(text, **cut)["input_ids"]
        return torch.tensor(ids[1:] if ids and ids[0] == self.start else ids)


class TranscriptReader:
    """Reads a column of transcripts.

    Called on a split it gives one number a row, a checksum, by which a run notices that its files have changed, or -100
    for a row without a transcript. Errors: RecipeError for a column of another type; HfDistillError naming the row of
    an empty transcript, and of a missing one where there has to be one.
    """

    def __init__(self, train: datasets.Dataset, section: DataSection, space: LabelSpace) -> None:
        if not isinstance(section.label_column, str):
            raise RecipeError(f"data.label_column: got {section.label_column}, expected the column of the transcripts.")
        self.column, self.space = section.label_column, space
        self.normalized = section.normalized_transcripts and space.problem_type == "ctc"
        check_columns(train, [self.column], "data.label_column")
        feature = train.features[self.column]
        if not (isinstance(feature, datasets.Value) and "string" in feature.dtype):
            raise RecipeError(f"data.label_column: {self.column!r} holds {feature}; expected transcripts.")

    def texts(self, dataset: datasets.Dataset) -> list[str | None]:
        """The transcripts as models learn them, None where there is none."""
        check_columns(dataset, [self.column], "data.label_column")
        return [None if text is None else self._spaced(text) for text in dataset.with_format(None)[self.column][:]]

    def _spaced(self, text: str) -> str:
        return normalized_transcript(text) if self.normalized else " ".join(text.split())

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """One number of at least 0 a transcript."""
        marks = []
        missing_are_rows = allow_missing and self.space.problem_type == "ctc"
        for row, text in enumerate(self.texts(dataset)):
            if not text and not (text is None and missing_are_rows):
                raise HfDistillError(
                    f"Row {row} of the split {split!r} has no words in {self.column!r}; expected a transcript. Remove "
                    "the row."
                )
            marks.append(UNLABELLED if text is None else zlib.crc32(text.encode()))
        return torch.tensor(marks)


class TranscriptKind(RecordingKind):
    """Recordings with a transcript each."""

    problem_type: str

    def made_reader(self, train: datasets.Dataset, known_names: Sequence[str] | None) -> TranscriptReader:
        """Reads transcripts."""
        self.train = train
        self.transcripts = TranscriptReader(train, self.section, LabelSpace(self.problem_type, ()))
        return self.transcripts

    def view(
        self,
        section: TeacherSection | StudentSection,
        config: PreTrainedConfig,
        train: datasets.Dataset,
        teacher: TranscriptView | None = None,
    ) -> TranscriptView:
        """With the model's own extractor and tokenizer if it has them, or else the teacher's, or some made for it."""
        named = replace(section, processor=None) if section.processor in (CHARACTERS, BYTES) else section
        extractor = extractor_of(named, config, self.section, None if teacher is None else teacher.extractor)
        tokenizer = self.tokenizer(section) or (None if teacher is None else teacher.tokenizer)
        if tokenizer is None:
            tokenizer = self._tokenizer_for_config(section)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        combined: Any = PROCESSOR_MAPPING.get(type(config), None) or Wav2Vec2Processor
        return TranscriptView(extractor, tokenizer, combined(extractor.inner, tokenizer), **self.lengths(config))

    def lengths(self, config: PreTrainedConfig) -> dict[str, int | None]:
        """What a view has to know of a decoder."""
        return {}

    def tokenizer(self, section: TeacherSection | StudentSection) -> Any | None:
        """The tokenizer that a section names; None for a model from a config without one."""
        if section.processor == CHARACTERS:
            return self.characters
        if section.processor == BYTES:
            return ByT5Tokenizer()
        if processor_name(section) is None:
            return None
        try:
            return loaded_processor(AutoTokenizer, section)
        except TypeError as error:  # Wav2Vec2's class without its file
            raise HfDistillError(self._no_tokenizer(section)) from error

    def _no_tokenizer(self, section: TeacherSection | StudentSection) -> str:
        return (
            f"{section.SECTION}.processor: {processor_name(section)!r} has no tokenizer; name the Hub id or folder of "
            f"one, or {CHARACTERS!r}, which makes one of the train split's characters (data.task: ctc)."
        )

    def _tokenizer_for_config(self, section: TeacherSection | StudentSection) -> Any:
        raise RecipeError(
            f"{section.SECTION}.processor: a model built from a config has no tokenizer; name the Hub id or folder of "
            "one, such as openai/whisper-tiny, or 'bytes'."
        )

    @cached_property
    def characters(self) -> Any:
        """A tokenizer of the characters in the train split's transcripts."""
        raise RecipeError(f"teacher.processor: {CHARACTERS!r} is for data.task ctc; a decoder needs ends of texts too.")

    def source(self, request: SourceRequest) -> Transcribed:
        """Recordings and the tokens of their transcripts, by each view's own tokenizer."""
        texts = self.transcripts.texts(request.dataset)
        views: Mapping[str, TranscriptView] = request.views
        tokens = {name: [None if text is None else view.ids(text) for text in texts] for name, view in views.items()}
        for name, view in views.items():
            if view.tokenizer.unk_token_id != view.tokenizer.eos_token_id:  # Whisper ends its texts by the same token
                self._check_known(tokens[name], view.tokenizer, texts)
        return Transcribed(self.recordings(request), tokens, texts, views)

    @staticmethod
    def _check_known(tokens: Sequence[Tensor | None], tokenizer: Any, texts: Sequence[str | None]) -> None:
        unknown = [int((ids == tokenizer.unk_token_id).sum()) for ids in tokens if ids is not None]
        total = sum(len(ids) for ids in tokens if ids is not None)
        if sum(unknown) > MOST_UNKNOWN * total:
            told = [text for text in texts if text is not None]
            example = told[max(range(len(unknown)), key=unknown.__getitem__)]
            raise HfDistillError(
                f"The tokenizer does not know {sum(unknown) / total:.0%} of the transcripts' tokens, such as those of "
                f"{example[:60]!r}; it knows {', '.join(list(tokenizer.get_vocab())[:30])}. Give the transcripts its "
                f"case and letters (data.normalized_transcripts), or set teacher.processor: {CHARACTERS} and train a "
                "new head."
            )


class SpokenCharacters(TranscriptKind):
    """Transcripts for a model that says a token, or nothing, at each frame."""

    name = "audio with a transcript"
    auto_class = AutoModelForCTC
    problem_type = "ctc"

    def config_settings(self, section: TeacherSection | StudentSection, teacher: TeacherSection) -> dict[str, Any]:
        """The size of the vocabulary and its blank, where the model does not bring its own."""
        if section.model is not None and section.processor is None:
            return {}
        tokenizer = self.tokenizer(section) or self.tokenizer(teacher) or self.characters
        return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}

    def _tokenizer_for_config(self, section: TeacherSection | StudentSection) -> Any:
        return self.characters

    @cached_property
    def characters(self) -> Any:
        """A tokenizer of the characters in the train split's transcripts, in order, behind blank, unknown and space."""
        known = {letter for text in self.transcripts.texts(self.train) for letter in text or ""} - {" ", SPACE}
        places = {token: place for place, token in enumerate([BLANK, UNKNOWN, SPACE, *sorted(known)])}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vocab.json"
            file.write_text(json.dumps(places), encoding="utf-8")
            made: Any = Wav2Vec2CTCTokenizer
            return made(str(file), bos_token=None, eos_token=None, pad_token=BLANK, unk_token=UNKNOWN)


class SpokenTexts(TranscriptKind):
    """Transcripts for an encoder-decoder that writes them."""

    name = "audio with a transcript"
    auto_class = AutoModelForSpeechSeq2Seq
    problem_type = "speech_seq2seq"

    def __init__(self, train: datasets.Dataset, section: DataSection, *more: Any) -> None:
        if section.generation is None:
            raise RecipeError(
                "data.generation: null came, and the word error rate needs transcripts that the models have written; "
                "expected options of generate(), or {}."
            )
        super().__init__(train, section, *more)

    def tokenizer(self, section: TeacherSection | StudentSection) -> Any | None:
        """The tokenizer that a section names, told language and task of `data.generation` if it is Whisper's."""
        found = super().tokenizer(section)
        options = self.section.generation or {}
        given = {name: options[name] for name in LANGUAGE if options.get(name) is not None}
        if isinstance(found, WhisperTokenizer) and given:
            found.set_prefix_tokens(**given, predict_timestamps=False)
        return found

    def lengths(self, config: PreTrainedConfig) -> dict[str, int | None]:
        """The most tokens of a transcript and the one that the decoder begins with."""
        settings = config.get_text_config(decoder=True).to_dict()
        longest = min(self.section.max_target_length, settings.get("max_target_positions") or 10**9)
        return {"longest": longest, "start": config.to_dict().get("decoder_start_token_id")}


@dataclass(frozen=True)
class Transcribed:
    """The recordings of a split with the tokens of their transcripts by view, and the `texts` themselves."""

    recordings: Recordings
    tokens: Mapping[str, Sequence[Tensor | None]]
    texts: Sequence[str | None]
    views: Mapping[str, TranscriptView]

    def __len__(self) -> int:
        return len(self.recordings)

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """One view of some rows; labels are padded with -100, of which a row without a transcript has nothing else."""
        chosen = [self.tokens[view][row] for row in rows.tolist()]
        longest = max((len(ids) for ids in chosen if ids is not None), default=1)
        labels = torch.full((len(chosen), longest), UNLABELLED)
        for place, ids in enumerate(chosen):
            if ids is not None:
                labels[place, : len(ids)] = ids
        return self.recordings.batch(rows, view, None) | {"labels": labels}
