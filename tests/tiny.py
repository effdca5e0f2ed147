"""Tiny models with random weights, one for each architecture that the tests know by name, and batches to feed them.

Dropout is 0 everywhere, so that two forwards of one model agree; weights and batches depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

IMAGE_SIZE = 16
VOCABULARY = 64
PAD = 1
LENGTH = 12
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def _vit(layers: int, **labels: object) -> PreTrainedConfig:
    return ViTConfig(**_vision_transformer(layers), **labels)


def _deit(layers: int, **labels: object) -> PreTrainedConfig:
    return DeiTConfig(**_vision_transformer(layers), **labels)


def _vision_transformer(layers: int) -> dict[str, object]:
    return {
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "num_channels": 3,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _resnet(layers: int, **labels: object) -> PreTrainedConfig:
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * layers, depths=[1] * layers, layer_type="basic", num_channels=3, **labels
    )


def _convnext(layers: int, **labels: object) -> PreTrainedConfig:
    return ConvNextConfig(
        num_channels=3,
        patch_size=2,
        num_stages=layers,
        hidden_sizes=[8 * (stage + 1) for stage in range(layers)],
        depths=[1] * layers,
        drop_path_rate=0.0,
        # The default 1e-6 leaves every block almost the identity: nothing would depend on the blocks' weights.
        layer_scale_init_value=0.5,
        **labels,
    )


def _mobilenet_v2(layers: int, **labels: object) -> PreTrainedConfig:
    # The 17 blocks are fixed in the architecture; only their width shrinks, and `layers` has nothing to say.
    return MobileNetV2Config(
        num_channels=3, image_size=IMAGE_SIZE, depth_multiplier=0.1, classifier_dropout_prob=0.0, **labels
    )


def _bert(layers: int, **labels: object) -> PreTrainedConfig:
    return BertConfig(**_text_encoder(layers), **labels)


def _roberta(layers: int, **labels: object) -> PreTrainedConfig:
    return RobertaConfig(**_text_encoder(layers), **labels)


def _text_encoder(layers: int) -> dict[str, object]:
    return {
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _distilbert(layers: int, **labels: object) -> PreTrainedConfig:
    return DistilBertConfig(
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        dim=16,
        n_layers=layers,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=40,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        **labels,
    )


def _modernbert(layers: int, **labels: object) -> PreTrainedConfig:
    return ModernBertConfig(
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        bos_token_id=2,
        cls_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        local_attention=4,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.0,
        classifier_dropout=0.0,
        **labels,
    )


def _llama(layers: int, **labels: object) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        bos_token_id=2,
        eos_token_id=3,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=40,
        attention_dropout=0.0,
        **labels,
    )


Build = tuple[Callable[..., PreTrainedConfig], type[PreTrainedModel]]
IMAGE: dict[str, Build] = {
    "vit": (_vit, ViTForImageClassification),
    "deit": (_deit, DeiTForImageClassification),
    "resnet": (_resnet, ResNetForImageClassification),
    "convnext": (_convnext, ConvNextForImageClassification),
    "mobilenet_v2": (_mobilenet_v2, MobileNetV2ForImageClassification),
}
TEXT: dict[str, Build] = {
    "bert": (_bert, BertForSequenceClassification),
    "distilbert": (_distilbert, DistilBertForSequenceClassification),
    "roberta": (_roberta, RobertaForSequenceClassification),
    "modernbert": (_modernbert, ModernBertForSequenceClassification),
    "llama": (_llama, LlamaForSequenceClassification),
}
ARCHITECTURES = (*IMAGE, *TEXT)


def config(
    architecture: str, *, layers: int = 2, num_labels: int = 3, problem_type: str | None = None
) -> PreTrainedConfig:
    """Return the configuration of a tiny classifier; the classes are named ``class_0``, ``class_1``, ..."""
    names = {index: f"class_{index}" for index in range(num_labels)}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    build, _ = (IMAGE | TEXT)[architecture]
    return build(layers, problem_type=problem_type, **labels)


def model(
    architecture: str, *, layers: int = 2, num_labels: int = 3, problem_type: str | None = None, seed: int = 0
) -> PreTrainedModel:
    """Return a tiny classifier in training mode, its weights drawn from ``seed``."""
    settings = config(architecture, layers=layers, num_labels=num_labels, problem_type=problem_type)
    _, network_class = (IMAGE | TEXT)[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = network_class(settings)
        for parameter in network.parameters():
            # Larger than the usual 0.02, and no zero biases: logits of two seeds differ well beyond rounding.
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    return network.train()


def batch(
    architecture: str,
    rows: int = 4,
    seed: int = 0,
    num_labels: int = 3,
    problem_type: str = "single_label_classification",
) -> dict[str, torch.Tensor]:
    """Return inputs and labels for ``model(architecture)``; texts have different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    inputs = _images(rows, generator) if architecture in IMAGE else _texts(rows, generator)
    return inputs | {"labels": labels(rows, generator, num_labels, problem_type)}


def _images(rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}


def _texts(rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    lengths = torch.randint(4, LENGTH + 1, (rows, 1), generator=generator)
    mask = torch.arange(LENGTH).expand(rows, LENGTH) < lengths
    tokens = torch.randint(4, VOCABULARY, (rows, LENGTH), generator=generator).masked_fill(~mask, PAD)
    return {"input_ids": tokens, "attention_mask": mask.long()}


def labels(rows: int, generator: torch.Generator, num_labels: int, problem_type: str) -> torch.Tensor:
    """Return labels of the shape and type that ``problem_type`` asks for."""
    if problem_type == "single_label_classification":
        return torch.randint(num_labels, (rows,), generator=generator)
    if problem_type == "multi_label_classification":
        return torch.randint(2, (rows, num_labels), generator=generator).float()
    values = torch.randn(rows, num_labels, generator=generator)
    return values.squeeze(-1) if num_labels == 1 else values
