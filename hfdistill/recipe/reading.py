"""Reading a recipe: a YAML file, or the name of one that ships with the package, and changes from the command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hfdistill.recipe.beside import KEYS as BESIDE
from hfdistill.recipe.shipped import method_path, recipe_path
from hfdistill.recipe.values import RecipeError
from hfdistill.recipe.whole import Recipe, recipe_of


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice; YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is written twice", key_node.start_mark
                )
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


METHOD_KEYS = ("objective", "assistants", "teacher")


def load_recipe(
    name_or_path: str | Path, overrides: Mapping[str, str] | None = None, method: str | Path | None = None
) -> Recipe:
    """The recipe of a file or of a shipped name, with `overrides` such as {"training.learning_rate": "1e-4"}.

    `method` is a file or a shipped name whose objective, assistants, and teacher that learns beside the student take
    the place of the recipe's.
    Errors: RecipeError naming the file, the key and the nearest key for whatever cannot be run.
    """
    path = recipe_path(name_or_path)
    content = _parsed(path)
    if method is not None:
        content = _with_method(content, _method(method))
    try:
        for key, text in (overrides or {}).items():
            content = _overridden(content, key, text)
        return recipe_of(content)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _method(name_or_path: str | Path) -> dict[str, Any]:
    path = method_path(name_or_path)
    content = _parsed(path)
    for key in content:
        if key not in METHOD_KEYS:
            raise RecipeError(
                f"{path}: {key} is no part of a method; expected {', '.join(METHOD_KEYS)}. The rest is the recipe's."
            )
    teacher = content.get("teacher", {})
    if not isinstance(teacher, dict):
        raise RecipeError(f"{path}: teacher: got {teacher!r}, expected {' or '.join(BESIDE)}, such as {{ema: 0.999}}.")
    for key in teacher:
        if key not in BESIDE:
            raise RecipeError(
                f"{path}: teacher.{key} is no part of a method, whose teacher can only be one that learns beside the "
                f"student: {' or '.join(BESIDE)}. Any other is the recipe's."
            )
    return content


def _with_method(recipe: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    """A recipe's content with a method's over it; a teacher that is replaced still says how examples are read."""
    former = recipe.get("teacher")
    if method.get("teacher") and isinstance(former, dict):
        processor = former.get("processor") or former.get("model")
        method = {**method, "teacher": {"processor": processor, **method["teacher"]}}
    return {**recipe, **method}


def override_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Overrides from arguments such as `--training.learning_rate=1e-4` or `--data.dataset /my/folder`.

    Errors: RecipeError for an argument of another form.
    """
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key:
            raise RecipeError(f"{argument}: expected a change of the recipe, such as --training.learning_rate=1e-4.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise RecipeError(f"{argument}: a value is missing; write {argument}=VALUE.")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: this is no valid YAML. {_place(error)}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is no UTF-8 text; expected a YAML file.") from error
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path}: expected the sections student, teacher, data, objective and training; got {_short(content)}."
        )
    return content


def _place(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"Line {mark.line + 1}, column {mark.column + 1}: {error.problem}."
    return str(error).splitlines()[0]


def _short(content: Any) -> str:
    return "an empty file" if content is None else f"{type(content).__name__} {str(content)[:40]!r}"


def _overridden(content: Mapping[str, Any], key: str, text: str) -> dict[str, Any]:
    """A copy of the file's content with one value replaced; sections on the way are made where they are absent."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--{key}={text}: the value is no valid YAML. {_place(error)}") from error
    changed: Any = copy.deepcopy(dict(content))
    place = changed
    *sections, last = key.split(".")
    for section in sections:
        place = _entered(place, section, key)
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    else:
        place[last] = value
    return changed  # type: ignore[no-any-return]


def _entered(place: Any, section: str, key: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, section, key)]
    if place.get(section) is None:
        place[section] = {}
    if not isinstance(place[section], (dict, list)):
        raise RecipeError(f"--{key}: {section} holds {place[section]!r}, which has no keys of its own.")
    return place[section]


def _index(entries: list[Any], text: str, key: str) -> int:
    if not text.isdigit() or int(text) >= len(entries):
        raise RecipeError(
            f"--{key}: {text!r} is no place in a list of {len(entries)}; expected 0 to {len(entries) - 1}."
        )
    return int(text)
