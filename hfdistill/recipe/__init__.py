"""Recipes: one run as a YAML file, read into frozen, checked sections."""

from __future__ import annotations

from hfdistill.recipe.reading import load_recipe, override_arguments
from hfdistill.recipe.sections import (
    DataSection,
    ObjectiveSection,
    StudentSection,
    TeacherSection,
)
from hfdistill.recipe.shipped import recipe_path, shipped_recipes
from hfdistill.recipe.values import RecipeError
from hfdistill.recipe.whole import Recipe, recipe_of

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
