"""The same distillation on several processes, and a check that every rank ends with one and the same student.

    torchrun --nproc_per_node 2 examples/several_processes.py --use_cpu True
    accelerate launch --multi_gpu --num_processes 2 examples/several_processes.py

The losses are divided by the rows of the global batch, so that 2 processes with 16 examples each make the same update
as one with 32. `accelerate launch --cpu --num_processes 2` starts a single process; the first line printed tells.
"""

from __future__ import annotations

import torch
from accelerate.utils import gather_object
from sklearn.datasets import load_digits
from transformers import HfArgumentParser, ResNetConfig, ResNetForImageClassification

from hfdistill import DistillationConfig, DistillationTrainer, Objective, TaskLoss


def resnet(width: int, blocks: int) -> ResNetForImageClassification:
    """A small ResNet for 8x8 grey images."""
    settings = ResNetConfig(
        num_channels=1, embedding_size=width, hidden_sizes=[width, 2 * width], depths=[blocks, blocks],
        layer_type="basic", num_labels=10,
    )  # fmt: skip
    return ResNetForImageClassification(settings)


def main() -> None:
    """Train a teacher and a student on all processes."""
    (args,) = HfArgumentParser(DistillationConfig).parse_args_into_dataclasses()
    images, labels = load_digits(return_X_y=False)["images"], load_digits()["target"]
    rows = [
        {"pixel_values": torch.tensor(x / 16).float()[None], "label": int(y)}
        for x, y in zip(images, labels, strict=True)
    ]
    teacher = resnet(width=16, blocks=2)
    alone = DistillationTrainer(teacher, args, objective=Objective([TaskLoss()]), train_dataset=rows)
    print(f"process {args.process_index + 1} of {alone.accelerator.num_processes}")
    alone.train()
    trainer = DistillationTrainer(resnet(width=8, blocks=1), args, teacher_model=teacher, train_dataset=rows)
    trainer.train()
    weights = torch.cat([each.detach().flatten().double() for each in trainer.model.parameters()])
    sums = gather_object([weights.sum().item()])
    if trainer.is_world_process_zero():
        print(f"{len(sums)} ranks, largest difference between their students {max(sums) - min(sums):.3g}")


if __name__ == "__main__":
    main()
