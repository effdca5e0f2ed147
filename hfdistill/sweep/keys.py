"""Keys of a recipe with their values: read from a list, found in a recipe, written in words and as a folder's name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hfdistill.recipe import Recipe, RecipeError

ABSENT = object()
"""What stands for a value that a recipe does not have."""

_OPENING, _CLOSING, _QUOTES = "[{", "]}", "\"'"
_LONGEST = 40
"""A value of more characters is cut in a folder's name."""


def listed(key: str, text: str) -> list[str]:
    """The values of a list such as `1,2,4`; commas in brackets and quotes part nothing. Errors: RecipeError."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in _QUOTES:
            quote = sign
        else:
            depth += (sign in _OPENING) - (sign in _CLOSING)
        if sign == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    parts = [part.strip() for part in parts]
    if len(parts) > 1 and "" in parts:
        raise RecipeError(f"{key}: got {text!r} with nothing between two commas or at an end; expected such as 1,2,4.")
    return parts


def value_at(recipe: Recipe, key: str) -> Any:
    """The value of a key such as `objective.terms.1.logits.temperature`, or ABSENT."""
    place: Any = recipe.to_dict()
    for part in key.split("."):
        if isinstance(place, Mapping) and part in place:
            place = place[part]
        elif isinstance(place, Sequence) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        else:
            return ABSENT
    return place


def default_of(key: str) -> Any:
    """The value that holds where a recipe says nothing, or ABSENT where that is not known."""
    from hfdistill.config import DistillationConfig

    section, _, name = key.partition(".")
    if section not in ("objective", "training"):
        return ABSENT
    fields = {field.name: field for field in dataclasses.fields(DistillationConfig)}
    if name not in fields or fields[name].default is dataclasses.MISSING:
        return ABSENT
    return fields[name].default


def labels_of(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last part, or the whole key where that is not enough to tell them apart."""
    short = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(short.values())
    return {key: name if counts[name] == 1 and not name.isdigit() else key for key, name in short.items()}


def text_of(value: Any) -> str:
    """A value as a reader, and a recipe, would write it: 2 for 2.0, 0.0001, [8, 16]."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)


def named(settings: Mapping[str, Any]) -> str:
    """A folder's name for such settings, in any order: alpha=0.9,temperature=2."""
    labels = labels_of(tuple(settings))
    return ",".join(f"{labels[key]}={_plain(text_of(settings[key]))}" for key in sorted(settings))


def _plain(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:_LONGEST]
    if plain == text:
        return text
    return f"{plain.strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
