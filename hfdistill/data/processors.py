"""Processors of the two models, loaded from beside a model."""

from __future__ import annotations

from typing import Any

from hfdistill.errors import HfDistillError
from hfdistill.recipe import StudentSection, TeacherSection


def processor_name(section: TeacherSection | StudentSection) -> str | None:
    """The Hub id or folder that a model's processor comes from; None for a model made from a config."""
    return section.processor or section.model


def loaded_processor(auto_class: Any, section: TeacherSection | StudentSection) -> Any:
    """The processor that a section names. Errors: HfDistillError where there is none that can be loaded."""
    name = processor_name(section)
    revision = section.revision if section.processor is None else None
    try:
        return auto_class.from_pretrained(name, **({} if revision is None else {"revision": revision}))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise HfDistillError(
            f"{section.SECTION}.processor: no processor can be loaded from {name!r}: {reason} Expected a Hub id that "
            "this machine can reach or has cached, or a folder with the files of a "
            f"{auto_class.__name__.removeprefix('Auto')}."
        ) from error
