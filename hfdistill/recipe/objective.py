"""The objective of a recipe: names bound to terms when the file is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from hfdistill.errors import HfDistillError
from hfdistill.recipe.values import RecipeError, converted, unknown_key

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
        terms.append(KINDS[kind](options or {}, f"{where}.{kind}"))
    return terms


def _task(options: Options, path: str) -> Term:
    from hfdistill.knowledge import TaskLoss

    return TaskLoss(**_bound(TaskLoss.__init__, options, path, ["weight"]))


def _logits(options: Options, path: str) -> Term:
    from hfdistill.knowledge import Logits, bound_options, loss_named

    own = {key: value for key, value in options.items() if key in ("loss", "weight", "name")}
    others = {key: value for key, value in options.items() if key not in own}
    try:
        loss = loss_named(converted(own.pop("loss", "forward_kl"), str, f"{path}.loss"))
        bound_options(loss, others)
        return Logits(loss, **_bound(Logits.__init__, own, path, ["weight", "name"]), **_bound(loss, others, path))
    except RecipeError:
        raise
    except HfDistillError as error:
        raise RecipeError(f"{path}: {error}") from error


def _boxes(options: Options, path: str) -> Term:
    from hfdistill.boxes import Boxes

    return Boxes(**_bound(Boxes.__init__, options, path, ["weight", "name", "l1", "giou"]))


def _masks(options: Options, path: str) -> Term:
    from hfdistill.boxes import Masks

    return Masks(**_bound(Masks.__init__, options, path, ["weight", "name", "pixels", "dice"]))


def _features(term: str) -> Callable[[Options, str], Term]:
    """A reader of the terms on features, whose options are the term's own and then its loss's."""

    def made(options: Options, path: str) -> Term:
        from hfdistill import features
        from hfdistill.knowledge import bound_options, loss_named

        kind: Any = {"hidden_states": features.HiddenStates, "module": features.Module, "relations": features.Relations}
        own_names = [name for name in inspect.signature(kind[term].__init__).parameters if name not in READ_APART]
        own = {key: value for key, value in options.items() if key in own_names}
        given = {} if "loss" not in options else {"loss": converted(options["loss"], str, f"{path}.loss")}
        region = {} if "region" not in options else {"region": _region(options["region"], f"{path}.region")}
        layers = {} if "layers" not in options else {"layers": options["layers"]}
        others = {key: value for key, value in options.items() if key not in own and key not in READ_APART}
        try:
            default = inspect.signature(kind[term].__init__).parameters["loss"].default
            loss = loss_named(given.get("loss", default))
            known = [*own_names, *READ_APART[1:-1], *list(inspect.signature(loss).parameters)[2:]]
            for key in others:
                if key not in known:
                    raise unknown_key(f"{path}.{key}", known)
            if "module" in own_names and "module" not in own:
                raise RecipeError(f"{path}.module: this key is missing; expected the name of a module.")
            bound_options(loss, others)
            bound = _bound(kind[term].__init__, own, path, own_names) | _bound(loss, others, path)
            return kind[term](**given, **region, **layers, **bound)  # type: ignore[no-any-return]
        except RecipeError:
            raise
        except HfDistillError as error:
            raise RecipeError(f"{path}: {error}") from error

    return made


READ_APART = ("self", "loss", "region", "layers", "options")


def _region(given: Any, path: str) -> Any:
    from hfdistill.features import Labelled, Span, Window

    kinds: dict[str, Any] = {"window": Window, "span": Span, "labelled": Labelled}
    if not isinstance(given, Mapping) or len(given) != 1:
        raise RecipeError(
            f"{path}: got {given!r}, expected one of {', '.join(kinds)}, such as {{span: {{start: 1, end: 9}}}}."
        )
    ((kind, options),) = given.items()
    if kind not in kinds:
        raise unknown_key(f"{path}.{kind}", kinds)
    return kinds[kind](**_bound(kinds[kind].__init__, options or {}, f"{path}.{kind}"))


def _bound(function: Any, options: Options, path: str, allowed: Sequence[str] | None = None) -> dict[str, Any]:
    """The options as the types that `function` declares."""
    names = list(inspect.signature(function).parameters) if allowed is None else allowed
    hints = get_type_hints(function)
    values = {}
    for key, value in options.items():
        if key not in names:
            raise unknown_key(f"{path}.{key}", names)
        values[key] = converted(value, hints[key], f"{path}.{key}")
    return values


KINDS: dict[str, Callable[[Options, str], Term]] = {
    "task": _task,
    "logits": _logits,
    "boxes": _boxes,
    "masks": _masks,
    "hidden_states": _features("hidden_states"),
    "module": _features("module"),
    "relations": _features("relations"),
}
"""Kinds of terms that a recipe can name."""
