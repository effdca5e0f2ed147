"""What came to the trainer's constructor, checked and brought to one form."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel

from hfdistill import loading
from hfdistill.cache import CachedTeacher
from hfdistill.config import DistillationConfig
from hfdistill.embeddings import Embeddings
from hfdistill.errors import HfDistillError
from hfdistill.features import Relations
from hfdistill.first_look import same_random_numbers
from hfdistill.objective import Objective
from hfdistill.schedules import is_used
from hfdistill.tasks import ImageTextPairs, Task
from hfdistill.teacher_forward import loading_options
from hfdistill.teachers import EmaTeacher, EnsembleTeacher, MappedTeacher, OwnBase, Peer, ZeroShotTeacher

AnyTeacher = nn.Module | CachedTeacher | EmaTeacher | EnsembleTeacher | MappedTeacher | OwnBase | Peer | str | None


def checked_args(args: DistillationConfig | None, trainer_kwargs: Mapping[str, Any]) -> DistillationConfig:
    """The arguments, or the defaults; raises for what cannot be a distillation."""
    if args is None:
        args = DistillationConfig(output_dir="tmp_trainer")
    if not isinstance(args, DistillationConfig):
        raise HfDistillError(
            f"args is a {type(args).__name__}; expected a DistillationConfig, which takes the same arguments and adds "
            "alpha and temperature."
        )
    if trainer_kwargs.get("compute_loss_func") is not None:
        raise HfDistillError(
            "compute_loss_func came, but the loss of a DistillationTrainer is its objective; pass "
            "objective=Objective([TaskLoss(), Logits(your_loss)]) instead."
        )
    dataset = trainer_kwargs.get("train_dataset")
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise HfDistillError("The train_dataset is empty; expected at least one example. Check splits and filters.")
    return args


def check_batch_size(args: DistillationConfig, objective: Objective, task: Task, dataset: Any) -> None:
    """Refuse batches too small for terms that relate the examples of a batch to each other."""
    for term in objective.active:
        least = term.least_examples if isinstance(term, Relations) else 1
        size = args.train_batch_size
        rest = len(dataset) % size if isinstance(dataset, Sized) and not args.dataloader_drop_last else 0
        if size < least or 0 < rest < least:
            what = f"per_device_train_batch_size is {size}" if size < least else f"the last batch holds {rest}"
            raise HfDistillError(
                f"{term!r} relates {least} or more examples of a micro-batch, and {what}. Expected larger batches, and "
                "dataloader_drop_last=True where the last one is smaller (accumulation adds none)."
            )
    idle = [term.name for term in objective.active if is_used(term.weight) and not isinstance(term, Embeddings)]
    if isinstance(task.layout, ImageTextPairs) and args.per_device_train_batch_size < 2 and idle:
        raise HfDistillError(
            f"per_device_train_batch_size is 1, and {' and '.join(idle)} of {task.name} would be 0: a pair is told "
            "from the others of its micro-batch. Expected 2 or more (accumulation adds none), or Embeddings() alone."
        )


def teacher_module(
    teacher: AnyTeacher,
    args: DistillationConfig,
    objective: Objective | None,
    task: Task | None,
    student: nn.Module | str | None = None,
) -> tuple[nn.Module | None, str | None]:
    """The teacher as a module of its own, if it is one, and the name that it was loaded by, where it has one.

    A peer that comes by name gets the kind of head of the `student`, where that is there already.
    """
    if isinstance(teacher, MappedTeacher):
        teacher = teacher.model
    if isinstance(teacher, CachedTeacher):
        needed = objective is None or objective.needs_teacher
        if needed and teacher.teacher_model is None:
            return teacher.skeleton(), None
        teacher = teacher.teacher_model
    if isinstance(teacher, OwnBase | EmaTeacher | EnsembleTeacher) or (
        objective is not None and not objective.needs_teacher
    ):
        return None, None
    if isinstance(teacher, Peer):
        teacher = teacher.model if isinstance(teacher.model, nn.Module) else _loaded_peer(teacher.model, args, student)
    if teacher is None:
        teacher = args.teacher_model_name_or_path
    if isinstance(teacher, PreTrainedModel):
        return teacher, teacher.config._name_or_path or None
    if not isinstance(teacher, str):
        return teacher, teacher.name if isinstance(teacher, ZeroShotTeacher) else None
    revision, pieces = args.teacher_model_revision, args.teacher_sharded
    return loading.load_teacher(teacher, revision, loading_options(args), task, pieces=pieces), teacher


def _loaded_peer(name: str, args: DistillationConfig, student: nn.Module | str | None) -> PreTrainedModel:
    options = loading.as_dict(args.teacher_model_init_kwargs)
    if args.teacher_model_revision is not None:
        options["revision"] = args.teacher_model_revision
    return loading.load_student(name, student if isinstance(student, nn.Module) else None, options)


def student_settings(teacher: AnyTeacher, init_kwargs: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """What a student given by name is loaded with: its own classes where the teacher's are mapped to them."""
    given = loading.as_dict(init_kwargs)
    if isinstance(teacher, EnsembleTeacher):
        teacher = next((each for each in teacher.members if isinstance(each, MappedTeacher)), None)
    if not isinstance(teacher, MappedTeacher) or teacher.unmapped == "ignore" or teacher.classes is None:
        return given
    names = list(teacher.classes)
    return {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}} | given


def processing_class_of(teacher: nn.Module | None, name: str | None, like: Any, revision: str | None) -> Any:
    """What a teacher's view is made by, where none was given: what it has itself, or what is saved beside it."""
    if isinstance(teacher, ZeroShotTeacher) and teacher.image_processor is not None:
        return teacher.image_processor
    return None if teacher is None or name is None else loading.processing_class_beside(name, revision, like)


def first_example(dataset: Any) -> Mapping[str, Any]:
    """The data set's first example, or nothing where looking at it would consume a stream."""
    if dataset is None or isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        return {}
    with same_random_numbers():
        return dataset[0]  # type: ignore[no-any-return, index]


def label_of(example: Mapping[str, Any]) -> Any:
    """The example's label under whichever of its usual names, or None."""
    return next((example[key] for key in ("labels", "label", "label_ids") if key in example), None)
