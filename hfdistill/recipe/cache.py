"""A teacher's targets on the disk, as a recipe writes it: `teacher.cache`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hfdistill.recipe.beside import KEYS as BESIDE
from hfdistill.recipe.values import RecipeError, bound_to

if TYPE_CHECKING:
    from hfdistill.recipe.sections import ObjectiveSection, TeacherSection

PATH = "teacher.cache"
AUTO = "auto"


@dataclass(frozen=True)
class CacheSettings:
    """Where a teacher's targets are kept and in what form, as CachedTeacher has it.

    Without a `path` they lie in the folder `cache` of the run. With `views` the random changes of an epoch are those of
    the epoch modulo `views`.
    """

    path: str | None = None
    top_k: int | str | None = AUTO
    temperatures: list[float] | None = None
    dtype: Literal["float16", "float32"] = "float16"
    probabilities: Literal["float16", "uint8"] = "float16"
    views: int | None = None

    def __post_init__(self) -> None:
        if self.path == "":
            raise RecipeError(f"{PATH}.path: it is empty; expected a folder, or true for one beside the run's results.")
        if isinstance(self.top_k, str) and self.top_k != AUTO:
            raise RecipeError(f"{PATH}.top_k: got {self.top_k!r}, expected a number, {AUTO}, or null for all logits.")
        if isinstance(self.top_k, int) and self.top_k < 1:
            raise RecipeError(f"{PATH}.top_k: got {self.top_k}, expected at least 1, or null for all logits.")
        if self.temperatures is not None and not (self.temperatures and min(self.temperatures) > 0):
            raise RecipeError(f"{PATH}.temperatures: got {self.temperatures}, expected numbers above 0, such as [2].")
        if self.views is not None and self.views < 1:
            raise RecipeError(f"{PATH}.views: got {self.views}, expected at least 1: so many epochs have own changes.")

    def deciding(self, fewer: bool) -> dict[str, Any] | None:
        """What of it changes what is learnt; `fewer` says whether `auto` keeps the most likely classes alone."""
        top_k = None if self.top_k == AUTO and not fewer else self.top_k
        found = {
            "dtype": None if self.dtype == "float32" else self.dtype,
            "top_k": top_k,
            "probabilities": None if top_k is None else self.probabilities,
            "views": self.views,
        }
        return None if all(value is None for value in found.values()) else found


def cache_settings(section: TeacherSection) -> CacheSettings | None:
    """The settings of `teacher.cache`, where it is there. Errors: RecipeError naming the key."""
    given = section.cache
    if given is None or given is False:
        return None
    if isinstance(given, Mapping):
        names = list(CacheSettings.__dataclass_fields__)
        return CacheSettings(**bound_to(CacheSettings.__init__, given, PATH, names))
    return CacheSettings(path=given if isinstance(given, str) else None)


def check_cache(section: TeacherSection) -> None:
    """Refuse a cache of what cannot be kept. Errors: RecipeError naming the key."""
    if cache_settings(section) is None:
        return
    why = {
        **dict.fromkeys(BESIDE, "a teacher that learns beside the student says something else in each step"),
        "ensemble": "a cache is of one teacher; train by a single teacher.model, or without the cache",
        "zero_shot": "a cache is of a teacher with a head of its own",
    }
    for key, reason in why.items():
        if vars(section)[key] is not None:
            raise RecipeError(f"{PATH}: it came beside teacher.{key}, and {reason}. Leave one of the two out.")


def check_cached_training(teacher: TeacherSection, objective: ObjectiveSection, *, assistants: bool) -> None:
    """Refuse what a training with a cache cannot do. Errors: RecipeError naming the key."""
    settings = cache_settings(teacher)
    if settings is None:
        return
    for key in ("mixup", "cutmix"):
        if vars(objective)[key]:
            raise RecipeError(
                f"objective.{key}: it mixes the pictures of each batch anew, so that no cache can hold them; set it to "
                f"0 or {PATH} to false, or mix inside the data set in Python: ReplayedViews(dataset, {key}=...)."
            )
    if assistants and settings.path is not None:
        raise RecipeError(
            f"{PATH}: there are assistants, each of which has another teacher, and a cache is of one; expected "
            f"{PATH}: true, or a mapping without a path, for a folder beside each."
        )


def asked_temperatures(objective: ObjectiveSection) -> tuple[float, ...]:
    """The fixed temperatures at which an objective asks for what classes beyond the most likely ones weigh."""
    from hfdistill.config import DistillationConfig
    from hfdistill.knowledge import Logits
    from hfdistill.temperatures import TEMPERATURE

    built = objective.build()
    if built is None:
        given = objective.temperature
        return (DistillationConfig.temperature if given is None else given,)
    terms = [term for term in built.active if isinstance(term, Logits)]
    asked = {term.options.get(TEMPERATURE, term.default_temperature) for term in terms}
    return tuple(sorted({float(each) for each in asked if isinstance(each, (int, float))})) or (1.0,)
