"""Adapters in a recipe: PEFT's own kinds and options by their own names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hfdistill.recipe.values import RecipeError, unknown_key

if TYPE_CHECKING:
    from peft import PeftConfig

DEFAULT = "lora"


def adapters_of(settings: Mapping[str, Any], path: str) -> PeftConfig:
    """PEFT's config of such settings, `peft_type` (lora by default) and its options.

    Errors: RecipeError for a kind or an option that does not exist, and for what PEFT refuses.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    options = dict(settings)
    kinds = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(options.pop("peft_type", DEFAULT)).lower()
    if kind not in kinds:
        raise unknown_key(f"{path}.peft_type.{kind}", kinds)
    allowed = {field.name for field in dataclasses.fields(kinds[kind]) if field.init}
    for key in options:
        if key not in allowed:
            raise unknown_key(f"{path}.{key}", allowed)
    try:
        return kinds[kind](**options)
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"{path}: {error}") from error
