"""Students with adapters (PEFT): wrapped before anything else sees them, with a head that learns."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    prepare_model_for_kbit_training,
)
from torch import nn
from transformers import PreTrainedModel, set_seed

from hfdistill.config import DistillationConfig
from hfdistill.contract import bare, base_parameters, fresh_parameters
from hfdistill.errors import HfDistillError
from hfdistill.tasks import TASKS, Classes, architecture_task

logger = logging.getLogger(__name__)

# PEFT's own kinds of task, which decide its wrapper and the class that brings saved adapters back. They are for texts;
# any other model gets the plain wrapper, which works for all.
TASK_TYPES = {
    "single_label_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "causal_lm": "CAUSAL_LM",
}
# What PEFT 0.21 itself makes trainable for its tasks.
PEFT_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# What a PeftModel puts before the names of the model inside.
PREFIX = "base_model.model."
# Initialisations of LoRA that move a part of the base's weights into the adapter.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def adapted(model: nn.Module, peft_config: PeftConfig | None, args: DistillationConfig) -> nn.Module:
    """The student as it trains: wrapped by `peft_config`, or as it came.

    A quantised model is prepared for training; of a classifier the head learns too, unless the config names
    `modules_to_save` of its own. Errors: HfDistillError for a config that does not fit, a student that is wrapped
    already, adapters that are frozen, and parts that are freshly initialised and would neither learn nor be saved.
    """
    if peft_config is not None:
        model = with_adapters(model, peft_config, args.seed)
    if not isinstance(model, PeftModel):
        return model
    _check_learns(model)
    base = bare(model)
    if args.gradient_checkpointing and isinstance(base, PreTrainedModel):
        # Nothing before the first adapter needs a gradient, and a re-entrant checkpoint would then skip its layers.
        base.enable_input_require_grads()  # type: ignore[no-untyped-call]
    return model


def with_adapters(model: nn.Module, peft_config: PeftConfig, seed: int) -> PeftModel:
    """The model with adapters drawn from `seed`, prepared for training if it is quantised; for errors see `adapted`."""
    if isinstance(model, PeftModel):
        raise HfDistillError(
            "The student has adapters already, and peft_config came too; expected one of them. Pass the PeftModel "
            "alone, or model.merge_and_unload() with peft_config."
        )
    # PEFT writes into the config, and the next student may be built with the same one.
    config = _completed(copy.deepcopy(peft_config), model)
    # Only models that Transformers has quantised have the attribute.
    if getattr(model, "is_quantized", False):
        _check_head_is_whole(model, config)
        # Without checkpointing, which Trainer switches on by the name that this Transformers has for it.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    if isinstance(model, PreTrainedModel) and not model.name_or_path:
        logger.warning(
            "The student comes from no checkpoint, and adapters alone are saved: nobody can load them again without "
            "its base. Save it (model.save_pretrained) and load it from there before training."
        )
    # Trainer seeds later, and the adapters are the first random thing of a run.
    set_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise HfDistillError(f"The adapters do not fit the student ({type(model).__name__}): {error}") from error


def brought_back(base: PreTrainedModel, folder: Path) -> PeftModel:
    """A base with the adapters that were saved in a folder, ready to learn on."""
    model: nn.Module = base
    if getattr(base, "is_quantized", False):
        model = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def _completed(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """The config with PEFT's kind of task and the modules that have to learn, where it leaves them open."""
    if not isinstance(model, PreTrainedModel):
        return config
    task = architecture_task(type(model).__name__)
    if config.task_type is None and task is not None and model.main_input_name == "input_ids":
        config.task_type = TASK_TYPES.get(task)
    # Methods that change no module, such as prefix tuning, have no such option.
    options = vars(config)
    if "modules_to_save" in options and options["modules_to_save"] is None:
        heads = [] if task is None or TASKS[task].classes is Classes.VOCABULARY else _heads(model)
        fresh = [name.rpartition(".")[0] for name in fresh_parameters(model)]
        named = [name for name in fresh if name.partition(".")[0] not in heads]
        known = PEFT_HEADS.get(config.task_type or "", ())
        options["modules_to_save"] = [name for name in dict.fromkeys([*heads, *named]) if name not in known] or None
    return config


