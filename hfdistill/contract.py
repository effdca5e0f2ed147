"""The contract between two models, checked before the first step: each error says what to change."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.import_utils import is_peft_available

from hfdistill.errors import HfDistillError, nearest
from hfdistill.tasks import Classes, Queries, Task, architecture_task
from hfdistill.tasks.pixels import Depths
from hfdistill.teachers import ZeroShotTeacher
from hfdistill.teachers.mapped import ClassMap

GENERIC_NAME = re.compile(r"(LABEL_)?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class ClassAlignment:
    """How the teacher's classes map to the student's.

    `columns[i]` is the teacher's index of the student's class i, or None where the orders agree; `notice` tells what
    was repaired or could not be verified, or is empty.
    """

    columns: tuple[int, ...] | None
    notice: str

    def tensor(self) -> torch.Tensor | None:
        """The columns as an index tensor."""
        return None if self.columns is None else torch.tensor(self.columns)


def bare(model: nn.Module) -> nn.Module:
    """The Transformers model inside a PEFT wrapper; any other module as it is."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            return model.get_base_model()
    return model


def base_parameters(model: nn.Module, replaced: bool = False) -> dict[str, nn.Parameter]:
    """A model's parameters by name, without those of adapters (PEFT).

    A head of which an adapter trains a copy has been replaced by it; `replaced` gives such heads too.
    """
    parameters = dict(model.named_parameters())
    if bare(model) is model:
        return parameters
    adapters: Any = model.peft_config
    base = {name: value for name, value in parameters.items() if not set(name.split(".")) & set(adapters)}
    return {name: value for name, value in base.items() if replaced or ".original_module." not in name}


def class_names(model: nn.Module) -> list[str] | None:
    """The names of a model's classes in order of index, or None for a module without a Transformers config."""
    model = bare(model)
    if isinstance(model, ZeroShotTeacher):
        return None if model.classes is None else list(model.classes)
    return config_class_names(model.config) if isinstance(model, PreTrainedModel) else None


def config_class_names(config: PreTrainedConfig) -> list[str]:
    """The names of a config's classes in order of index."""
    names = config.id2label or {}
    return [str(name) for _, name in sorted(names.items(), key=lambda entry: int(entry[0]))]


def class_count(model: nn.Module, task: Task) -> int | None:
    """How many classes a head has; None for a module without a Transformers config, and where batches decide it."""
    model = bare(model)
    if not isinstance(model, PreTrainedModel) or task.classes in (Classes.PLACES, Classes.COORDINATES):
        return None
    if isinstance(task.layout, Depths):
        return 1
    if task.classes is Classes.VOCABULARY:
        return int(model.config.get_text_config(decoder=True).vocab_size)
    classes = model.config.num_labels
    if classes is None or not isinstance(task.layout, Queries):
        return classes
    return classes + task.layout.no_object


def keys_ignored_at_inference(model: nn.Module) -> list[str]:
    """Outputs that are no predictions; the same rule as Trainer's, where most configs say nothing."""
    model = bare(model)
    if not isinstance(model, PreTrainedModel):
        return []
    return list(getattr(type(model.config), "keys_to_ignore_at_inference", ["past_key_values"]))


