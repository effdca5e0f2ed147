"""Vocabularies: which rows of two language models' heads stand for the same token, and which for none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hfdistill.contract import bare
from hfdistill.errors import HfDistillError
from hfdistill.knowledge import Logits
from hfdistill.losses import LOSSES
from hfdistill.objective import Objective
from hfdistill.tasks import UNLABELLED, Classes, Spans, Task, Tokens
from hfdistill.temperatures import constants

# Tokenizers of one family cut these alike; those with other merges, cases or pieces do not.
PROBES = (
    "Two models, ONE text: it's 3.5 naïve cafés (left/right)?",
    "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)  # 120 = 5!",
    "Internationalization of misunderstandings in counterproductive bureaucracies, 1789-2024.",
    "Das Übersetzungsproblem; el niño mañana; 機械学習; Москва.",
)
LACKING = -1

logger = logging.getLogger(__name__)

Read = Callable[[Any, Mapping[str, Any]], torch.Tensor]


def reads_tokens(task: Task) -> bool:
    """Whether both models of such a task have to read, or to name, the very same tokens."""
    return task.classes is Classes.VOCABULARY or isinstance(task.layout, Tokens | Spans)


@dataclass(frozen=True)
class Vocabulary:
    """What is known of one model's vocabulary: its tokenizer, and how many rows its embeddings have; None: unknown."""

    tokenizer: PreTrainedTokenizerBase | None
    size: int | None

    @classmethod
    def of(cls, model: nn.Module, processing_class: Any) -> Vocabulary:
        """The vocabulary of a model that reads what a tokenizer, or a processor with a tokenizer, gives."""
        return cls(tokenizer_of(processing_class), vocabulary_size(model))

    def tokens(self) -> dict[str, int]:
        """The id of each token that the model has a row for, in order; none without a tokenizer."""
        known = {} if self.tokenizer is None else self.tokenizer.get_vocab()
        within = ((token, place) for token, place in known.items() if self.size is None or place < self.size)
        return dict(sorted(within, key=lambda entry: entry[1]))


@dataclass(frozen=True)
class VocabularyAlignment:
    """How a teacher's vocabulary becomes the student's.

    `columns[i]` is the teacher's column of the student's id i, or -1 where it has none; None: the heads agree as they
    are. Beyond the last of `columns` the student's head is padding. `ids[i]` is the id by which the teacher reads the
    student's token i; None: the same. `notice` tells what was done or could not be verified, or is empty.
    """

    columns: tuple[int, ...] | None = None
    ids: tuple[int, ...] | None = None
    notice: str = ""

    @property
    def compared(self) -> int | None:
        """How many of the student's classes, from the first one on, are compared; None: all."""
        return None if self.columns is None else len(self.columns)

    def translation(self, task: Task) -> TranslatedIds | None:
        """What turns a batch of the student's ids into one of the teacher's; None where they are the same."""
        if self.ids is None:
            return None
        labels = task.label_names if task.classes is Classes.VOCABULARY else ()
        return TranslatedIds(self.ids, ("input_ids", "decoder_input_ids", *labels))

    @property
    def lacks(self) -> bool:
        """Whether the teacher has no probability for something that the student may say."""
        return self.columns is not None and LACKING in self.columns


