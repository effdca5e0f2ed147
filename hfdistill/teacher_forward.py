"""How a teacher's forward is run: in which dtype, with which attention, where, in how many pieces, how many rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn

from hfdistill.config import DistillationConfig
from hfdistill.errors import HfDistillError
from hfdistill.features import FeatureTerm, Module
from hfdistill.loading import as_dict
from hfdistill.objective import Objective
from hfdistill.shards import in_engine, in_pieces, partitioned, same_everywhere
from hfdistill.tasks import Classes, Task
from hfdistill.tasks.pairs import ImageTextPairs
from hfdistill.teachers import EmaTeacher, OwnBase, Peer
from hfdistill.teachers.copies import DTYPES, as_asked, dtype_of, is_offloaded, transformers_model
from hfdistill.teachers.portions import Portions
from hfdistill.views import accepted_names

logger = logging.getLogger(__name__)

KEPT = "logits_to_keep"
"""The argument of decoders that says of how many last tokens they give logits."""


def loading_options(args: DistillationConfig) -> dict[str, Any]:
    """The arguments of from_pretrained for a teacher given by name.

    Errors: HfDistillError where teacher_model_init_kwargs say something else than the arguments of their own.
    """
    options = as_dict(args.teacher_model_init_kwargs)
    own = {"dtype": args.teacher_dtype, "attn_implementation": args.teacher_attn_implementation}
    for key, value in own.items():
        if value is None:
            continue
        given = str(options.setdefault(key, value)).removeprefix("torch.")
        if given != value:
            raise HfDistillError(
                f"teacher_{key}={value!r} came beside teacher_model_init_kwargs with {key} {given!r}; expected one of "
                "them."
            )
    return options


def check_own_forward(args: DistillationConfig, given: Any) -> None:
    """Refuse what is said of a teacher's forward where it is the student's, or a second student's."""
    said = {
        "teacher_dtype": args.teacher_dtype,
        "teacher_attn_implementation": args.teacher_attn_implementation,
        "teacher_batch_size": args.teacher_batch_size,
        "teacher_device": args.teacher_device,
        "teacher_sharded": args.teacher_sharded or None,
        "teacher_prefetch": args.teacher_prefetch or None,
    }
    names = [name for name, value in said.items() if value is not None]
    if names and isinstance(given, (EmaTeacher, OwnBase, Peer)):
        raise HfDistillError(
            f"{' and '.join(names)} came beside {type(given).__name__}, which runs as the student does; expected a "
            "teacher with weights of its own that stand still. Leave them out."
        )


def portions_of(args: DistillationConfig, task: Task, teacher: nn.Module) -> Portions:
    """How many rows a teacher reads at a time.

    Errors: HfDistillError where the logits of a row depend on the others of its batch.
    """
    pairs = isinstance(task.layout, ImageTextPairs)
    if pairs and args.teacher_batch_size is not None:
        raise HfDistillError(
            f"teacher_batch_size={args.teacher_batch_size} came for {task.name}, where each image is compared with all "
            "texts of the batch; expected the whole batch in one forward. Lower per_device_train_batch_size instead."
        )
    # All processes gather the pieces of a model together, so that none may begin anew by itself.
    alone = not args.teacher_sharded and not partitioned(teacher)
    return Portions(args.teacher_batch_size, halves=alone and not pairs)


def reads_no_logits(teacher: nn.Module, objective: Objective, task: Task) -> bool:
    """Whether no term reads a language model's logits, so that its head, as large as some layers, need not run."""
    asked = [term for term in objective.active if term.needs_teacher]
    inside = [term for term in asked if isinstance(term, FeatureTerm)]
    if task.classes is not Classes.VOCABULARY or not asked or len(inside) < len(asked) or objective.fields:
        return False
    named = [term.teacher_module for term in inside if isinstance(term, Module)]
    return not any(_has_to_do_with(name, head) for name in named for head in _heads(teacher))


def _heads(model: nn.Module) -> Sequence[str]:
    """The names by which a model's head is known."""
    inner = transformers_model(model)
    head = None if inner is None else inner.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [name for name, module in model.named_modules(remove_duplicate=False) if head is not None and module is head]


def _has_to_do_with(name: str, head: str) -> bool:
    """Whether a module is the head, a part of it, or holds it."""
    return f"{head}.".startswith(f"{name}.") or name.startswith(f"{head}.")


def further_arguments(teacher: nn.Module, objective: Objective, task: Task) -> dict[str, Any]:
    """What a teacher's forward is told beside its inputs: a decoder whose logits no term reads gives the last alone."""
    few = reads_no_logits(teacher, objective, task) and KEPT in accepted_names(teacher)
    return {KEPT: 1} if few else {}


