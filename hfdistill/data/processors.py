"""Processors of the two models: loaded from beside a model, or made for a model that has none yet."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import AutoImageProcessor, AutoTokenizer, ByT5Tokenizer, PreTrainedConfig

from hfdistill.contract import processing_differences
from hfdistill.data.images import ImageView, read_image, shrunk
from hfdistill.data.labels import LANGUAGE_TASKS
from hfdistill.data.prepared import View
from hfdistill.data.splits import IMAGE, TaskData
from hfdistill.data.texts import TextView
from hfdistill.errors import HfDistillError
from hfdistill.recipe import RecipeError, StudentSection, TeacherSection

SAMPLE = 1000
"""Train images from which mean and standard deviation of the pixels are taken."""
BYTES = "bytes"
"""As a processor's name: the bytes of UTF-8 as tokens (ByT5), which needs no file; 384 tokens."""
BLOCK = 512
"""Tokens of a block of running text, where nobody says."""
LONGEST = 100_000
"""A tokenizer's model_max_length above this means that nobody has set it."""


def teacher_view(section: TeacherSection, config: PreTrainedConfig, data: TaskData) -> View:
    """How the teacher sees an example."""
    name = section.processor or section.model
    revision = section.revision if section.processor is None else None
    if data.kind == IMAGE:
        processor = _loaded(AutoImageProcessor, name, revision, "teacher") if name else _made(config, data)
        return ImageView(processor, _mode(config))
    return _text_view(name, revision, "teacher", config, data)


def student_view(section: StudentSection, config: PreTrainedConfig, data: TaskData, teacher: View) -> View:
    """How the student sees an example: with its own processor if it has one, or else with the teacher's."""
    name = section.processor or section.model
    revision = section.revision if section.processor is None else None
    if isinstance(teacher, TextView):
        if name is None:
            return TextView(teacher.tokenizer, _max_length(teacher.tokenizer, config, data))
        return _text_view(name, revision, "student", config, data)
    if name is not None:
        return ImageView(_loaded(AutoImageProcessor, name, revision, "student"), _mode(config))
    wanted = (section.config or {}).get("image_size") or data.section.image_size
    if _mode(config) != teacher.mode:
        first = read_image(data.train.dataset, data.columns[0], 0, teacher.mode)
        return ImageView(_made(config, data, wanted or teacher.size(first)[::-1]), _mode(config))
    return ImageView(shrunk(teacher.processor, _pair(wanted)) if wanted else teacher.processor, teacher.mode)


def view_differences(student: View, teacher: View) -> list[str]:
    """In words what the two see differently; empty when one view serves both."""
    if isinstance(student, ImageView) and isinstance(teacher, ImageView):
        modes = [f"{student.mode} against {teacher.mode} images"] if student.mode != teacher.mode else []
        return modes + processing_differences(student.processor, teacher.processor)
    if isinstance(student, TextView) and isinstance(teacher, TextView):
        lengths = (student.max_length, teacher.max_length)
        longest = [f"at most {lengths[0]} tokens against {lengths[1]}"] if lengths[0] != lengths[1] else []
        return longest + processing_differences(student.tokenizer, teacher.tokenizer)
    raise HfDistillError("The student reads images and the teacher text, or the other way round; expected the same.")


def _loaded(auto_class: Any, name: str, revision: str | None, role: str) -> Any:
    try:
        return auto_class.from_pretrained(name, **({} if revision is None else {"revision": revision}))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise HfDistillError(
            f"{role}.processor: no processor can be loaded from {name!r}: {reason} Expected a Hub id that this "
            "machine can reach or has cached, or a folder with the files of a "
            f"{auto_class.__name__.removeprefix('Auto')}."
        ) from error


def _mode(config: PreTrainedConfig) -> str:
    return "L" if config.to_dict().get("num_channels") == 1 else "RGB"


def _made(config: PreTrainedConfig, data: TaskData, size: Any = None) -> Any:
    """A processor for a model that has none: a size given, the model's or the data's; the data's mean and deviation."""
    section, column = data.section, data.columns[0]
    mode = _mode(config)
    first = read_image(data.train.dataset, column, 0, mode)
    size = size or section.image_size or config.to_dict().get("image_size") or (first.height, first.width)
    mean, std = section.image_mean, section.image_std
    if mean is None or std is None:
        rows = np.linspace(0, len(data.train) - 1, num=min(SAMPLE, len(data.train)), dtype=np.int64)
        images = [np.asarray(read_image(data.train.dataset, column, int(row), mode), np.float64) for row in rows]
        pixels = np.concatenate([image.reshape(-1, len(mode)) for image in images]) / 255
        mean, std = mean or pixels.mean(0).round(4).tolist(), std or pixels.std(0).clip(min=1e-3).round(4).tolist()
    # Imported here: without torchvision its import warns, and few runs need it.
    from transformers import ViTImageProcessor

    height, width = _pair(size)
    return ViTImageProcessor(size={"height": height, "width": width}, image_mean=mean, image_std=std)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _text_view(name: str | None, revision: str | None, role: str, config: PreTrainedConfig, data: TaskData) -> TextView:
    if name is None:
        raise RecipeError(
            f"{role}.processor: a model built from a config has no tokenizer; name the Hub id or folder of one, "
            "such as bert-base-uncased, or 'bytes'."
        )
    tokenizer = ByT5Tokenizer() if name == BYTES else _loaded(AutoTokenizer, name, revision, role)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return TextView(tokenizer, _max_length(tokenizer, config, data))


def _max_length(tokenizer: Any, config: PreTrainedConfig, data: TaskData) -> int:
    """The recipe's max_length, as far as tokenizer and model take so many tokens."""
    limits = [data.section.max_length, config.to_dict().get("max_position_embeddings")]
    if tokenizer.model_max_length < LONGEST:
        limits.append(tokenizer.model_max_length)
    if data.section.max_length is None and data.kind in LANGUAGE_TASKS:
        limits.append(BLOCK)
    known = [int(limit) for limit in limits if limit is not None]
    return min(known) if known else BLOCK
