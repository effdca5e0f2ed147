"""Processors of the two models, loaded from beside a model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, PreTrainedConfig

from hfdistill.contract import IMAGE_SETTINGS
from hfdistill.errors import HfDistillError
from hfdistill.recipe import StudentSection, TeacherSection

PREPROCESSOR = "preprocessor_config.json"
CARRIED = (*IMAGE_SETTINGS, "resample", "do_pad", "pad_size")
"""Settings that say how a model sees an image."""


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


def processor_of_kind(config: PreTrainedConfig, settings: Mapping[str, Any]) -> Any:
    """The image processor that belongs to a kind of model, with these settings over its own.

    Only `from_pretrained` knows which one that is, so it is shown a folder with both.
    """
    loader: Any = AutoImageProcessor
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        (Path(folder) / PREPROCESSOR).write_text(json.dumps(dict(settings)), encoding="utf-8")
        return loader.from_pretrained(folder)


def fitting_processor(processor: Any, config: PreTrainedConfig) -> Any:
    """A processor that sees images as the given one does, of the kind that belongs to a model made from its config.

    What comes after the model (label maps, boxes) is in the processor too, and each kind of model has its own.
    """
    seen = processor.to_dict()
    settings = {"do_center_crop": False, **{key: seen[key] for key in CARRIED if seen.get(key) is not None}}
    return processor_of_kind(config, settings)
