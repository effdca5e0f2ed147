"""The recipes that ship with the package; imports nothing heavy, so that listing them is quick."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hfdistill._resources import recipe_folder
from hfdistill.errors import nearest
from hfdistill.recipe.values import RecipeError

METHODS = "methods"
"""The folder of methods beside the recipes."""


def shipped_recipes() -> dict[str, str]:
    """Name -> what it does in one line, read from the first comment of each file."""
    return {path.stem: _first_comment(path) for path in sorted(recipe_folder().glob("*.yaml"))}


def shipped_methods() -> dict[str, str]:
    """The same of the methods: what may take the place of a recipe's objective."""
    return {path.stem: _first_comment(path) for path in sorted((recipe_folder() / METHODS).glob("*.yaml"))}


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name; a file wins over a name.

    Errors: RecipeError naming the nearest shipped recipe.
    """
    return _found(name_or_path, "recipe", recipe_folder(), shipped_recipes())


def method_path(name_or_path: str | Path) -> Path:
    """The file of a method, in the same way."""
    return _found(name_or_path, "method", recipe_folder() / METHODS, shipped_methods())


def _found(name_or_path: str | Path, what: str, folder: Path, known: Mapping[str, str]) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in known:
        return folder / f"{name_or_path}.yaml"
    if path.is_dir():
        raise RecipeError(f"{path}: this is a folder; expected a YAML file or the name of a shipped {what}.")
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"{path}: there is no such file. `hfdistill recipes` lists the shipped {what}s.")
    raise RecipeError(
        f"{name_or_path}: there is no such {what}{nearest(str(name_or_path), known)} "
        f"Shipped: {', '.join(known)}. Or give the path of a YAML file."
    )


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
    return ""
