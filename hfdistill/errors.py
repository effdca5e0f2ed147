"""The one error type for what a user can cause and mend, and the hint at what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HfDistillError(ValueError):
    """Something the user gave cannot work; the message says what came, what was expected and how to get there."""


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: a hint at the nearest of `words`, or a full stop."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."
