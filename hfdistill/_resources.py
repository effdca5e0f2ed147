"""Files that travel with the package."""

from __future__ import annotations

from pathlib import Path

from hfdistill.errors import HfDistillError


def recipe_folder() -> Path:
    """Return the folder of the recipes that hfdistill ships.

    In an installed wheel they lie inside the package; in a source checkout, or an editable install of one, beside it.

    Raises:
        HfDistillError: if neither folder is there.

    """
    package = Path(__file__).resolve().parent
    candidates = (package / "recipes", package.parent / "recipes")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise HfDistillError(
        f"The recipes that come with hfdistill are missing: expected them in {candidates[0]} (installed package) or "
        f"{candidates[1]} (source checkout). Install hfdistill again, or give the path of your own recipe file."
    )
