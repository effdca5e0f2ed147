"""Short trainings beside a teacher in pieces, as a script for several processes under torchrun.

The argument is a folder for what was seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from hfdistill import DistillationTrainer, HfDistillError, Objective, TaskLoss
from hfdistill.features import HiddenStates, Module
from hfdistill.shards import whole
from tests.features.runs import models, trained
from tests.features.sharded_runs import BOTH_PROCESSES, fsdp, left_by, plain, shard_on_cpu
from tests.teachers.test_forward import live


def inside() -> Objective:
    """Labels, and what the teacher shows of its insides."""
    return Objective([TaskLoss(0.5), HiddenStates("hint"), Module("bert.encoder.layer.0.output", weight=0.3)])


RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (plain, {}),
    "inside": (inside, {}),
    "portions": (plain, {"teacher_batch_size": 1}),
    "both": (inside, fsdp()),
}
"""The objective of each training, and its arguments; in the last the student is in pieces too."""


def pieces(trainer: DistillationTrainer) -> dict[str, Any]:
    """How a teacher lies on this process."""
    parameters = list(live(trainer).model.parameters())
    held = [each.to_local() for each in parameters if isinstance(each, DTensor)]
    return {
        "parts": len(held) == len(parameters),
        "share": sum(each.numel() for each in held) / sum(each.numel() for each in parameters),
        "learns": any(each.requires_grad for each in parameters),
    }


def refusal(folder: Path, **arguments: Any) -> str:
    """The words that a training beside a teacher in pieces is refused with."""
    try:
        trained("bert", folder, plain(), teacher_sharded=True, **arguments)
    except HfDistillError as error:
        return str(error)
    return "not refused"


def main(folder: Path) -> None:
    """Train on the processes of this launch."""
    torch.set_num_threads(1)
    shard_on_cpu()
    said: dict[str, Any] = {}
    for name, (objective, arguments) in RUNS.items():
        pair = models("bert")
        before = {key: value.clone() for key, value in pair[1].state_dict().items()}
        both = BOTH_PROCESSES | {"teacher_sharded": True} | arguments
        trainer, seen = trained("bert", folder / name, objective(), pair=pair, **both)
        said[name] = pieces(trainer)
        said[name]["student"] = trainer.accelerator.distributed_type.value
        after = live(trainer).model.state_dict()
        said[name]["unchanged"] = all(torch.equal(whole(after[key]), value) for key, value in before.items())
        left = left_by(trainer, seen)
        left["processes"] = torch.tensor(trainer.accelerator.num_processes)
        if trainer.is_world_process_zero():
            save_file({key: value.contiguous() for key, value in left.items()}, folder / f"{name}.safetensors")
    said["channels_last"] = refusal(folder, channels_last=True)
    if PartialState().is_main_process:
        (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
