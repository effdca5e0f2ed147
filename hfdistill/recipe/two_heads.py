"""Students with a distillation token, as a recipe asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfdistill.recipe.values import RecipeError

if TYPE_CHECKING:
    from hfdistill.recipe.sections import ObjectiveSection, StudentSection

KEY = "student.distillation_token"
MODEL_TYPES = ("vit", "deit", "levit")


def check_two_heads(student: StudentSection, objective: ObjectiveSection) -> None:
    """Refuse what such a student cannot be built of or learn from. Errors: RecipeError naming the key."""
    if not student.distillation_token:
        return
    model_type = (student.config or {}).get("model_type", MODEL_TYPES[0])
    if model_type not in MODEL_TYPES:
        raise RecipeError(f"{KEY}: student.config is a {model_type}; expected one of {', '.join(MODEL_TYPES)}.")
    if student.peft is not None:
        raise RecipeError(
            f"{KEY}: with student.peft adapters alone learn, and the new token would stay as it is; set one of them to "
            "null."
        )
    terms = objective.build()
    weights = [1 - (objective.alpha or 0)] if terms is None else [t.weight for t in terms.terms if not t.needs_teacher]
    if not any(weight != 0 for weight in weights):
        raise RecipeError(
            f"{KEY}: one of the two heads learns from the labels, and these count for nothing in objective; expected "
            "alpha below 1 (DeiT: 0.5), or a term such as {task: {}}."
        )
