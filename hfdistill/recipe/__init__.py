"""Recipes: one run as a YAML file, read into frozen, checked sections."""

from __future__ import annotations

from hfdistill.recipe.reading import load_recipe, override_arguments
from hfdistill.recipe.sections import (
    DataSection,
    ObjectiveSection,
    Recipe,
    StudentSection,
    TeacherSection,
    recipe_of,
)
from hfdistill.recipe.shipped import recipe_path, shipped_recipes
from hfdistill.recipe.values import RecipeError

__all__ = [
    "DataSection",
    "ObjectiveSection",
    "Recipe",
    "RecipeError",
    "StudentSection",
    "TeacherSection",
    "load_recipe",
    "override_arguments",
    "recipe_of",
    "recipe_path",
    "shipped_recipes",
]