def aligned_classes(student: Sequence[str] | None, teacher: Sequence[str] | None) -> ClassAlignment:
    """Match two label spaces by name.

    The same names in another order are permuted; a teacher with further classes is restricted to the student's;
    generic names (LABEL_0, 3) are matched by index. Errors: HfDistillError when counts differ without names to go by,
    when a class of the student is unknown to the teacher, or when the spaces are disjoint.
    """
    if student is None or teacher is None:
        return ClassAlignment(None, "a model has no config with class names, so classes are matched by index")
    if list(student) == list(teacher):
        return ClassAlignment(None, "")
    if _generic(student) or _generic(teacher):
        if len(student) != len(teacher):
            raise HfDistillError(
                f"The student has {len(student)} classes and the teacher {len(teacher)}, without names to match them "
                "by; expected the same classes. Build the student with the teacher's num_labels and id2label."
            )
        return ClassAlignment(None, "one model has no real class names (LABEL_0, ...), so classes are matched by index")
    places = {key: index for index, key in enumerate(_keys(teacher))}
    keys = _keys(student)
    missing = [name for name, key in zip(student, keys, strict=True) if key not in places]
    if missing:
        shared = len(student) - len(missing)
        what = "no class" if shared == 0 else f"only {shared} of {len(student)} classes"
        raise HfDistillError(
            f"Student and teacher share {what} by name: the teacher does not know {_some(missing)}; it knows "
            f"{_some(list(teacher))}. If the indices do mean the same, give both the same names "
            "(student.config.id2label = teacher.config.id2label); otherwise take a teacher trained on these classes."
        )
    columns = tuple(places[key] for key in keys)
    if columns == tuple(range(len(teacher))):
        return ClassAlignment(None, "")
    if len(columns) == len(teacher):
        return ClassAlignment(columns, "the teacher has the same classes in another order; its logits are reordered")
    return ClassAlignment(
        columns,
        f"the teacher has {len(teacher) - len(columns)} classes that the student lacks; its logits are restricted to "
        f"the student's {len(columns)}, so its probabilities are renormalised over them",
    )


def mapped_classes(
    student: Sequence[str] | None,
    teacher: Sequence[str] | None,
    classes: ClassMap | None,
    overlapping: bool,
    ignored: bool = False,
) -> list[list[int]]:
    """The teacher's columns of each class of the student, as a user's mapping of names says, or else equal names.

    With `overlapping` a class of the teacher may count for several of the student's; with `ignored` a class of the
    student may have none.
    Errors: HfDistillError for models without names, names that they do not know, and classes that are not mapped.
    """
    if student is None or teacher is None:
        raise HfDistillError(
            f"MappedTeacher maps classes by their names, and the {'student' if student is None else 'teacher'} has no "
            "config with class names; expected two Transformers models."
        )
    if classes is None:
        known = set(map(_folded, teacher))
        classes = {name: name for name in student if _folded(name) in known}
    for name in classes:
        if _folded(name) not in map(_folded, student):
            raise HfDistillError(
                f"MappedTeacher(classes=...) maps {name!r}, and the student has no such class{nearest(name, student)}"
            )
    meant = {_folded(name): [given] if isinstance(given, str) else list(given) for name, given in classes.items()}
    missing = [name for name in student if not meant.get(_folded(name))]
    least = min(2, len(student))
    if len(student) - len(missing) < least or (missing and not ignored):
        raise HfDistillError(
            f"MappedTeacher(classes=...) maps no class of the teacher to {_some(missing)} of the student; expected one "
            "or more for each, as a class without any would get no probability from the teacher. For new classes that "
            "the teacher cannot know (two or more have to be known): unmapped='ignore'."
        )
    groups = [[_class_place(word, teacher) for word in dict.fromkeys(meant.get(_folded(name), []))] for name in student]
    counts = Counter(place for group in groups for place in group)
    twice = [place for place, count in counts.items() if count > 1]
    if twice and not overlapping:
        raise HfDistillError(
            f"MappedTeacher(classes=...) maps the teacher's {teacher[twice[0]]!r} more than once, and an example has "
            "one class; expected each class of the teacher in one of the student's at most."
        )
    return groups


def _class_place(name: str, teacher: Sequence[str]) -> int:
    places = [place for place, other in enumerate(teacher) if _folded(other) == _folded(name)]
    if not places:
        raise HfDistillError(
            f"MappedTeacher(classes=...) names {name!r}, and the teacher has no such class{nearest(name, teacher)} It "
            f"knows {_some(list(teacher))}."
        )
    if len(places) > 1:
        raise HfDistillError(
            f"MappedTeacher(classes=...) names {name!r}, which is the name of {len(places)} classes of the teacher "
            f"({', '.join(map(str, places))}); give them different names in teacher.config.id2label."
        )
    return places[0]


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _generic(names: Sequence[str]) -> bool:
    return all(GENERIC_NAME.fullmatch(name) for name in names)


