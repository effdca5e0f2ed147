"""Names of classes that the recipe gives, because the data only have numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download

from hfdistill.recipe import RecipeError

THE_TEACHERS = "teacher"
"""Instead of names: those of a teacher that is used as it is, in order of its numbers."""


def given_names(given: str | Sequence[str], known: Sequence[str] | None) -> tuple[str, ...]:
    """The names of data.class_names in order of their numbers: as they are, or from a json file, here or on the Hub.

    `known` are those of a teacher that is used as it is. Errors: RecipeError for a file that is not there, or that
    holds neither a list nor a mapping of numbers to names, and where there is no such teacher.
    """
    if not isinstance(given, str):
        return tuple(given)
    if given == THE_TEACHERS:
        if known is None:
            raise RecipeError(
                "data.class_names: the teacher's names are those of the data while it is fine-tuned; name the classes, "
                "or take a teacher without teacher.finetune."
            )
        return tuple(known)
    file = Path(given).expanduser()
    if not file.is_file():
        file = _from_hub(given)
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(names, Mapping):
            places = {int(number): name for number, name in names.items()}
            names = [places[number] for number in range(len(places))]
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"data.class_names: {given} cannot be read ({error}); expected a json file with a list of names, or with "
            "a mapping from 0, 1, 2, ... to names."
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"data.class_names: {given} holds {type(names).__name__}; expected a list of names.")
    return tuple(names)


def _from_hub(name: str) -> Path:
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if name.startswith((".", "/", "~")) or not file:
        raise RecipeError(f"data.class_names: there is no file {name}; expected one, or owner/name/file.json.")
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file, repo_type="dataset"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"data.class_names: {name} is neither a file here nor one of a data set that can be reached: {reason}"
        ) from error
