"""What a model that transcribes is worth on a split: its loss, and the words and characters that it gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hfdistill.contract import bare
from hfdistill.data.transcripts import Transcribed, TranscriptView
from hfdistill.knowledge import StepContext
from hfdistill.losses import forward_kl
from hfdistill.metrics_generation import TRANSCRIPT_COUNTS, transcript_errors
from hfdistill.stages.exam import Exam
from hfdistill.stages.scores import Scores, batch_sums, scored
from hfdistill.tasks.frames import Transcripts

SOUNDS = ("input_features", "input_values", "attention_mask")
"""What is heard, of a batch."""


def frame_scores(exam: Exam) -> Scores:
    """Score a model with a CTC head: the likeliest token of each frame is its transcript."""
    source, view = _read_by(exam)

    normalized = exam.prepared.data.section.normalized_transcripts

    def sums(context: StepContext, places: range) -> dict[str, Tensor]:
        texts = view.tokenizer.batch_decode(_spoken(context, len(places)), skip_special_tokens=True)
        return _frame_sums(context, len(places)) | _errors(texts, _references(source, places), normalized)

    return scored(exam, sums)


def written_scores(exam: Exam) -> Scores:
    """Score an encoder-decoder on the given transcripts, and by those that it writes."""
    source, view = _read_by(exam)
    section = exam.prepared.data.section
    options = dict(section.generation or {})
    if not {"max_length", "max_new_tokens"} & options.keys():
        options["max_length"] = view.longest
    examples = exam.own_examples()

    def sums(context: StepContext, places: range) -> dict[str, Tensor]:
        counts = batch_sums(context, len(places), ())
        if not exam.writes:
            return counts
        batch = examples.__getitems__(places)
        heard = {name: batch[name].to(exam.model.device) for name in SOUNDS if name in batch}
        model: Any = bare(exam.model)  # adapters lie within it
        written = model.generate(**heard, **options)
        texts = view.tokenizer.batch_decode(written, skip_special_tokens=True)
        return counts | _errors(texts, _references(source, places), section.normalized_transcripts)

    return scored(exam, sums)


def _read_by(exam: Exam) -> tuple[Transcribed, TranscriptView]:
    """The split's transcripts, and how the model reads them."""
    examples = exam.own_examples()
    source = examples.source
    assert isinstance(source, Transcribed), "a recording has a transcript"
    return source, source.views[examples.views[""]]


def _references(source: Transcribed, places: range) -> list[str]:
    return [source.texts[place] or "" for place in places]


def _spoken(context: StepContext, examples: int) -> Tensor:
    """The likeliest token of each frame, `(examples, frames)`, and the blank on padding."""
    layout, valid = context.task.layout, context.rows.every.valid
    assert isinstance(layout, Transcripts) and valid is not None, "a CTC head"
    return context.logits.argmax(-1).where(valid.reshape(examples, -1), layout.blank).cpu()


def _frame_sums(context: StepContext, examples: int) -> dict[str, Tensor]:
    """The loss of each transcript, and the frames compared with the teacher's."""
    rows, valid = context.rows, context.rows.every.valid
    assert valid is not None and rows.labelled.valid is not None and rows.labels is not None, "a split has transcripts"
    loss = context.task.label_values(context.logits, rows, 0.0, None).double()
    sums = {"loss_sum": loss.where(rows.labelled.valid, 0), "texts": rows.labelled.valid.double()}
    if context.targets is None:
        return sums
    own, taught = rows.every(context.logits).float(), rows.every(context.targets.logits).float()

    def add(values: Tensor) -> Tensor:
        return values.double().where(valid, 0).reshape(examples, -1).sum(1)

    return sums | {
        "kl_sum": add(forward_kl(own[:, : context.task.compared], taught, temperature=1.0)),
        "agree": add(own.argmax(-1) == taught.argmax(-1)),
        "compared": add(valid),
    }


def _errors(given: Sequence[str], wanted: Sequence[str], normalized: bool) -> dict[str, Tensor]:
    found = [transcript_errors(*pair, normalized=normalized) for pair in zip(given, wanted, strict=True)]
    return {name: torch.tensor([each[name] for each in found], dtype=torch.float64) for name in TRANSCRIPT_COUNTS}
