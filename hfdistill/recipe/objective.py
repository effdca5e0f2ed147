"""The objective of a recipe: names bound to terms when the file is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfdistill.errors import HfDistillError
from hfdistill.recipe.changing import without_changing, without_weight
from hfdistill.recipe.features import adversarial_term, feature_term
from hfdistill.recipe.values import RecipeError, bound_to, converted, unknown_key

if TYPE_CHECKING:
    from hfdistill.knowledge import Term

Options = Mapping[str, Any]


def terms_of(entries: Sequence[Mapping[str, Any]], path: str) -> list[Term]:
    """The terms that a list such as `[{task: {weight: 0.5}}, {logits: {loss: forward_kl}}]` describes.

    Errors: RecipeError for an unknown kind, loss or option, naming the nearest, and for values of a wrong type.
    """
    terms = []
    for index, entry in enumerate(entries):
        where = f"{path}.{index}"
        if len(entry) != 1:
            raise RecipeError(
                f"{where}: got {dict(entry)!r}, expected one kind of term, such as {{task: {{weight: 1}}}}."
            )
        ((kind, options),) = entry.items()
        if kind not in KINDS:
            raise unknown_key(f"{where}.{kind}", KINDS)
        if options is not None and not isinstance(options, Mapping):
            raise RecipeError(f"{where}.{kind}: got {options!r}, expected the term's options, such as {{weight: 1}}.")
        others, weight = without_weight(options or {}, f"{where}.{kind}")
        terms.append(KINDS[kind](others, weight, f"{where}.{kind}"))
    return terms


def _task(options: Options, weight: Options, path: str) -> Term:
    from hfdistill.knowledge import TaskLoss

    return TaskLoss(**weight, **bound_to(TaskLoss.__init__, options, path, ["weight"]))


def _logits(options: Options, weight: Options, path: str) -> Term:
    from hfdistill.knowledge import Logits, bound_options, loss_named

    options, changing = without_changing(options, path)
    own = {key: value for key, value in options.items() if key in ("loss", "name")}
    others = {key: value for key, value in options.items() if key not in own}
    try:
        loss = loss_named(converted(own.pop("loss", "forward_kl"), str, f"{path}.loss"))
        bound_options(loss, {**others, **changing})
        bound = bound_to(Logits.__init__, own, path, ["weight", "name"]) | bound_to(loss, others, path)
        return Logits(loss, **weight, **bound, **changing)
    except RecipeError:
        raise
    except HfDistillError as error:
        raise RecipeError(f"{path}: {error}") from error


def _boxes(options: Options, weight: Options, path: str) -> Term:
    from hfdistill.boxes import Boxes

    return Boxes(**weight, **bound_to(Boxes.__init__, options, path, ["weight", "name", "l1", "giou"]))


def _masks(options: Options, weight: Options, path: str) -> Term:
    from hfdistill.boxes import Masks

    return Masks(**weight, **bound_to(Masks.__init__, options, path, ["weight", "name", "pixels", "dice"]))


KINDS: dict[str, Callable[[Options, Options, str], Term]] = {
    "task": _task,
    "logits": _logits,
    "boxes": _boxes,
    "masks": _masks,
    "hidden_states": feature_term("hidden_states"),
    "attentions": feature_term("attentions"),
    "module": feature_term("module"),
    "relations": feature_term("relations"),
    "adversarial": adversarial_term,
}
"""Kinds of terms that a recipe can name."""