def _heads(model: PreTrainedModel) -> list[str]:
    """Names of the modules that stand on a model's body."""
    body = model.base_model
    return [name for name, child in model.named_children() if child is not body and list(child.parameters())]


def _check_head_is_whole(model: nn.Module, config: PeftConfig) -> None:
    """Refuse a quantised head that should learn: its values are integers, of which there is no gradient."""
    targets = (*(vars(config).get("modules_to_save") or ()), *PEFT_HEADS.get(config.task_type or "", ()))
    for name, module in model.named_modules():
        if name.endswith(targets) and any(type(parameter) is not nn.Parameter for parameter in module.parameters()):
            raise HfDistillError(
                f"The student's head {name!r} is quantised, and a head that learns has to be whole. Leave it out of "
                f"the quantization_config: modules_to_not_convert={[name]!r} (torchao, GPTQ) or "
                f"llm_int8_skip_modules={[name]!r} (bitsandbytes)."
            )


def _check_learns(model: PeftModel) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise HfDistillError(
            "No parameter of the student learns: its adapters are frozen. Load them with "
            "PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    used = base_parameters(model)
    lost = [name for name in fresh_parameters(model) if not used[name].requires_grad]
    if lost:
        modules = sorted({name.rpartition(".")[0].removeprefix(PREFIX) for name in lost})
        raise HfDistillError(
            f"The student's {', '.join(modules)} came from no checkpoint and would stay as it is, since only adapters "
            f"learn and are saved. Name it in the config: modules_to_save={modules!r}."
        )


def check_base_teaches(model: nn.Module) -> None:
    """Refuse a student whose base, without adapters, is no teacher: none, one that moves, or one that knows nothing."""
    if not isinstance(model, PeftModel):
        raise HfDistillError(
            "teacher_model=OwnBase() came with a student that has no adapters; expected a student whose base stays "
            "frozen. Pass peft_config=LoraConfig(...), or a teacher of its own."
        )
    base = base_parameters(model, replaced=True)
    fresh = fresh_parameters(model, replaced=True)
    if fresh:
        raise HfDistillError(
            f"The student's own base cannot teach: {_some(fresh)} came from no checkpoint, and its targets would be "
            "noise. Fine-tune the base with its head first, or pass a teacher of its own."
        )
    moving = [name for name, parameter in base.items() if parameter.requires_grad]
    if moving:
        raise HfDistillError(
            f"The student's own base cannot teach: {_some(moving)} learns along with the adapters, so the base would "
            "move. Leave it frozen (LoRA: bias='none'), or pass a teacher of its own."
        )
    averaging = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.track_running_stats
    ]
    if averaging:
        raise HfDistillError(
            f"The student's own base cannot teach: the running statistics of {_some(averaging)} move in training. Pass "
            "a teacher of its own: copy.deepcopy(model) of the base."
        )
    for config in model.peft_config.values():
        if isinstance(config, LoraConfig) and str(config.init_lora_weights).lower().startswith(BASE_CHANGING):
            raise HfDistillError(
                f"The student's own base cannot teach: init_lora_weights={config.init_lora_weights!r} takes a part of "
                "the base's weights away. Take True or 'gaussian', or pass a teacher of its own."
            )


def check_checkpoint(model: PeftModel, checkpoint: str) -> None:
    """Refuse to go on with adapters of another kind or size, which PEFT would load as far as they fit."""
    name = model.active_adapters[0]
    folder = checkpoint if name == "default" else f"{checkpoint}/{name}"
    own = get_peft_model_state_dict(model, adapter_name=name)
    saved = load_peft_weights(folder, device="cpu")
    unlike = sorted(key for key in own.keys() | saved.keys() if _shape(own, key) != _shape(saved, key))
    if unlike:
        raise HfDistillError(
            f"The adapters in {folder} do not fit the student's: {_some(unlike)} differ. Resume with the peft_config "
            "that the run began with, or start anew."
        )


def _shape(tensors: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(tensors[key].shape) if key in tensors else None


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name.removeprefix(PREFIX)) for name in names[:most]) + more
