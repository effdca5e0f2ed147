"""The arguments of a distillation: TrainingArguments and a few of our own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from hfdistill.errors import HfDistillError, nearest
from hfdistill.teachers.copies import AS_LOADED, DTYPES


@dataclass
class DistillationConfig(TrainingArguments):
    """TrainingArguments with the knobs of the default objective and of loading models by name.

    `alpha` is the share of the teacher, in [0, 1]: the total is `(1 - alpha) * task + alpha * T^2 * KL`. `temperature`
    is T > 0. Both are ignored when the trainer is given an `objective`. `teacher_dtype` and
    `teacher_attn_implementation` hold for a teacher given by name and for a module, of which a copy runs then; losses
    are computed in float32 all the same. `torch_compile` compiles both models. Errors: HfDistillError for values
    outside.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 (upstream's type)
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "teacher_model_init_kwargs",
    ]

    temperature: float = field(default=2.0, metadata={"help": "Softening of both distributions; T > 0."})
    alpha: float = field(
        default=0.5, metadata={"help": "Share of the teacher in the loss, 0 to 1; 0 is plain training."}
    )
    mixup: float = field(
        default=0.0,
        metadata={"help": "Mix training pictures by shares drawn from Beta(mixup, mixup); the teacher alone tells."},
    )
    cutmix: float = field(
        default=0.0,
        metadata={
            "help": "Put a rectangle of one training picture into another, of a share from Beta(cutmix, cutmix)."
        },
    )
    mix_probability: float = field(default=1.0, metadata={"help": "Share of the training batches that are mixed."})
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the teacher, where the trainer is given none."}
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the teacher on the Hub."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained for a teacher given by name, such as dtype."}
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={"help": "What the teacher computes in: bfloat16, float16, float32, or auto, as it was saved."},
    )
    teacher_attn_implementation: str | None = field(
        default=None, metadata={"help": "The teacher's attention: sdpa, eager, flash_attention_2, ..."}
    )
    teacher_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows that the teacher reads at a time; the whole micro-batch if None, while memory lasts."},
    )
    teacher_device: str | None = field(
        default=None,
        metadata={"help": "Where the teacher computes, such as cpu or cuda:1; beside the student if None."},
    )
    teacher_sharded: bool = field(
        default=False,
        metadata={"help": "Cut the teacher among the processes, layer by layer: by FSDP2, or as ZeRO-3 has loaded it."},
    )
    teacher_prefetch: bool = field(
        default=False,
        metadata={"help": "Ask the teacher about the next micro-batch beside the student's step (CUDA)."},
    )
    fused_head: bool | None = field(
        default=None,
        metadata={
            "help": "Compute losses over a vocabulary without its logits; if None where it is large and models allow."
        },
    )
    fused_head_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Multiply only classes whose gradient exceeds this share of a row's, such as 2 ** -16; all if None."
        },
    )
    fused_head_compiled: bool = field(
        default=False,
        metadata={"help": "Have the fused head's passes over the classes made one by torch.compile (CUDA, threads)."},
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Lay out pictures and convolutions with the channels last in memory."}
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained for a student given by name."}
    )
    input_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns with the raw image or text that teacher_processing_class reads; found by type if None."
        },
    )

    def __post_init__(self) -> None:
        """Check our own fields, then let Transformers check its own."""
        if not 0 <= self.alpha <= 1:
            raise HfDistillError(f"alpha is {self.alpha}; expected the teacher's share of the loss, from 0 to 1.")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise HfDistillError(f"temperature is {self.temperature}; expected a finite number above 0, such as 2.")
        for name in ("mixup", "cutmix"):
            strength = getattr(self, name)
            if not (strength >= 0 and math.isfinite(strength)):
                raise HfDistillError(f"{name} is {strength}; expected a finite number of at least 0, such as 0.8.")
        if not 0 < self.mix_probability <= 1:
            raise HfDistillError(f"mix_probability is {self.mix_probability}; expected a share above 0, up to 1.")
        self._check_teacher()
        self._check_head()
        super().__post_init__()  # type: ignore[no-untyped-call]

    def _check_head(self) -> None:
        threshold = self.fused_head_threshold
        if threshold is not None and not 0 < threshold < 1:
            raise HfDistillError(
                f"fused_head_threshold is {threshold}; expected a share above 0 and below 1, such as 2 ** -16, or "
                "None, which gives exact gradients."
            )
        given = {"fused_head_threshold": threshold, "fused_head_compiled": self.fused_head_compiled or None}
        for name, value in given.items():
            if value is not None and self.fused_head is False:
                raise HfDistillError(
                    f"{name} is {value} beside fused_head=False, which computes logits and exact gradients; expected "
                    "one of them."
                )

    def _check_teacher(self) -> None:
        known = (AS_LOADED, *DTYPES)
        if self.teacher_dtype is not None and self.teacher_dtype not in known:
            raise HfDistillError(
                f"teacher_dtype is {self.teacher_dtype!r}{nearest(str(self.teacher_dtype), known)} Expected one of "
                f"{', '.join(known)}."
            )
        if self.teacher_batch_size is not None and self.teacher_batch_size < 1:
            raise HfDistillError(f"teacher_batch_size is {self.teacher_batch_size}; expected at least 1 row, or None.")
        if self.teacher_device is not None:
            try:
                torch.device(self.teacher_device)
            except RuntimeError as error:
                raise HfDistillError(
                    f"teacher_device is {self.teacher_device!r}; expected a device such as cpu or cuda:1."
                ) from error
        if self.teacher_prefetch and self.teacher_sharded:
            raise HfDistillError(
                "teacher_prefetch came beside teacher_sharded, whose processes gather the teacher together, in the "
                "midst of the student's own communication; expected one of them."
            )
        if self.teacher_device is not None and self.teacher_sharded:
            raise HfDistillError(
                "teacher_device came beside teacher_sharded, which holds a piece of the teacher on each process's "
                "device; expected one of them."
            )
