"""What is trained: three pairs of student and teacher with random weights, and batches to feed them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

CLASSES = 10
IMAGE_SIZE = 64
TOKENS = 64
VOCABULARY = 8192

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """A pair of models and the batches of one training."""

    name: str
    student: Callable[[], PreTrainedModel]
    teacher: Callable[[], PreTrainedModel]
    batch: Callable[[torch.Generator], Batch]

    def batches(self, count: int) -> list[Batch]:
        """As many different batches, the same in every call."""
        generator = torch.Generator().manual_seed(0)
        return [self.batch(generator) for _ in range(count)]


def vit(width: int, layers: int) -> PreTrainedModel:
    """A vision transformer of 64 patches, 64 units a head."""
    return ViTForImageClassification(
        ViTConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            num_labels=CLASSES,
        )
    )


def resnet(widths: list[int], depths: list[int]) -> PreTrainedModel:
    """A residual network of basic blocks."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=widths[0], hidden_sizes=widths, depths=depths, layer_type="basic", num_labels=CLASSES
        )
    )


def bert(width: int, layers: int) -> PreTrainedModel:
    """A text encoder with a sequence classification head, 64 units a head."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            max_position_embeddings=TOKENS,
            num_labels=CLASSES,
        )
    )


def images(rows: int) -> Callable[[torch.Generator], Batch]:
    """Makes batches of noise images."""

    def batch(generator: torch.Generator) -> Batch:
        pixels = torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        return {"pixel_values": pixels, "labels": torch.randint(CLASSES, (rows,), generator=generator)}

    return batch


def texts(rows: int) -> Callable[[torch.Generator], Batch]:
    """Makes batches of random token ids, half to all of each row filled."""

    def batch(generator: torch.Generator) -> Batch:
        lengths = torch.randint(TOKENS // 2, TOKENS + 1, (rows, 1), generator=generator)
        mask = (torch.arange(TOKENS).expand(rows, TOKENS) < lengths).long()
        tokens = torch.randint(1, VOCABULARY, (rows, TOKENS), generator=generator) * mask
        labels = torch.randint(CLASSES, (rows,), generator=generator)
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}

    return batch


WORKLOADS = (
    Workload("ViT", lambda: vit(192, 4), lambda: vit(384, 6), images(8)),
    Workload("ResNet", lambda: resnet([32, 64, 128], [1, 1, 1]), lambda: resnet([64, 128, 256], [2, 2, 2]), images(16)),
    Workload("BERT", lambda: bert(192, 4), lambda: bert(384, 6), texts(8)),
)
