"""What a sweep tries: lists of values from the command line, and a recipe for each combination of them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hfdistill.recipe import Recipe, RecipeError, load_recipe
from hfdistill.sweep.keys import ABSENT, default_of, labels_of, listed, named, text_of, value_at

MANY = 200
"""More trials than this are wanted by few who ask for them."""

JUDGED_ALIKE = ("augment", "labelled", "max_train_samples", "prefix", "teacher_labels", "unlabelled")
"""Keys of the data section that leave the validation examples as they are."""

OF_THE_DEFAULT = ("objective.temperature", "objective.alpha")
"""Keys of the default objective alone."""


@dataclass(frozen=True)
class Trial:
    """One combination: its place in the order, the swept keys as they were given and as values, and their recipe."""

    number: int
    changes: Mapping[str, str]
    settings: Mapping[str, Any]
    recipe: Recipe

    @property
    def title(self) -> str:
        """The settings in words: temperature 2, alpha 0.9."""
        labels = labels_of(tuple(self.settings))
        return ", ".join(f"{labels[key]} {text_of(value)}" for key, value in self.settings.items())

    @property
    def folder(self) -> str:
        """Where its students are kept, the same whatever else is tried and in which order."""
        return f"trials/{named(self.settings)}"

    @property
    def home(self) -> str:
        """Where its teacher is kept: with those of the other trials, unless what is tried concerns the teacher."""
        own = {key: value for key, value in self.settings.items() if key.startswith(("teacher.", "data."))}
        return f"teachers/{named(own)}" if own else "."


@dataclass(frozen=True)
class Grid:
    """What a sweep tries: the recipe's name, the changes that all trials share, the keys that vary, and the trials.

    `other_seeds` says whether their seeds are not the recipe's own.
    """

    recipe: str
    changes: Mapping[str, str]
    keys: tuple[str, ...]
    trials: tuple[Trial, ...]
    other_seeds: bool = False

    @property
    def seeds(self) -> list[int]:
        """The seeds of each trial's students."""
        return self.trials[0].recipe.seeds

    def with_seeds(self, seeds: Sequence[int]) -> Grid:
        """The same with students of these seeds."""
        trials = tuple(replace(trial, recipe=replace(trial.recipe, seeds=list(seeds))) for trial in self.trials)
        return replace(self, trials=trials, other_seeds=list(seeds) != self.seeds)


def grid_of(recipe: str, changes: Mapping[str, str], *, agreed: bool = False) -> Grid:
    """The grid of such changes of a recipe, of which some hold several values: {"objective.alpha": ".5,.9"}.

    Commas part values, except in brackets and quotes. The recipe's own combination, where it is among them, comes
    first. Errors: RecipeError for an unknown key or a wrong value, one that came twice, where nothing varies, and for
    more than MANY trials unless `agreed`.
    """
    values = {key: listed(key, text) for key, text in changes.items()}
    fixed = {key: several[0] for key, several in values.items() if len(several) == 1}
    # What is shared by trials changes seldom: another teacher or other data have to be read anew.
    slow_first = sorted(values, key=lambda key: not key.startswith(("teacher.", "data.")))
    swept = {key: values[key] for key in slow_first if len(values[key]) > 1}
    _check_objective(recipe, changes, fixed)
    base = load_recipe(recipe, fixed)
    if base.assistants:
        raise RecipeError(
            f"{recipe}: a sweep trains each student with one teacher, and this recipe has assistants between the two; "
            "run it once, then sweep with the last assistant: --assistants=[] --teacher.finetune=null "
            "--teacher.config=null --teacher.model=OUTPUT/assistant-N/seed-42/student."
        )
    _check_lists(recipe, swept, agreed)
    fixed |= _teacher_pinned(base, swept)
    combinations = [dict(zip(swept, each, strict=True)) for each in itertools.product(*swept.values())]
    recipes = [load_recipe(recipe, {**fixed, **each}) for each in combinations]
    settings = [{key: value_at(made, key) for key in swept} for made in recipes]
    _check_values(swept, combinations, settings)
    own = {key: _own_value(base, key) for key in swept}
    order = sorted(range(len(recipes)), key=lambda place: settings[place] != own)
    trials = [
        Trial(number, combinations[place], settings[place], recipes[place])
        for number, place in enumerate(order, start=1)
    ]
    return Grid(recipe, fixed, tuple(swept), tuple(trials))


