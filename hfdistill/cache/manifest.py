"""The manifest of a cache: whose targets it holds, for which task and inputs, and in what form."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from hfdistill._atomic import write_json
from hfdistill._version import __version__
from hfdistill.cache.contents import Contents
from hfdistill.cache.keys import plain
from hfdistill.errors import HfDistillError
from hfdistill.shards import whole_tensors

FILE = "cache.json"
FORMAT = 1


@dataclass(frozen=True)
class TeacherIdentity:
    """Which model the targets are of: its class, the hash of its weights, in which precision it ran, and its name."""

    class_name: str
    weights: str
    precision: str
    name: str | None = None
    revision: str | None = None
    config: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: nn.Module, precision: str, name: str | None, revision: str | None) -> TeacherIdentity:
        """That of a model in memory."""
        config = model.config.to_dict() if isinstance(model, PreTrainedModel) else None
        found = None if config is None else json.loads(json.dumps(config, default=str))
        return cls(type(model).__name__, weight_hash(model), precision, name, revision, found)

    def skeleton(self) -> PreTrainedModel:
        """The teacher without weights, from which its classes, inputs and layers can be told.

        Errors: HfDistillError for a model of another library.
        """
        model_class = vars(transformers).get(self.class_name) or getattr(transformers, self.class_name, None)
        model_type = str((self.config or {}).get("model_type"))
        if model_class is None or model_type not in CONFIG_MAPPING:
            raise HfDistillError(
                f"The cache is of a {self.class_name}, which Transformers does not know; pass the model itself too: "
                "CachedTeacher(path, teacher_model=model)."
            )
        config = CONFIG_MAPPING[model_type].from_dict(dict(self.config or {}))
        with torch.device("meta"):
            model: PreTrainedModel = model_class(config)
        return model


@dataclass(frozen=True)
class Manifest:
    """What is written in cache.json.

    `inputs` are the teacher's, with type and shape of an example; `views` how many
    epochs' views of each example were filled in on purpose, 0 for a cache that fills itself; `processor` what made the
    inputs, where that is known.
    """

    teacher: TeacherIdentity
    task: str
    inputs: Mapping[str, str]
    contents: Contents
    processor: str = ""
    views: int = 0
    version: str = field(default=__version__)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "hfdistill": self.version,
            "teacher": vars(self.teacher),
            "task": self.task,
            "inputs": dict(self.inputs),
            "contents": self.contents.to_dict(),
            "processor": self.processor,
            "views": self.views,
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """That of a folder, or None where there is none yet.

        Errors: HfDistillError for a file that is none, or of a later format.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            if given["format"] != FORMAT:
                raise HfDistillError(
                    f"{path} is of format {given['format']}; this version of hfdistill reads {FORMAT}. Take the "
                    f"version that wrote it ({given['hfdistill']}), or fill the cache anew elsewhere."
                )
            return cls(
                TeacherIdentity(**given["teacher"]),
                given["task"],
                given["inputs"],
                Contents.of(given["contents"]),
                given["processor"],
                given["views"],
                given["hfdistill"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise HfDistillError(f"{path} is no manifest of a cache ({error}); choose another folder.") from error

    def write(self, folder: Path) -> Manifest:
        """Put it in place if there is none; returns the one that is there, another writer's perhaps."""
        path = folder / FILE
        own = folder / f".{FILE}.{os.getpid()}"
        write_json(own, self.to_dict())
        try:
            os.link(own, path)  # fails where the name is taken, unlike a rename
        except FileExistsError:
            pass
        except OSError:
            # A file system without links: two writers at the very same moment are then not told apart.
            if not path.exists():
                own.replace(path)
        finally:
            own.unlink(missing_ok=True)
        found = Manifest.read(folder)
        assert found is not None, "it was written just now"
        return found

    def check_teacher(self, teacher: TeacherIdentity, folder: Path) -> None:
        """Refuse another teacher than the one whose targets are there. Errors: HfDistillError."""
        own = self.teacher
        if (teacher.class_name, teacher.weights, teacher.precision) != (own.class_name, own.weights, own.precision):
            raise HfDistillError(
                f"{folder} holds targets of another teacher: {_described(self.teacher)}, and "
                f"{_described(teacher)} came. Give this teacher a folder of its own."
            )

    def check_task(self, task: str, folder: Path) -> None:
        """Refuse another task. Errors: HfDistillError."""
        if task != self.task:
            raise HfDistillError(f"{folder} holds targets for {self.task}, and the student's task is {task}.")


def no_cache(folder: Path) -> HfDistillError:
    """What to say of a folder that holds no manifest, where nobody is there to fill it."""
    return HfDistillError(
        f"{folder} is no cache: it holds no cache.json. Fill it (hfdistill cache RECIPE, or trainer.fill_cache()), or "
        "pass the teacher too: CachedTeacher(path, teacher_model=...)."
    )


def _described(teacher: TeacherIdentity) -> str:
    return f"{teacher.name or teacher.class_name} with weights {teacher.weights[:12]} in {teacher.precision}"


def weight_hash(model: nn.Module) -> str:
    """XXH3 (128 bits) of all parameters and buffers, by name."""
    digest = xxhash.xxh3_128()
    for name, tensor in whole_tensors(model):
        array = plain(tensor.contiguous())
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view("u1").data if array.size else b"")
    return digest.hexdigest()


def input_description(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Type and shape of an example of each of a batch's inputs; lengths that may differ by batch are left open."""
    found = {}
    mask = inputs.get("attention_mask")
    for name, value in sorted(inputs.items()):
        if isinstance(value, torch.Tensor) and value.dim():
            shape = [str(size) for size in value.shape[1:]]
            if shape and not value.is_floating_point():
                shape[-1] = "*"
            elif isinstance(mask, torch.Tensor) and value.shape[:2] == mask.shape:
                shape[0] = "*"
            found[name] = f"{str(value.dtype).removeprefix('torch.')} ({', '.join(shape)})"
    return found
