"""Models given by name, and students brought back from checkpoints whole."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hfdistill.contract import check_trained
from hfdistill.errors import HfDistillError
from hfdistill.features.projectors import without_projectors
from hfdistill.shards import unpartitioned
from hfdistill.tasks import Classes, Task, auto_class_name, known_auto_classes


def auto_class_of(architecture: str) -> Any:
    """The auto class that loads an architecture by its class name, such as ViTForImageClassification."""
    name = auto_class_name(architecture)
    if name is None:
        raise HfDistillError(
            f"{architecture} has no head that can be distilled; expected an architecture of "
            f"{', '.join(known_auto_classes())}. Fine-tune a bare checkpoint with a head before it teaches."
        )
    return getattr(transformers, name)


def encoder_class_of(config: PreTrainedConfig) -> Any:
    """The auto class that loads a model without a head, and of an encoder-decoder the encoder alone."""
    encoders = transformers.AutoModelForTextEncoding
    return encoders if type(config) in encoders._model_mapping else transformers.AutoModel


def load_teacher(
    name: str,
    revision: str | None,
    init_kwargs: Mapping[str, Any] | str | None,
    task: Task | None = None,
    *,
    pieces: bool = False,
) -> PreTrainedModel:
    """A trained model from a Hub id or folder: with its head, or without where the `task` reads hidden states.

    It is whole on each process; with `pieces` ZeRO-3, where that is used, may partition it while it is loaded.
    Errors: HfDistillError when nothing is found there, when the checkpoint has no head for a task, or when
    its head would be freshly initialised.
    """
    options = as_dict(init_kwargs)
    if revision is not None:
        options["revision"] = revision
    auto_class = _auto_class(name, options, "teacher", task)
    try:
        with nullcontext() if pieces else unpartitioned():
            model, info = auto_class.from_pretrained(name, output_loading_info=True, **options)
    except (ImportError, OSError, ValueError) as error:
        raise HfDistillError(_not_found(name, "teacher", error)) from error
    check_trained(model, sorted(info["missing_keys"]), unread=() if task is None else task.unread)
    return model  # type: ignore[no-any-return]


def load_student(
    name: str,
    teacher: nn.Module | None,
    init_kwargs: Mapping[str, Any] | str | None,
    task: Task | None = None,
) -> PreTrainedModel:
    """A student from a Hub id or folder, with the teacher's kind of head and its classes.

    Without a teacher the checkpoint's own head is kept. A head of another size is replaced by a fresh one. Where the
    `task` reads hidden states it has no head.
    """
    options = as_dict(init_kwargs)
    if isinstance(teacher, PreTrainedModel) and not _without_head(task):
        auto_class = auto_class_of(type(teacher).__name__)
        config = teacher.config
        for key in ("id2label", "label2id", "problem_type"):
            options.setdefault(key, getattr(config, key))
        options.setdefault("ignore_mismatched_sizes", True)
    else:
        auto_class = _auto_class(name, options, "student", task)
    try:
        return auto_class.from_pretrained(name, **options)  # type: ignore[no-any-return]
    except (ImportError, OSError, ValueError) as error:
        raise HfDistillError(_not_found(name, "student", error)) from error


def processing_class_beside(name: str, revision: str | None, like: Any) -> Any:
    """The processor saved beside a model, of the same kind as `like`; None where there is none."""
    if isinstance(like, PreTrainedTokenizerBase):
        auto_class: Any = AutoTokenizer
    elif isinstance(like, BaseImageProcessor):
        auto_class = AutoImageProcessor
    elif isinstance(like, ProcessorMixin):
        auto_class = AutoProcessor
    else:
        return None
    try:
        return auto_class.from_pretrained(name, revision=revision)
    except (OSError, ValueError):
        return None


def restore(model: PreTrainedModel, checkpoint: str) -> None:
    """Load a checkpoint into a student in place, strictly.

    Transformers 5 saves some families (ViT, DeiT, BEiT, Swin, DINOv2) under legacy names that only `from_pretrained`
    maps back; Trainer loads the raw file with strict=False and loses those tensors silently
    (https://github.com/huggingface/transformers/issues/43701, seen in 5.23).
    """
    widest = functools.reduce(torch.promote_types, (parameter.dtype for parameter in model.parameters()))
    auto_class: Any = type(model)
    saved, info = auto_class.from_pretrained(checkpoint, config=model.config, dtype=widest, output_loading_info=True)
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
        raise HfDistillError(
            f"The checkpoint {checkpoint} lacks {len(missing)} tensors of the student, such as {missing[0]!r}; "
            "expected one that was saved from this very architecture. Start anew or name the right folder."
        )
    result = model.load_state_dict(saved.state_dict(), strict=False)
    # While a training lasts its projectors hang on the student; they have a file of their own.
    lacking = without_projectors(dict.fromkeys(result.missing_keys))
    if lacking or result.unexpected_keys:
        raise HfDistillError(
            f"The checkpoint {checkpoint} is of another architecture: "
            f"{sorted([*lacking, *result.unexpected_keys])[:3]} do not fit; start anew or name the right folder."
        )


def has_weights(checkpoint: str) -> bool:
    """Whether a folder holds a whole model as `save_pretrained` writes it, and not adapters or shards of a strategy."""
    return any((Path(checkpoint) / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def why_not_loaded(error: Exception) -> str:
    """The end of a message about a model that cannot be loaded: the reason's first line, and what was expected."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ImportError):
        return f"{reason} Expected the library that its quantization_config or its code needs; install that first."
    return (
        f"{reason} Expected a Hub id that this machine can reach or has cached, or a folder written by save_pretrained."
    )


def _without_head(task: Task | None) -> bool:
    return task is not None and task.classes is Classes.COORDINATES


def _auto_class(name: str, options: Mapping[str, Any], role: str, task: Task | None) -> Any:
    hub_options = {
        key: options[key] for key in ("revision", "trust_remote_code", "token", "cache_dir") if key in options
    }
    try:
        config = AutoConfig.from_pretrained(name, **hub_options)
    except (OSError, ValueError) as error:
        raise HfDistillError(_not_found(name, role, error)) from error
    if _without_head(task):
        return encoder_class_of(config)
    if not config.architectures:
        raise HfDistillError(
            f"The config of the {role} {name!r} names no architecture, so its head is unknown; load it yourself with "
            "an AutoModelFor... class and pass the module."
        )
    return auto_class_of(str(config.architectures[0]))


def _not_found(name: str, role: str, error: Exception) -> str:
    return f"The {role} {name!r} could not be loaded: {why_not_loaded(error)}"


def as_dict(init_kwargs: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Arguments of from_pretrained, which may come as JSON from a command line."""
    return dict(json.loads(init_kwargs) if isinstance(init_kwargs, str) else init_kwargs or {})
