"""`data.generation`: how texts are written for the metrics, checked against what generate() knows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from hfdistill.recipe.values import RecipeError, unknown_key

SPEECH = ("language", "task")
"""Options of Whisper's generate()."""
ELSEWHERE = {
    "do_sample": "texts are written without chance, so that a run can be repeated",
    "num_return_sequences": "each source gets one text",
    "return_dict_in_generate": "the texts alone are read",
    "output_scores": "the texts alone are read",
    "output_logits": "the texts alone are read",
    "output_attentions": "the texts alone are read",
    "output_hidden_states": "the texts alone are read",
}
"""Options that a run decides itself."""


@functools.cache
def _known() -> frozenset[str]:
    from transformers import GenerationConfig

    default = GenerationConfig()  # type: ignore[no-untyped-call]
    return frozenset(name for name in vars(default) if not name.startswith(("_", "transformers")))


def check_generation(options: Mapping[str, Any]) -> None:
    """Refuse options that generate() does not know, and values that it cannot take. Errors: RecipeError."""
    from transformers import GenerationConfig

    path = "data.generation"
    for key in options:
        if key in ELSEWHERE:
            raise RecipeError(f"{path}.{key}: leave it out: {ELSEWHERE[key]}.")
        if key not in _known() and key not in SPEECH:
            raise unknown_key(f"{path}.{key}", {*_known(), *SPEECH} - ELSEWHERE.keys())
    try:
        GenerationConfig(  # type: ignore[no-untyped-call]
            **{key: value for key, value in options.items() if key not in SPEECH}
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())}") from error
