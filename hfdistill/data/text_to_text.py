"""Texts to be written from texts: summaries, translations."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig

from hfdistill.data.examples import Progress
from hfdistill.data.kind import SourceRequest
from hfdistill.data.labels import UNLABELLED, LabelSpace, check_columns
from hfdistill.data.texts import CHUNK, TextKind, TextView, Tokens, texts_of, tokenised
from hfdistill.errors import HfDistillError
from hfdistill.metrics_generation import rouge_scores
from hfdistill.recipe import DataSection, RecipeError, StudentSection, TeacherSection

TASK = "seq2seq_lm"


class TextToText(TextKind):
    """Texts, each with one that is to be written from it."""

    name = TASK
    auto_class = AutoModelForSeq2SeqLM

    def made_reader(self, train: datasets.Dataset, known_names: Sequence[str] | None) -> TargetReader:
        """Reads the texts to write."""
        if len(self.columns) != 1:
            raise RecipeError(f"data.text_columns: got {list(self.columns)}; expected one, the text to write from.")
        if self.section.generation is not None:
            rouge_scores("", "")  # what is missing is told now, and not after a training
        self.targets = TargetReader(train, self.section, self.columns[0])
        return self.targets

    def view(
        self,
        section: TeacherSection | StudentSection,
        config: PreTrainedConfig,
        train: datasets.Dataset,
        teacher: TextView | None = None,
    ) -> TextView:
        """With the model's own tokenizer if it has one, or else the teacher's.

        Errors: RecipeError for a model made from a config whose tokens are not those of the tokenizer.
        """
        found = super().view(section, config, train, teacher)
        if section.config is not None:
            _check_tokens(section, config, found.tokenizer)
        return found

    def source(self, request: SourceRequest) -> TextPairs:
        """Tokenised once; both models read the same tokens."""
        _, view = request.only_view(self.name)
        prefix = self.section.prefix
        texts = [prefix + text for text in texts_of(request.dataset, self.columns[0])]
        wanted = self.targets.texts(request.dataset)
        labels = _labels(wanted, view.tokenizer, self.section.max_target_length, request.bar)
        return TextPairs(tokenised([texts], view, request.bar), labels, view.tokenizer, request.dataset, self.targets)


def _check_tokens(section: TeacherSection | StudentSection, config: PreTrainedConfig, tokenizer: Any) -> None:
    settings = config.to_dict()
    path = f"{section.SECTION}.config"
    if not settings.get("is_encoder_decoder"):
        raise RecipeError(
            f"{path}.model_type: {config.model_type} has no decoder beside an encoder; expected t5 or bart."
        )
    for key, own in (("pad_token_id", tokenizer.pad_token_id), ("eos_token_id", tokenizer.eos_token_id)):
        if settings.get(key) != own:
            raise RecipeError(f"{path}.{key}: got {settings.get(key)}, and the tokenizer's is {own}; give it here.")
    if settings.get("decoder_start_token_id") is None:
        raise RecipeError(
            f"{path}.decoder_start_token_id: a decoder begins with a token; expected its number, which is that of "
            f"padding for T5 ({tokenizer.pad_token_id})."
        )


class TargetReader:
    """Reads a column of texts to write.

    Called on a split it gives one number a row, its checksum, by which a run notices that its files have changed.
    Errors: RecipeError for a column of another type; HfDistillError naming a row without a text.
    """

    def __init__(self, train: datasets.Dataset, section: DataSection, source: str) -> None:
        if not isinstance(section.label_column, str):
            raise RecipeError(f"data.label_column: got {section.label_column}, expected the one column of the texts.")
        self.column, self.source = section.label_column, source
        check_columns(train, [self.column], "data.label_column")
        feature = train.features[self.column]
        if not isinstance(feature, datasets.Value) or "string" not in feature.dtype:
            raise RecipeError(f"data.label_column: {self.column!r} holds {feature}; expected the texts to write.")
        self.space = LabelSpace(TASK, ())

    def __call__(self, dataset: datasets.Dataset, split: str, *, allow_missing: bool) -> Tensor:
        """One number of at least 0 a row; a row without a text is refused in the train split too."""
        check_columns(dataset, [self.source, self.column], "data.label_column")
        pairs = zip(texts_of(dataset, self.source), self.texts(dataset), strict=True)
        marks = []
        for row, (text, wanted) in enumerate(pairs):
            if not wanted.strip():
                raise HfDistillError(
                    f"Row {row} of the split {split!r} holds {wanted!r} in {self.column!r}; expected a text to write. "
                    "Remove the row."
                )
            marks.append(zlib.crc32(f"{text}\0{wanted}".encode()))
        return torch.tensor(marks)

    def texts(self, dataset: datasets.Dataset) -> list[str]:
        """The texts to write."""
        return texts_of(dataset, self.column)


@dataclass(frozen=True)
class TextPairs:
    """Texts of a split, and the tokens of those to write as labels, padded by -100."""

    tokens: Tokens
    labels: Tokens
    tokenizer: Any
    dataset: datasets.Dataset
    reader: TargetReader

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor, view: str, draws: object) -> dict[str, Tensor]:
        """Some texts with their labels."""
        return self.tokens.batch(rows) | {"labels": self.labels.batch(rows)["labels"]}

    def wanted(self) -> list[str]:
        """The texts to write, as they are."""
        return self.reader.texts(self.dataset)


def _labels(texts: Sequence[str], tokenizer: Any, longest: int, bar: Progress) -> Tokens:
    pieces: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for start in bar(range(0, len(texts), CHUNK), "Tokenising"):
        encoded = tokenizer(text_target=texts[start : start + CHUNK], truncation=True, max_length=longest)
        for ids in encoded["input_ids"]:
            pieces.append(np.asarray(ids, np.int32))
            lengths.append(len(ids))
    # A decoder's labels are padded on the right, on whichever side its encoder's tokens are.
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens({"labels": np.concatenate(pieces)}, offsets, {"labels": UNLABELLED}, pads_left=False)
