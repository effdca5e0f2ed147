"""Pictures of squares with maps and boxes, and tiny models that segment or detect, as they lie on the Hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    RTDetrConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from hfdistill.data.processors import processor_of_kind
from tests import tiny_queries

NAMES = ["dark", "light", "white"]


def need_segformer() -> None:
    """Skip a test where SegFormer's image processor cannot be had: Transformers 5.18 wants torchvision for it."""
    try:
        SegformerImageProcessorPil()
    except ImportError:
        pytest.skip("this Transformers reads no pictures for SegFormer without torchvision")


def maps(rows: int, seed: int, image: str = "image", label: str = "map") -> datasets.Dataset:
    """Squares of three greys, told by their map; a row of each map does not count."""
    generator = np.random.default_rng(seed)
    found = generator.integers(0, 3, (rows, 4, 4), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    greys = (40 + 80 * found + generator.integers(0, 30, found.shape)).astype(np.uint8)
    found[:, 0] = 255
    columns = {image: [Image.fromarray(each) for each in greys], label: [Image.fromarray(each) for each in found]}
    features = datasets.Features({image: datasets.Image(), label: datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features)


def boxes(rows: int, seed: int, names: list[str], corners: bool = False) -> datasets.Dataset:
    """Squares of the greys of two classes on a third grey, none to two a picture."""
    generator = np.random.default_rng(seed)
    images, objects = [], []
    for row in range(rows):
        pixels = np.full((24, 32), 128, np.uint8)
        found, categories = [], []
        for half in range(row % 3):
            category, left, top = int(generator.integers(2)), int(16 * half + generator.integers(6)), 8
            pixels[top : top + 10, left : left + 10] = (20, 240)[category]
            found.append([left, top, left + 10, top + 10] if corners else [left, top, 10, 10])
            categories.append(category)
        images.append(Image.fromarray(pixels))
        objects.append({"bbox": found, "category": categories})
    listed = datasets.List(datasets.List(datasets.Value("float32"), length=4))
    of_names = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features({"image": datasets.Image(), "objects": {"bbox": listed, "category": of_names}})
    return datasets.Dataset.from_dict({"image": images, "objects": objects}, features=features)


def segformer_folder(folder: Path) -> str:
    """A SegFormer of three classes that reads 16 pixels."""
    stages = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
    patches = {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    named = {"id2label": dict(enumerate(NAMES)), "label2id": {name: place for place, name in enumerate(NAMES)}}
    torch.manual_seed(0)
    return _saved(
        SegformerForSemanticSegmentation(SegformerConfig(decoder_hidden_size=16, **stages, **patches, **named)),
        SegformerConfig(),
        16,
        folder,
    )


def rt_detr_folder(folder: Path) -> str:
    """An RT-DETR of three classes that reads 32 pixels."""
    return _saved(tiny_queries.model("rt_detr", 0), RTDetrConfig(), tiny_queries.SIDE, folder)


def _saved(model: PreTrainedModel, kind: SegformerConfig | RTDetrConfig, side: int, folder: Path) -> str:
    model.save_pretrained(folder)
    processor_of_kind(kind, {"size": {"height": side, "width": side}}).save_pretrained(folder)
    return str(folder)
