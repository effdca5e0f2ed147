"""The one error type for what a user can cause and mend."""

from __future__ import annotations


class HfDistillError(ValueError):
    """Something the user gave cannot work; the message says what came, what was expected and how to get there."""
