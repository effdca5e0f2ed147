"""One process or several: who writes, who waits, and a launcher that started fewer than it was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping

from accelerate import PartialState


def is_main() -> bool:
    """Whether this process writes files and speaks; readable from the environment before torch has begun."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """A barrier; returns at once in a single process."""
    PartialState().wait_for_everyone()


def process_count() -> int:
    """Processes that take part in this run."""
    return int(PartialState().num_processes)


def launch_warning(environment: Mapping[str, str]) -> str | None:
    """What to say when `accelerate launch` was asked for several processes and started one.

    `accelerate launch --cpu --num_processes 2` starts a single process without a word (seen in accelerate 1.15): it
    sets MASTER_ADDR, as only more than one process needs, and no WORLD_SIZE.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    if not launched or "MASTER_ADDR" not in environment or "WORLD_SIZE" in environment:
        return None
    return (
        "accelerate launch was asked for several processes and started this one alone: with --cpu it ignores "
        "--num_processes. For two processes on a CPU: `torchrun --nproc_per_node 2 -m hfdistill run RECIPE "
        "--training.use_cpu=true`; on GPUs: `accelerate launch --multi_gpu --num_processes 2 -m hfdistill run RECIPE`."
    )
