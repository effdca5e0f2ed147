"""The recipes that ship with the package; imports nothing heavy, so that listing them is quick."""

from __future__ import annotations

from pathlib import Path

from hfdistill._resources import recipe_folder
from hfdistill.errors import nearest
from hfdistill.recipe.values import RecipeError


def shipped_recipes() -> dict[str, str]:
    """Name -> what it does in one line, read from the first comment of each file."""
    return {path.stem: _first_comment(path) for path in sorted(recipe_folder().glob("*.yaml"))}


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name; a file wins over a name.

    Errors: RecipeError naming the nearest shipped recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{path}: this is a folder; expected a YAML file or the name of a shipped recipe.")
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"{path}: there is no such file. `hfdistill recipes` lists the shipped recipes.")
    shipped = recipe_folder() / f"{name_or_path}.yaml"
    if shipped.is_file():
        return shipped
    known = shipped_recipes()
    raise RecipeError(
        f"{name_or_path}: there is no such recipe{nearest(str(name_or_path), known)} "
        f"Shipped: {', '.join(known)}. Or give the path of a YAML file."
    )


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
    return ""
