"""What relation losses cost beside the forms that papers and toolkits write down: time in turns, and peak memory.

    python tests/benchmarks/relations.py

RKD's angles as a tensor of all pairs' differences (B x B x width) and one product of it with itself; MiniLM's relations
as whole softmaxes of all heads at once. Forward and backward, the same values within 1e-4, float32, one thread,
processor time; memory is the peak of all tensors made (peak_memory.py). Ratios of the naive form to ours: the median of
the repetitions with the least and the most.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported

import torch
from peak_memory import PeakMemory
from step import surroundings
from torch import Tensor
from torch.nn import functional

from hfdistill._atomic import write_json
from hfdistill.losses import attention_relation, relational_angle

Loss = Callable[[Tensor, Tensor], Tensor]


def naive_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """As in the paper: unit vectors between all pairs, and their products at each middle."""

    def cosines(features: Tensor) -> Tensor:
        unit = functional.normalize(features[None] - features[:, None], p=2, dim=2)
        return torch.bmm(unit, unit.mT)

    with torch.no_grad():
        target = cosines(teacher)
    return functional.smooth_l1_loss(cosines(student), target)


def naive_relation(heads: int) -> Loss:
    """As in the paper: the relations of all heads, whole."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        def logs(features: Tensor) -> Tensor:
            rows, positions, width = features.shape
            split = features.reshape(rows, positions, heads, width // heads).transpose(1, 2)
            return ((split @ split.mT) / (width // heads) ** 0.5).log_softmax(-1)

        with torch.no_grad():
            target = logs(teacher)
        own = logs(student)
        return functional.kl_div(own, target, log_target=True, reduction="none").sum(-1).mean()

    return loss


def workloads() -> dict[str, tuple[Loss, Loss, tuple[int, ...], tuple[int, ...]]]:
    """Name, ours, the naive form, and the shapes of student and teacher."""
    found: dict[str, tuple[Loss, Loss, tuple[int, ...], tuple[int, ...]]] = {}
    for rows in (64, 128, 256):
        found[f"RKD angle, {rows} × 768"] = (
            lambda ours, theirs: relational_angle(ours, theirs).mean(),
            naive_angle,
            (rows, 768),
            (rows, 768),
        )
    for rows, positions in ((8, 128), (4, 512)):
        found[f"MiniLM relation, {rows} × {positions} × 384 / 768, 48 heads"] = (
            lambda ours, theirs: attention_relation(ours, theirs, relation_heads=48).mean(),
            naive_relation(48),
            (rows, positions, 384),
            (rows, positions, 768),
        )
    return found


def run(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor, float]:
    """One forward and backward: the value, the gradient, and processor seconds."""
    leaf = student.clone().requires_grad_()
    started = time.process_time()
    value = loss(leaf, teacher)
    value.backward()
    taken = time.process_time() - started
    assert leaf.grad is not None, "a loss has a gradient"
    return value.item(), leaf.grad, taken


def measured(ours: Loss, naive: Loss, shapes: tuple[tuple[int, ...], tuple[int, ...]], repetitions: int) -> Any:
    """Ratios of the naive form to ours."""
    drawn = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(*shape, generator=drawn) for shape in shapes)
    first, second = run(ours, student, teacher), run(naive, student, teacher)
    torch.testing.assert_close(first[0], second[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first[1], second[1], rtol=1e-3, atol=1e-6)
    peaks = []
    for loss in (ours, naive):
        with PeakMemory() as memory:
            run(loss, student, teacher)
        peaks.append(memory.peak)
    ratios, own = [], []
    for turn in range(repetitions):
        order = (ours, naive) if turn % 2 else (naive, ours)
        seconds = {loss: run(loss, student, teacher)[2] for loss in order}
        ratios.append(seconds[naive] / seconds[ours])
        own.append(seconds[ours])
    return {
        "milliseconds": 1000 * statistics.median(own),
        "time": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "peak_bytes": peaks[0],
        "memory": peaks[1] / peaks[0],
    }


def main(words: list[str]) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("relations.json"))
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    rows = {
        name: measured(ours, naive, (student, teacher), options.repetitions)
        for name, (ours, naive, student, teacher) in workloads().items()
    }
    command = shlex.join(["python", "tests/benchmarks/relations.py", *words])
    write_json(options.json, {"command": command, "rows": rows, "machine": surroundings()})
    print("| loss | ours, ms | time, naive / ours | memory, naive / ours |\n|---|---:|---:|---:|")
    for name, row in rows.items():
        each = row["time"]
        time_cell = f"{each['median']:.1f} ({each['least']:.1f}–{each['most']:.1f})"
        print(f"| {name} | {row['milliseconds']:.1f} | {time_cell} | {row['memory']:.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
