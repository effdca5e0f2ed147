"""The table of kinds of examples: which one a recipe and its data ask for."""

from __future__ import annotations

from collections.abc import Sequence

import datasets

from hfdistill.data.columns import AUDIO, IMAGE, TEXT, input_columns
from hfdistill.data.images import Images
from hfdistill.data.kind import Kind
from hfdistill.data.language import MaskedText, RunningText
from hfdistill.data.objects import Objects
from hfdistill.data.questions import TASK as ANSWERING
from hfdistill.data.questions import Questions
from hfdistill.data.recordings import SpokenClasses
from hfdistill.data.regions import Regions
from hfdistill.data.tags import TASK as TAGGING
from hfdistill.data.tags import TaggedWords
from hfdistill.data.text_to_text import TASK as WRITING
from hfdistill.data.text_to_text import TextToText
from hfdistill.data.texts import TextRows
from hfdistill.data.transcripts import SpokenCharacters, SpokenTexts
from hfdistill.recipe import DataSection, RecipeError

# By what is read and by data.task; no task means a label for the whole example.
KINDS: dict[tuple[str, str | None], type[Kind]] = {
    (IMAGE, None): Images,
    (IMAGE, "semantic_segmentation"): Regions,
    (IMAGE, "object_detection"): Objects,
    (TEXT, None): TextRows,
    (TEXT, "causal_lm"): RunningText,
    (TEXT, "masked_lm"): MaskedText,
    (TEXT, TAGGING): TaggedWords,
    (AUDIO, None): SpokenClasses,
    (AUDIO, "ctc"): SpokenCharacters,
    (AUDIO, "seq2seq_lm"): SpokenTexts,
    (TEXT, ANSWERING): Questions,
    (TEXT, WRITING): TextToText,
}


def kind_of(train: datasets.Dataset, section: DataSection, known_names: Sequence[str] | None) -> Kind:
    """The kind that fits; `known_names` are the classes of a teacher that is used as it is.

    Errors: RecipeError for columns of another type than the task reads.
    """
    if section.task in (TAGGING, ANSWERING):  # which columns hold words, questions and contexts only these can tell
        return KINDS[TEXT, section.task](train, section, (), known_names)
    modality, columns = input_columns(train, section)
    if (modality, section.task) not in KINDS:
        reads = " or ".join(sorted({each for each, task in KINDS if task == section.task}))
        raise RecipeError(f"data.task: {section.task} reads {reads}, and {columns[0]!r} holds another: {modality}.")
    return KINDS[modality, section.task](train, section, columns, known_names)