def prepared(
    teacher: nn.Module, args: DistillationConfig, accelerator: Accelerator, *, fsdp: bool, deepspeed: bool
) -> nn.Module:
    """A teacher as it is run: frozen, on its device or in pieces, in its dtype or in Accelerate's mixed precision.

    `fsdp` and `deepspeed` say what cuts the student. A model that is offloaded stays where its hooks bring it.
    Errors: HfDistillError for one that ZeRO-3 has partitioned otherwise than it is to run, and for a device that is
    not there.
    """
    teacher.requires_grad_(False).eval()
    if partitioned(teacher):
        return _partitioned(teacher, args, accelerator)
    device = _device(args, accelerator)
    if device.type == "cpu" and args.teacher_dtype == "float16":
        raise HfDistillError("teacher_dtype='float16' came for a CPU, which hardly ends such products; take bfloat16.")
    given, teacher = teacher, as_asked(teacher, args.teacher_dtype, args.teacher_attn_implementation)
    if teacher is not given:
        logger.info("The teacher runs as a copy (dtype %s); the model given stays as it is.", args.teacher_dtype)
    if is_offloaded(teacher):
        return _offloaded(teacher, args)
    # With it a model may be loaded on the first process alone, and FSDP hands out the student's weights only.
    elsewhere = fsdp and accelerator.state.fsdp_plugin.cpu_ram_efficient_loading
    if args.teacher_sharded and accelerator.num_processes > 1:
        if elsewhere:
            same_everywhere(teacher.to(device))
        return in_pieces(teacher, device)
    if args.teacher_sharded:
        logger.warning("teacher_sharded: there is one process, which holds the whole teacher.")
    if args.teacher_dtype is not None or args.teacher_device is not None:
        # Not by Accelerate, whose mixed precision would be a dtype of another's choice.
        run = _compiled(teacher.to(device), accelerator)
    else:
        run = _as_accelerate_does(teacher, accelerator, fsdp, deepspeed)
    if elsewhere:
        same_everywhere(run)
    return run


def _as_accelerate_does(teacher: nn.Module, accelerator: Accelerator, fsdp: bool, deepspeed: bool) -> nn.Module:
    known = list(accelerator._models)
    # By itself Accelerate leaves a model where it is under FSDP, which would bring it to the device.
    run: nn.Module = accelerator.prepare_model(teacher, device_placement=True if fsdp else None, evaluation_mode=True)
    if fsdp or deepspeed:
        # Among Accelerate's models it would pass for the student, which then is not prepared for an evaluation.
        accelerator._models = known
    return run


def _partitioned(teacher: nn.Module, args: DistillationConfig, accelerator: Accelerator) -> nn.Module:
    """A teacher that was loaded in the pieces of ZeRO-3, which its own engine of DeepSpeed gathers."""
    dtype, inner = dtype_of(teacher), transformers_model(teacher)
    attention = None if inner is None else inner.config._attn_implementation
    own = {
        "teacher_dtype": DTYPES.get(str(args.teacher_dtype), dtype) != dtype,
        "teacher_attn_implementation": args.teacher_attn_implementation not in (None, attention),
        "teacher_device": args.teacher_device is not None,
    }
    asked = [name for name, value in own.items() if value]
    if asked:
        raise HfDistillError(
            f"{' and '.join(asked)} came for a teacher ({type(teacher).__name__}) that was loaded in the pieces of "
            "DeepSpeed's ZeRO-3, and runs as it was loaded; expected from_pretrained(..., dtype=..., "
            "attn_implementation=...), its name as teacher_model, or a model from before the DistillationConfig."
        )
    plugin = accelerator.state.deepspeed_plugin
    settings = {} if plugin is None else plugin.deepspeed_config.get("zero_optimization", {})
    return in_engine(teacher, dtype, settings)


def _offloaded(teacher: nn.Module, args: DistillationConfig) -> nn.Module:
    if args.teacher_device is not None or args.teacher_sharded:
        name = "teacher_sharded" if args.teacher_sharded else "teacher_device"
        raise HfDistillError(
            f"{name} came for a teacher that was loaded with a device_map, whose hooks bring each part to its device; "
            "expected one of the two."
        )
    return teacher


def _device(args: DistillationConfig, accelerator: Accelerator) -> torch.device:
    own: torch.device = accelerator.device
    if args.teacher_device is None:
        return own
    device = torch.device(args.teacher_device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HfDistillError(
            f"teacher_device={args.teacher_device!r} came, and there are {torch.cuda.device_count()} CUDA devices; "
            "expected one of them, or 'cpu'."
        )
    return device


def _compiled(teacher: nn.Module, accelerator: Accelerator) -> nn.Module:
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.NO:
        return teacher
    options: Mapping[str, Any] = plugin.to_kwargs()
    return torch.compile(teacher, **options)  # type: ignore[return-value]
