"""Tiny models of images and texts, a tokenizer and pictures for them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

WORDS = ("a", "photo", "of", ".", "red", "green", "blue", "car", "sports", "bad", "picture")
LENGTH, IMAGE_SIZE, START, END = 10, 16, 2, 3


def _sides(layers: int, width: int) -> dict[str, dict[str, Any]]:
    shared = {
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "attention_dropout": 0.0,
    }
    text = {"vocab_size": 64, "max_position_embeddings": LENGTH, "pad_token_id": 1, "bos_token_id": START}
    return {
        "text_config": {**shared, **text, "eos_token_id": END},
        "vision_config": {**shared, "image_size": IMAGE_SIZE, "patch_size": 8},
    }


def model(kind: str, *, layers: int = 1, width: int = 16, projection: int = 12, seed: int = 0) -> PreTrainedModel:
    """Return a tiny ``clip`` or ``siglip`` with weights drawn from ``seed``; SigLIP's embeddings are ``width`` wide."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: PreTrainedModel
        if kind == "clip":
            network = CLIPModel(
                CLIPConfig(**_sides(layers, width), projection_dim=projection, logit_scale_init_value=1.5)
            )
        else:
            network = SiglipModel(SiglipConfig(**_sides(layers, width)))
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif name in ("logit_scale", "logit_bias"):
                parameter.data.fill_({"logit_scale": 1.5, "logit_bias": -1.0}[name])
    return network.train()


def pairs(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Return a data set of images and texts, without labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    tokens = torch.randint(4, 64, (count, LENGTH), generator=generator)
    tokens[:, -1] = END
    return [{"pixel_values": image, "input_ids": text} for image, text in zip(pixels, tokens, strict=True)]


def batch(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the same as one batch."""
    rows = pairs(count, seed)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that ends each text as CLIP's does."""
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", "[START]", "[END]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", START), ("[END]", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", model_max_length=LENGTH, eos_token="[END]"
    )