def _keys(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name folded, with its number among equals: ImageNet names two classes 'crane'."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        folded = _folded(name)
        keys.append((folded, seen[folded]))
        seen[folded] += 1
    return keys


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def check_distinct(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that is the student, or that shares a trainable parameter with it: freezing one freezes both."""
    if bare(student) is bare(teacher):
        raise HfDistillError(
            "Student and teacher are the same object; pass copy.deepcopy(model) as the teacher, or, if the student has "
            "adapters, teacher_model=OwnBase()."
        )
    trainable = {id(parameter): name for name, parameter in student.named_parameters() if parameter.requires_grad}
    for name, parameter in teacher.named_parameters():
        if id(parameter) in trainable:
            raise HfDistillError(
                f"The teacher's {name!r} is the student's trainable {trainable[id(parameter)]!r}; expected parameters "
                "of their own. Copy the teacher (copy.deepcopy) before building the student from its layers."
            )


def fresh_parameters(model: nn.Module, replaced: bool = False) -> list[str]:
    """Names of parameters that `from_pretrained` found in no checkpoint and that nobody has trained since.

    Transformers 5 marks every loaded parameter (`_is_hf_initialized`) and leaves new ones unmarked; a tensor's version
    counts its in-place changes, one for the initialisation and more as soon as an optimizer has stepped. A model built
    from a config alone carries no marks, so nothing can be told of it and nothing is reported; the same for quantised
    tensors, which are made anew when they are moved. Adapters do not count; `replaced` is that of `base_parameters`.
    """
    every = base_parameters(model, replaced).items()
    parameters = [(name, parameter) for name, parameter in every if type(parameter) is nn.Parameter]
    loaded = [name for name, parameter in parameters if "_is_hf_initialized" in vars(parameter)]
    if not loaded:
        return []
    known = set(loaded)
    return [name for name, parameter in parameters if name not in known and parameter._version <= 1]


def check_trained(teacher: nn.Module, missing: Sequence[str] = (), unread: tuple[str, ...] = ()) -> None:
    """Refuse a teacher whose head is freshly initialised: its targets are noise.

    `missing` are names that loading reported; those that begin with one of `unread` do not matter.
    Errors: HfDistillError naming the parameters.
    """
    fresh = sorted(name for name in {*missing, *fresh_parameters(teacher)} if not name.startswith(unread))
    if fresh:
        raise HfDistillError(
            f"The teacher's {_some(fresh)} came from no checkpoint: its head is freshly initialised and its targets "
            "would be noise. Fine-tune the teacher first (recipe: teacher.finetune), or name one with a trained head."
        )


def check_same_problem(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse two heads of different tasks, or whose configs name different kinds of problem."""
    student, teacher = bare(student), bare(teacher)
    if not (isinstance(student, PreTrainedModel) and isinstance(teacher, PreTrainedModel)):
        return
    own, other = architecture_task(type(student).__name__), architecture_task(type(teacher).__name__)
    if own is not None and other is not None and own != other:
        raise HfDistillError(
            f"The student is a {type(student).__name__} ({own}) and the teacher a {type(teacher).__name__} ({other}); "
            "expected two heads for the same task. Load both with the same AutoModelFor... class."
        )
    ours, theirs = student.config.problem_type, teacher.config.problem_type
    if ours is not None and theirs is not None and ours != theirs:
        raise HfDistillError(
            f"The student's problem_type is {ours!r} and the teacher's {theirs!r}; expected the same task. Set the "
            "student's config.problem_type, or take a teacher trained for this task."
        )


def input_differences(student: nn.Module, teacher: nn.Module, *, vocabulary: bool = True) -> list[str]:
    """What the configs of two models say against feeding both the same tensors: vocabulary, channels, fixed sizes.

    Without `vocabulary` its size is not looked at, where the tokens have been compared already.
    """
    student, teacher = bare(student), bare(teacher)
    if not (isinstance(student, PreTrainedModel) and isinstance(teacher, PreTrainedModel | ZeroShotTeacher)):
        return []
    differences = []
    (reads, ours), (read, theirs) = _input_settings(student), _input_settings(teacher)
    if reads != read:
        differences.append(f"input {reads!r} against {read!r}")
    sizes = [("num_channels", "channels")]
    if vocabulary:
        sizes.insert(0, ("vocab_size", "vocabulary"))
    for key, what in sizes:
        if ours.get(key) is not None and theirs.get(key) is not None and ours[key] != theirs[key]:
            differences.append(f"{what} {ours[key]} against {theirs[key]}")
    vision_transformer = "patch_size" in ours and "patch_size" in theirs
    if vision_transformer and ours.get("image_size") != theirs.get("image_size"):
        differences.append(f"image size {ours.get('image_size')} against {theirs.get('image_size')}")
    return differences


def _input_settings(model: PreTrainedModel | ZeroShotTeacher) -> tuple[str, dict[str, Any]]:
    """A model's main input, and its settings, where a model of images and texts keeps some in configs of each."""
    if isinstance(model, ZeroShotTeacher):
        return "pixel_values", model.model.config.to_dict().get("vision_config") or {}
    settings = model.config.to_dict()
    if architecture_task(type(model).__name__) == "image_text":
        settings = {**(settings.get("vision_config") or {}), **(settings.get("text_config") or {}), **settings}
    return model.main_input_name, settings


IMAGE_SETTINGS = (
    "do_resize", "size", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "do_convert_rgb", "resample",
)  # fmt: skip


PARTS = ("image_processor", "feature_extractor", "tokenizer")
"""What a processor of several kinds of input is made of."""


def processing_differences(student: Any, teacher: Any) -> list[str]:
    """What two processors do differently to the same example, in words; empty when their outputs agree."""
    if isinstance(student, PreTrainedTokenizerBase) and isinstance(teacher, PreTrainedTokenizerBase):
        return _tokenizer_differences(student, teacher)
    if isinstance(student, BaseImageProcessor) and isinstance(teacher, BaseImageProcessor):
        ours, theirs = student.to_dict(), teacher.to_dict()
        return [
            f"{setting} {ours.get(setting)} against {theirs.get(setting)}"
            for setting in IMAGE_SETTINGS
            if _plain(ours.get(setting)) != _plain(theirs.get(setting))
            and (setting != "resample" or ours.get("do_resize") or theirs.get("do_resize"))
        ]
    if isinstance(student, ProcessorMixin) and isinstance(teacher, ProcessorMixin):
        parts = [(vars(student).get(name), vars(teacher).get(name)) for name in PARTS]
        return [line for ours, theirs in parts if ours or theirs for line in processing_differences(ours, theirs)]
    both_hear = isinstance(student, FeatureExtractionMixin) and isinstance(teacher, FeatureExtractionMixin)
    if both_hear and type(student) is type(teacher):
        ours, theirs = _sound_settings(student), _sound_settings(teacher)
        return [
            f"{setting} {ours.get(setting)} against {theirs.get(setting)}"
            for setting in sorted(ours.keys() | theirs.keys())
            if ours.get(setting) != theirs.get(setting)
        ]
    return [f"{type(student).__name__} against {type(teacher).__name__}"]


def _sound_settings(extractor: FeatureExtractionMixin) -> dict[str, Any]:
    """What a feature extractor does, without what only names it; filters follow from the rest."""
    settings = json.loads(extractor.to_json_string())
    named = ("feature_extractor_type", "processor_class", "mel_filters", "window")
    return {name: value for name, value in settings.items() if name not in named}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: entry for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return [float(entry) for entry in value]
    return value or None


def _tokenizer_differences(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> list[str]:
    differences = []
    if student.get_vocab() != teacher.get_vocab():
        differences.append(f"vocabulary of {len(student)} tokens against {len(teacher)}")
    probe = "Two models, ONE text: it's 3.5 naïve cafés (left/right)?"
    if not differences and student(probe)["input_ids"] != teacher(probe)["input_ids"]:
        differences.append("the same text gives different token ids (lower-casing or special tokens)")
    return differences
