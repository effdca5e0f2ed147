"""The sections that hold TrainingArguments' own names, checked against DistillationConfig."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, get_type_hints

from hfdistill.recipe.values import RecipeError, converted, unknown_key

ELSEWHERE = {
    "output_dir": "give the folder as `hfdistill run RECIPE --output FOLDER`",
    "alpha": "write objective.alpha",
    "temperature": "write objective.temperature",
    "mixup": "write objective.mixup",
    "cutmix": "write objective.cutmix",
    "mix_probability": "write objective.mix_probability",
    "seed": "write the top-level key seeds, or `hfdistill run RECIPE --seeds 3`",
    "teacher_model_name_or_path": "write teacher.model",
    "teacher_model_revision": "write teacher.revision",
    "teacher_model_init_kwargs": "write teacher.init_kwargs",
    "teacher_dtype": "write teacher.dtype",
    "teacher_attn_implementation": "write teacher.attn_implementation",
    "teacher_batch_size": "write teacher.batch_size",
    "teacher_device": "write teacher.device",
    "teacher_sharded": "write teacher.sharded",
    "teacher_prefetch": "write teacher.prefetch",
    "model_init_kwargs": "write student.init_kwargs",
    "resume_from_checkpoint": "run the same command again: it goes on from the last checkpoint by itself",
    "save_only_model": "leave it out: without the optimizer's state a run could not go on after an interruption",
    "push_to_hub": "push the result afterwards with `hfdistill push RUN_FOLDER REPO_ID`",
    "hub_model_id": "push the result afterwards with `hfdistill push RUN_FOLDER REPO_ID`",
    "remove_unused_columns": "leave it out: the run makes exactly the columns that the models read",
    "input_columns": "write data.image_column or data.text_columns",
    "label_names": "write data.label_column",
    "disable_tqdm": "leave it out: the command shows its own progress",
    "do_train": "leave it out: a recipe always trains",
    "do_eval": "write eval_strategy: epoch",
    "do_predict": "leave it out: a run always predicts on the test split",
}
"""Settings that the run itself makes, and where the user says them instead."""


@functools.cache
def _setting_types() -> dict[str, Any]:
    from hfdistill.config import DistillationConfig

    hints = get_type_hints(DistillationConfig)
    return {field.name: hints[field.name] for field in dataclasses.fields(DistillationConfig) if field.init}


def training_settings(settings: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The settings with values of the types that TrainingArguments declares.

    Errors: RecipeError for a name that TrainingArguments lacks, that belongs elsewhere, or for a wrong type.
    """
    known = _setting_types()
    values = {}
    for key, value in settings.items():
        where = f"{path}.{key}"
        if key in ELSEWHERE:
            raise RecipeError(f"{where}: this is no setting of {path}; {ELSEWHERE[key]}.")
        if key not in known:
            raise unknown_key(where, known.keys() - ELSEWHERE.keys())
        values[key] = converted(value, known[key], where)
    return values