def tokenizer_of(processing_class: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a processing class is or holds, or None."""
    if isinstance(processing_class, ProcessorMixin):
        processing_class = vars(processing_class).get("tokenizer")
    return processing_class if isinstance(processing_class, PreTrainedTokenizerBase) else None


def vocabulary_size(model: nn.Module) -> int | None:
    """How many tokens the embeddings of a model's decoder, or else of its only stack, have rows for."""
    model = bare(model)
    if not isinstance(model, PreTrainedModel):
        return None
    size = model.config.get_text_config(decoder=True).to_dict().get("vocab_size")
    return None if size is None else int(size)


def aligned_vocabularies(student: Vocabulary, teacher: Vocabulary, task: Task) -> VocabularyAlignment:
    """Match two vocabularies by the strings of their tokens.

    Ids with the same string in both stand for the same token, whatever the sizes of the two heads. The same tokens in
    another order are permuted. Tokens that only the student has are impossible for the teacher (-inf), those that only
    the teacher has are left out, and so are rows that no tokenizer knows. Without both tokenizers equal sizes are
    taken for the same vocabulary.
    Errors: HfDistillError for tokenizers that are really different, and for unequal sizes without tokenizers.
    """
    if student.tokenizer is None or teacher.tokenizer is None:
        return _unverified(student, teacher, task)
    ours, theirs = student.tokens(), teacher.tokens()
    _check_same_tokens(ours, theirs, student.tokenizer, teacher.tokenizer, task)
    places = {place: theirs.get(token, LACKING) for token, place in ours.items()}
    known = set(theirs.values())
    top = max(places) + 1
    rows = teacher.size if teacher.size is not None else max(known) + 1
    reordered = any(other not in (LACKING, place) for place, other in places.items())

    def column(place: int) -> int:
        if place in places:
            return places[place]
        # A row that no tokenizer knows is padding on both sides; by its number it is the same one.
        return place if not reordered and place not in known and place < rows else LACKING

    replacement = _replacement(teacher.tokenizer, rows)

    def read_as(place: int) -> int:
        other = places.get(place, LACKING)
        if other != LACKING:
            return other
        return place if place < rows and place not in known else replacement

    columns = tuple(map(column, range(top)))
    ids = tuple(map(read_as, range(max(top, student.size or 0))))
    equal = student.size == teacher.size and len(known) == len(places) and columns == tuple(range(top))
    return VocabularyAlignment(
        None if equal or task.classes is not Classes.VOCABULARY else columns,
        None if ids[:top] == tuple(range(top)) else ids,
        "" if equal else _notice(student, teacher, ours, theirs, reordered),
    )


def _unverified(student: Vocabulary, teacher: Vocabulary, task: Task) -> VocabularyAlignment:
    sides = {"student": student, "teacher": teacher}
    missing = " and the ".join(role for role, side in sides.items() if side.tokenizer is None)
    if student.size is not None and teacher.size is not None and student.size != teacher.size:
        raise HfDistillError(
            f"The student has a vocabulary of {student.size} tokens and the teacher one of {teacher.size}, and no "
            f"tokenizer of the {missing} is known; expected both, to verify which ids mean the same, as {task.name} "
            "compares token by token. Pass processing_class and teacher_processing_class: twice the same one, if both "
            "models share it."
        )
    if task.classes is not Classes.VOCABULARY:
        return VocabularyAlignment()
    return VocabularyAlignment(
        notice=f"no tokenizer of the {missing} is known, so tokens are matched by their ids; pass processing_class and "
        "teacher_processing_class to have them verified"
    )


def _check_same_tokens(
    ours: Mapping[str, int],
    theirs: Mapping[str, int],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    task: Task,
) -> None:
    """Refuse tokenizers whose tokens differ, or that cut text in different ways."""
    own, other = ({place: token for token, place in known.items()} for known in (ours, theirs))
    both = own.keys() & other.keys()
    unlike = sorted(place for place in both if own[place] != other[place])
    # Families give new names to the reserved tokens among their added ones.
    added, reserved = student.get_added_vocab(), teacher.get_added_vocab()
    wrong = [place for place in unlike if own[place] not in added or other[place] not in reserved]
    if (wrong or not both) and ours.keys() != theirs.keys():
        what = f" (id {wrong[0]} is {own[wrong[0]]!r} against {other[wrong[0]]!r})" if wrong else ""
        raise HfDistillError(
            f"The tokenizers of student and teacher agree on {len(both) - len(unlike)} of {len(both)} token ids{what}; "
            f"expected one vocabulary. {_remedy(task)}"
        )
    for probe in PROBES:
        pieces, others = student.tokenize(probe), teacher.tokenize(probe)
        if pieces != others:
            raise HfDistillError(
                "The tokenizers of student and teacher share their tokens and cut text differently: "
                f"{probe!r} into {_some(pieces)} against {_some(others)}; expected one way. {_remedy(task)}"
            )


def _remedy(task: Task) -> str:
    if task.classes is Classes.VOCABULARY:
        return (
            f"{task.name} compares token by token: take a teacher of the student's family, or train the student on "
            "text that the teacher has generated (TaskLoss alone)."
        )
    return (
        f"The labels of {task.name} are those of one tokenizer's tokens: take a teacher with the student's tokenizer, "
        "or a student of the teacher's family."
    )


def _replacement(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """What a teacher reads in the place of a token that it has no row for."""
    usual = (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((place for place in usual if isinstance(place, int) and place < rows), 0)


def _notice(
    student: Vocabulary, teacher: Vocabulary, ours: Mapping[str, int], theirs: Mapping[str, int], reordered: bool
) -> str:
    parts = []
    lacking = [token for token in ours if token not in theirs]
    further = [token for token in theirs if token not in ours]
    if student.size != teacher.size:
        parts.append(
            f"the student has {student.size} rows and the teacher {teacher.size} for {len(ours) - len(lacking)} common "
            "tokens; rows that stand for none are left out"
        )
    if reordered:
        parts.append("the teacher has the same tokens by other ids, which are translated")
    if lacking:
        parts.append(f"the teacher lacks {_some(lacking)}, which get no probability from it")
    if further:
        parts.append(f"the student lacks {_some(further)}; the teacher's probabilities are renormalised without")
    return "; ".join(parts)


def _some(tokens: Sequence[str], most: int = 3) -> str:
    named = ", ".join(repr(token) for token in tokens[:most])
    return f"{len(tokens)} tokens ({named}{', ...' if len(tokens) > most else ''})"


def check_losses(objective: Objective, alignment: VocabularyAlignment) -> None:
    """Refuse terms that are infinite where the teacher's probability of a token is 0 and the student's is not."""
    if not alignment.lacks:
        return
    student, teacher = torch.zeros(4, 4), torch.zeros(4, 4)
    teacher[:, 3] = -torch.inf
    for term in objective.active:
        if not isinstance(term, Logits) or term.loss not in LOSSES.values():
            continue
        labels = {"labels": torch.zeros(4, dtype=torch.long)} if term.needs_labels else {}
        if not term.loss(student, teacher, **labels, **constants(term.options)).isfinite().all():
            raise HfDistillError(
                f"{term!r} is infinite for a token that the teacher lacks ({alignment.notice}); expected a loss that "
                "bears it: forward_kl, jensen_shannon (beta below 1) or skew_kl (also with reverse=True)."
            )


def aligned_tokens(
    task: Task, student: nn.Module, teacher: nn.Module | None, processing_class: Any, teachers: Any
) -> VocabularyAlignment:
    """The alignment of two models, of which the second's processing class is `teachers`; told where it is not plain.

    Nothing is aligned for tasks whose models do not have to read the same tokens.
    """
    if teacher is None or not reads_tokens(task):
        return VocabularyAlignment()
    alignment = aligned_vocabularies(Vocabulary.of(student, processing_class), Vocabulary.of(teacher, teachers), task)
    if alignment.notice:
        logger.warning("Tokens: %s.", alignment.notice)
    return alignment


class AlignedLogits:
    """Reads a teacher's logits as `read` does, then brings them to the student's tokens.

    Only what has to change is touched: a shorter head is a view of the longer, and a token that the teacher lacks is
    filled with -inf in place, since nobody else reads what a teacher has given.
    """

    def __init__(self, read: Read, columns: Sequence[int]) -> None:
        self.read = read
        self.width = len(columns)
        places = torch.tensor(columns)
        lacking = places == LACKING
        in_order = bool(((places == torch.arange(self.width)) | lacking).all())
        self.picked = None if in_order else places.clamp(min=0)
        self.lacking = lacking.nonzero().squeeze(-1)

    def __call__(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The logits, `(..., width)`."""
        logits = self.read(outputs, inputs)
        if self.lacking.device != logits.device:
            self.lacking = self.lacking.to(logits.device)
            self.picked = None if self.picked is None else self.picked.to(logits.device)
        if self.picked is not None:
            logits = logits.index_select(-1, self.picked)
        elif logits.shape[-1] > self.width:
            logits = logits[..., : self.width]
        elif logits.shape[-1] < self.width:
            return functional.pad(logits, (0, self.width - logits.shape[-1]), value=-torch.inf).index_fill_(
                -1, self.lacking, -torch.inf
            )
        return logits.index_fill_(-1, self.lacking, -torch.inf) if len(self.lacking) else logits


class TranslatedIds:
    """Brings the student's token ids in a batch to the teacher's, before the teacher reads them."""

    def __init__(self, ids: Sequence[int], names: Sequence[str]) -> None:
        self.table = torch.tensor(ids)
        self.names = tuple(names)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the teacher's ids under those names; -100 stays."""
        return {key: self._translated(value) if key in self.names else value for key, value in batch.items()}

    def _translated(self, ids: Any) -> Any:
        if not isinstance(ids, torch.Tensor) or ids.is_floating_point():
            return ids
        if self.table.device != ids.device:
            self.table = self.table.to(ids.device)
        # An id outside the table is outside the student's embeddings too, which will say so.
        return self.table[ids.clamp(0, len(self.table) - 1)].where(ids != UNLABELLED, ids)
