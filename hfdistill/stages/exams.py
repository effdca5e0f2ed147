"""The table of exams: how a model over each kind of problem is scored."""

from __future__ import annotations

from collections.abc import Callable

from hfdistill.data.labels import WHOLE_TASKS
from hfdistill.stages.answers import answered
from hfdistill.stages.detections import detections
from hfdistill.stages.exam import Exam, Outcome
from hfdistill.stages.outcome import predictions
from hfdistill.stages.regions import region_scores
from hfdistill.stages.scores import token_scores
from hfdistill.stages.texts import text_scores
from hfdistill.stages.transcripts import frame_scores, written_scores

EXAMS: dict[str, Callable[[Exam], Outcome]] = {
    **dict.fromkeys(WHOLE_TASKS, predictions),
    **dict.fromkeys(("causal_lm", "masked_lm", "token_classification"), token_scores),
    "semantic_segmentation": region_scores,
    "object_detection": detections,
    "question_answering": answered,
    "ctc": frame_scores,
    "speech_seq2seq": written_scores,
    "seq2seq_lm": text_scores,
}


def outcome_of(exam: Exam) -> Outcome:
    """What comes of an exam, by its kind of problem."""
    return EXAMS[exam.space.problem_type](exam)