def _check_objective(recipe: str, changes: Mapping[str, str], fixed: Mapping[str, str]) -> None:
    """Refuse alpha and temperature of a recipe that names its terms, and say what to write."""
    asked = [key for key in OF_THE_DEFAULT if changes.get(key, "null") != "null"]
    others = {key: text for key, text in fixed.items() if key not in asked}
    terms = load_recipe(recipe, others).objective.terms if asked else None
    if not terms:
        return
    short = asked[0].rpartition(".")[2]
    option = "weight" if short == "alpha" else short
    found = [f"objective.terms.{place}.{kind}.{option}" for place, entry in enumerate(terms) for kind in entry]
    usable = [f"--{key}" for key in found if _loads(recipe, {**others, key: "1"})]
    hint = "none of them has one"
    if usable:
        hint = f"expected such a key of a term with its values: {' or '.join(usable)}"
    raise RecipeError(f"{recipe}: --{short} belongs to the default objective, and this recipe names its terms; {hint}.")


def _loads(recipe: str, changes: Mapping[str, str]) -> bool:
    try:
        load_recipe(recipe, changes)
    except RecipeError:
        return False
    return True


def _check_lists(recipe: str, swept: Mapping[str, Sequence[str]], agreed: bool) -> None:
    if not swept:
        raise RecipeError(
            f"{recipe}: no list of values came, and a sweep of one combination is a run; expected several values of a "
            f"key, such as --temperature 1,2,4,8, or the command `hfdistill run {recipe}`."
        )
    for key in swept:
        section, _, rest = key.partition(".")
        if section == "data" and rest not in JUDGED_ALIKE:
            raise RecipeError(
                f"{key}: it may change the examples that students are judged on, so that trials could not be compared; "
                f"expected one value. Of the data, these can vary: {', '.join(JUDGED_ALIKE)}."
            )
    trials = math.prod(len(texts) for texts in swept.values())
    if trials > MANY and not agreed:
        raise RecipeError(
            f"{recipe}: these lists make {trials:,} combinations; expected at most {MANY}. Give shorter lists, or "
            "--yes to train them all. Large spaces are searched by optuna: examples/hyperparameter_search.py."
        )


def _check_values(
    swept: Mapping[str, Sequence[str]], combinations: Sequence[Mapping[str, str]], settings: Sequence[Mapping[str, Any]]
) -> None:
    for key, texts in swept.items():
        meant = {combination[key]: setting[key] for combination, setting in zip(combinations, settings, strict=True)}
        seen: list[str] = []
        for text in texts:
            former = next((other for other in seen if _same(meant[other], meant[text])), None)
            if former is not None:
                both = f"{former} and {text}" if former != text else text
                raise RecipeError(f"{key}: the same value came twice ({both}); expected different ones.")
            seen.append(text)


def _same(first: Any, second: Any) -> bool:
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def _own_value(base: Recipe, key: str) -> Any:
    value = value_at(base, key)
    return default_of(key) if value is None or value is ABSENT else value


def _teacher_pinned(base: Recipe, swept: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Changes that keep the teacher's training as the recipe has it while `training` varies."""
    pinned = {}
    for key in swept:
        section, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        if section == "training" and base.teacher.finetune is not None and name not in base.teacher.finetune:
            value = base.training.get(name, default_of(f"training.{name}"))
            if value is not ABSENT:
                pinned[f"teacher.finetune.{name}"] = json.dumps(value)
    return {key: text for key, text in pinned.items() if key not in swept}
