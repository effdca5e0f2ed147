"""Weights and options that are more than a number, as a recipe writes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hfdistill.errors import HfDistillError
from hfdistill.recipe.values import RecipeError, bound_to, converted, unknown_key

WEIGHT = "weight"


def without_changing(options: Mapping[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that are plain values, and the others, made: schedules and temperatures of rows.

    `{linear: {start: 8, end: 1, epochs: 10}}`, `{cosine: ...}`, `{warm_up: {epochs: 20}}`; for a temperature also
    `{teacher_entropy: {low: 1, high: 8}}` and `{learned: {epochs: 10}}`.
    Errors: RecipeError for an unknown kind or setting, naming the nearest.
    """
    made = {key: _made(key, value, f"{path}.{key}") for key, value in options.items() if isinstance(value, Mapping)}
    return {key: value for key, value in options.items() if key not in made}, made


def without_weight(options: Mapping[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options beside the weight, and the weight, where one is given: a number, a schedule or `auto`.

    Errors: RecipeError as those of `without_changing`.
    """
    from hfdistill.schedules import AUTO

    if WEIGHT not in options:
        return dict(options), {}
    where, given = f"{path}.{WEIGHT}", options[WEIGHT]
    if given == AUTO:
        given = {AUTO: {}}
    if isinstance(given, str) and not _is_number(given):
        raise RecipeError(f"{where}: got {given!r}, expected a number, a schedule, or {AUTO}.")
    weight = _made(WEIGHT, given, where) if isinstance(given, Mapping) else converted(given, float, where)
    return {key: value for key, value in options.items() if key != WEIGHT}, {WEIGHT: weight}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _made(key: str, value: Any, path: str) -> Any:
    from hfdistill.schedules import AUTO, SCHEDULES, Auto
    from hfdistill.temperatures import TEMPERATURE, TEMPERATURES

    kinds: dict[str, Any] = {
        **SCHEDULES,
        **(TEMPERATURES if key == TEMPERATURE else {}),
        **({AUTO: Auto} if key == WEIGHT else {}),
    }
    if len(value) != 1:
        raise RecipeError(
            f"{path}: got {value!r}, expected a number or one of {', '.join(kinds)}, such as "
            "{linear: {start: 8, end: 1, epochs: 10}}."
        )
    ((kind, settings),) = value.items()
    if kind not in kinds:
        raise unknown_key(f"{path}.{kind}", kinds)
    if not isinstance(settings or {}, Mapping):
        raise RecipeError(f"{path}.{kind}: got {settings!r}, expected its settings.")
    settings = settings or {}
    missing = [
        name
        for name, parameter in inspect.signature(kinds[kind]).parameters.items()
        if parameter.default is parameter.empty and name not in settings
    ]
    try:
        bound = bound_to(kinds[kind].__init__, settings, f"{path}.{kind}")
        if missing:
            raise RecipeError(f"{path}.{kind}.{missing[0]}: this key is missing, and it has no default.")
        return kinds[kind](**bound)
    except RecipeError:
        raise
    except HfDistillError as error:
        raise RecipeError(f"{path}: {error}") from error
