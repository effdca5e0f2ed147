"""What a model that answers questions is worth on a split: its answers as texts, beside the loss of its places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hfdistill.data.windows import NOWHERE, Windows
from hfdistill.knowledge import StepContext
from hfdistill.metrics_text import answer_scores
from hfdistill.stages.exam import Exam
from hfdistill.stages.scores import Scores, batch_sums, scored

FOUND = ("score", "refusal", "first", "last")
"""Of each window: the score of its best span and of no answer, and the span's characters in the context."""


def answered(exam: Exam) -> Scores:
    """Score a model on the questions of a split, a row each: exact match and F1, and sums over starts and ends.

    An answer is the span with the highest sum of both logits among all windows of the question, of at most
    `data.max_answer_length` tokens. Where the data has questions without an answer, none is given if no window
    prefers a span to its classification token by as much as the least of these sums.
    """
    windows = exam.shared_examples().source
    assert isinstance(windows, Windows), "questions are read in windows"
    longest = exam.prepared.data.section.max_answer_length

    def sums(context: StepContext, places: range) -> dict[str, Tensor]:
        rows = torch.arange(places.start, places.stop)
        found = best_spans(context.logits.float(), windows, rows, longest)
        return batch_sums(context, len(places), ()) | dict(zip(FOUND, found, strict=True))

    columns = scored(exam, sums).columns
    found = Found(*(columns.pop(name) for name in FOUND))
    contexts, answers = windows.asked()
    given = found.texts(windows, contexts)
    exact, f1 = torch.tensor([answer_scores(*pair) for pair in zip(given, answers, strict=True)]).double().unbind(1)
    asked = {"exact": exact, "f1": f1, "questions": torch.ones_like(f1)}
    nothing = torch.zeros_like(f1)
    return Scores({name: nothing.index_add(0, windows.owners, each) for name, each in columns.items()} | asked)


@dataclass(frozen=True)
class Found:
    """The best span of each window `(windows,)`; the names are those of `FOUND`."""

    score: Tensor
    refusal: Tensor
    first: Tensor
    last: Tensor

    def texts(self, windows: Windows, contexts: list[str]) -> list[str]:
        """The answer to each question, from the best of its windows; empty for none."""
        best: list[int | None] = [None] * len(contexts)
        refusals = torch.full((len(contexts),), torch.inf, dtype=torch.float64)
        refusals = refusals.scatter_reduce(0, windows.owners, self.refusal, "amin")
        scores = self.score.tolist()
        for window, owner in enumerate(windows.owners.tolist()):
            former = best[owner]
            if former is None or scores[window] > scores[former]:
                best[owner] = window
        given = []
        for question, chosen in enumerate(best):
            assert chosen is not None, "each question has a window"
            refused = windows.reader.refuses and float(refusals[question]) > scores[chosen]
            span = slice(int(self.first[chosen]), int(self.last[chosen]))
            given.append("" if refused else contexts[question][span])
        return given


def best_spans(logits: Tensor, windows: Windows, rows: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score of the best span and of no answer, and the span's first character and the one after its last.

    `logits` (windows, 2, tokens) of starts and ends. A span lies in the context and has at most `longest` tokens; all
    of them are looked at. Each result is `(windows,)` in float64.
    """
    first, last = (each.to(logits.device) for each in windows.character_spans(rows))
    starts, ends = logits.masked_fill((first == NOWHERE)[:, None], -torch.inf).double().unbind(1)
    tokens = starts.shape[1]
    # One column for each length: the best start for it.
    tops = [(starts[:, : tokens - more] + ends[:, more:]).max(1) for more in range(min(longest, tokens))]
    score, more = torch.stack([top.values for top in tops], 1).max(1)
    begins = torch.stack([top.indices for top in tops], 1).gather(1, more[:, None]).squeeze(1)
    refusal = windows.placed(windows.refusals[rows], rows).to(logits.device)
    refused = logits.gather(2, refusal[:, None, None].expand(-1, 2, 1)).double().sum((1, 2))
    characters = [
        each.gather(1, place[:, None]).squeeze(1).double() for each, place in ((first, begins), (last, begins + more))
    ]
    return score, refused, characters[0], characters[1]
