"""Terms on what the models see inside, as a recipe names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hfdistill.errors import HfDistillError
from hfdistill.recipe.values import RecipeError, bound_to, converted, unknown_key

if TYPE_CHECKING:
    from hfdistill.knowledge import Term

READ_APART = ("self", "loss", "weight", "region", "layers", "options")
"""Parameters of such terms that are no plain values."""


def feature_term(term: str) -> Callable[[Mapping[str, Any], Mapping[str, Any], str], Term]:
    """A reader of the terms on features, whose options are the term's own and then its loss's."""

    def made(options: Mapping[str, Any], weight: Mapping[str, Any], path: str) -> Term:
        from hfdistill import features
        from hfdistill.knowledge import bound_options, loss_named

        kinds: dict[str, Any] = {
            "hidden_states": features.HiddenStates,
            "attentions": features.Attentions,
            "module": features.Module,
            "relations": features.Relations,
        }
        kind = kinds[term]
        own_names = [name for name in inspect.signature(kind.__init__).parameters if name not in READ_APART]
        own = {key: value for key, value in options.items() if key in own_names}
        given = {} if "loss" not in options else {"loss": converted(options["loss"], str, f"{path}.loss")}
        region = {} if "region" not in options else {"region": _region(options["region"], f"{path}.region")}
        layers = {} if "layers" not in options else {"layers": options["layers"]}
        others = {key: value for key, value in options.items() if key not in own and key not in READ_APART}
        try:
            default = inspect.signature(kind.__init__).parameters["loss"].default
            loss = loss_named(given.get("loss", default))
            known = [*own_names, *READ_APART[1:-1], *list(inspect.signature(loss).parameters)[2:]]
            for key in others:
                if key not in known:
                    raise unknown_key(f"{path}.{key}", known)
            if "module" in own_names and "module" not in own:
                raise RecipeError(f"{path}.module: this key is missing; expected the name of a module.")
            bound_options(loss, others)
            bound = bound_to(kind.__init__, own, path, own_names) | bound_to(loss, others, path)
            return kind(**weight, **given, **region, **layers, **bound)  # type: ignore[no-any-return]
        except RecipeError:
            raise
        except HfDistillError as error:
            raise RecipeError(f"{path}: {error}") from error

    return made


def adversarial_term(options: Mapping[str, Any], weight: Mapping[str, Any], path: str) -> Term:
    """The term of a discriminator; its distance is its own."""
    from hfdistill.features import Adversarial

    layers = {key: value for key, value in options.items() if key == "layers"}
    plain = {key: value for key, value in options.items() if key not in layers}
    names = [name for name in inspect.signature(Adversarial.__init__).parameters if name not in READ_APART]
    for key in plain:
        if key not in names:
            raise unknown_key(f"{path}.{key}", [*names, "layers", "weight"])
    try:
        return Adversarial(**weight, **layers, **bound_to(Adversarial.__init__, plain, path, names))
    except RecipeError:
        raise
    except HfDistillError as error:
        raise RecipeError(f"{path}: {error}") from error


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
    return kinds[kind](**bound_to(kinds[kind].__init__, options or {}, f"{path}.{kind}"))
