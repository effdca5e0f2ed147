"""Terms that have to be the same on two processes: what the script writes under torchrun, and what one process does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from hfdistill import Adversarial, Objective, Relations, TaskLoss
from hfdistill.features.gathering import of_other_processes
from tests.features.runs import trained


def objectives() -> dict[str, Objective]:
    """Each by its name."""
    return {
        "gathered": Objective([TaskLoss(), Relations("contrastive", gathered=True, temperature=0.2)]),
        "alone": Objective([TaskLoss(), Relations("contrastive", temperature=0.2)]),
        "adversarial": Objective([TaskLoss(), Adversarial(layers="uniform", hidden=8)]),
    }


def seen_with(name: str, folder: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    """What a training with one of them leaves."""
    _, seen = trained("bert", folder, objectives()[name], **arguments)
    return seen


def main(folder: Path) -> None:
    """Train on the processes of this launch, and gather rows of which each process has another number."""
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    rows = torch.full((1 + 2 * state.process_index, 2), float(state.process_index + 1))
    others = of_other_processes(rows)
    save_file({"others": others.contiguous()}, folder / f"others-{state.process_index}.safetensors")
    for name in objectives():
        seen = seen_with(name, folder / "out", per_device_train_batch_size=4)
        if state.is_main_process:
            save_file(seen, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
