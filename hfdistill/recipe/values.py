"""Values of a recipe: converted to the type that a key expects, or refused with what came and what to write."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hfdistill.errors import HfDistillError, nearest


class RecipeError(HfDistillError):
    """A recipe that cannot be run as it is written; the message names the key and what to write instead."""


def unknown_key(path: str, allowed: Iterable[str]) -> RecipeError:
    """The error for a key that is not among `allowed`."""
    names = sorted(allowed)
    hint = nearest(path.rpartition(".")[2], names)
    known = "" if len(names) > 20 else f" Keys here: {', '.join(names)}."
    return RecipeError(f"{path}: there is no such key{hint}{known}")


def converted(value: Any, expected: Any, path: str) -> Any:
    """`value` as the type `expected`; numbers may be written as YAML strings, since YAML 1.1 reads 1e-4 as one.

    Errors: RecipeError naming `path`.
    """
    if expected is Any or expected is object:
        return value
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return _one_of(value, get_args(expected), path)
    if origin is Literal:
        return _literal(value, get_args(expected), path)
    if isinstance(expected, type) and issubclass(expected, Enum):
        return _enum(value, expected, path)
    convert = _CONVERSIONS.get(origin or expected)
    if convert is None:
        raise RecipeError(f"{path}: this setting cannot be written in a recipe; use Python for it.")
    return convert(value, expected, path)


def _one_of(value: Any, members: tuple[Any, ...], path: str) -> Any:
    if value is None and types.NoneType in members:
        return None
    members = tuple(member for member in members if member is not types.NoneType)
    enums = [member for member in members if isinstance(member, type) and issubclass(member, Enum)]
    if enums and not isinstance(value, (list, dict)):
        # `SchedulerType | str` means the name of a scheduler, not any string.
        return _enum(value, enums[0], path)
    if len(members) == 1:
        return converted(value, members[0], path)
    # An exact type first: "7" for `str | int` stays a string.
    for member in sorted(members, key=lambda member: not _is_exactly(value, member)):
        try:
            return converted(value, member, path)
        except RecipeError:
            continue
    raise _wrong(value, " or ".join(_described(member) for member in members), path)


def _is_exactly(value: Any, member: Any) -> bool:
    kind = get_origin(member) or member
    return isinstance(kind, type) and type(value) is kind


def _literal(value: Any, allowed: tuple[Any, ...], path: str) -> Any:
    if value in allowed and type(value) in {type(choice) for choice in allowed}:
        return value
    hint = nearest(str(value), map(str, allowed))
    raise _wrong(value, f"one of {', '.join(map(str, allowed))}", path, hint)


def _enum(value: Any, expected: type[Enum], path: str) -> str:
    names = [str(member.value) for member in expected]
    # YAML 1.1 reads a bare `no` as false.
    text = "no" if value is False and "no" in names else str(value)
    if text in names:
        return text
    raise _wrong(value, f"one of {', '.join(names)}", path, nearest(text, names))


def _float(value: Any, expected: Any, path: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    raise _wrong(value, "a number", path)


def _int(value: Any, expected: Any, path: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _float(value, float, path) if isinstance(value, (float, str)) else None
    if number is None or not number.is_integer():
        raise _wrong(value, "a whole number", path)
    return int(number)


def _bool(value: Any, expected: Any, path: str) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(value, "true or false", path)


def _str(value: Any, expected: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    hint = f'; write it in quotes: "{value}"' if isinstance(value, (int, float)) else ""
    raise _wrong(value, "a text", path, hint)


def _list(value: Any, expected: Any, path: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, _described(expected), path, f"; write [{value}]" if isinstance(value, (str, int)) else "")
    (member,) = get_args(expected) or (Any,)
    return [converted(entry, member, f"{path}.{index}") for index, entry in enumerate(value)]


def _dict(value: Any, expected: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(value, "a mapping of keys to values", path)
    for key in value:
        if not isinstance(key, str):
            raise _wrong(key, "a key that is a text", path, f'; write it in quotes: "{key}"')
    _, member = get_args(expected) or (str, Any)
    return {key: converted(entry, member, f"{path}.{key}") for key, entry in value.items()}


_CONVERSIONS: dict[Any, Any] = {float: _float, int: _int, bool: _bool, str: _str, list: _list, dict: _dict}

_DESCRIPTIONS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


def _described(expected: Any) -> str:
    return _DESCRIPTIONS.get(get_origin(expected) or expected, str(expected))


def _wrong(value: Any, expected: str, path: str, hint: str = "") -> RecipeError:
    return RecipeError(f"{path}: got {value!r}, expected {expected}{hint or '.'}")


def bound_to(
    function: Any, options: Mapping[str, Any], path: str, allowed: Sequence[str] | None = None
) -> dict[str, Any]:
    """The options as the types that `function` declares. Errors: RecipeError for one that it does not have."""
    names = list(inspect.signature(function).parameters) if allowed is None else allowed
    hints = get_type_hints(function)
    values = {}
    for key, value in options.items():
        if key not in names:
            raise unknown_key(f"{path}.{key}", names)
        values[key] = converted(value, hints[key], f"{path}.{key}")
    return values
