"""Rows of other processes, which took part of the same global batch."""

from __future__ import annotations

import torch
from torch import distributed


def of_other_processes(rows: torch.Tensor) -> torch.Tensor:
    """What all other processes have given here, in the order of their ranks and without gradient.

    `(rows, width)` -> `(rows of the others, width)`; the numbers of rows may differ. Nothing on a single process.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows.detach()[:0]
    processes, own = distributed.get_world_size(), distributed.get_rank()
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(processes)]
    distributed.all_gather(counts, count)
    # Shapes are the host's, so this waits for the device: the last batch of an epoch may be shorter on some.
    sizes = [int(each) for each in torch.cat(counts).tolist()]
    padded = rows.new_zeros(max(sizes), rows.shape[1])
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in range(processes)]
    distributed.all_gather(gathered, padded)
    return torch.cat([gathered[rank][: sizes[rank]] for rank in range(processes) if rank != own])
