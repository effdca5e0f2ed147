"""Tiny heads that say something about each pixel or each frame, examples for them, and one short training by SGD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    DPTConfig,
    DPTForDepthEstimation,
    GLPNConfig,
    GLPNForDepthEstimation,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Wav2Vec2Config,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
)

from hfdistill import DistillationTrainer
from tests import by_sgd
from tests.trainer.trajectory import freeze_batch_norm

SIDE = 32
CLASSES = 3
IGNORED = 255
SAMPLES = 40
FRAMES = 9
LENGTHS = (40, 40, 17, 28, 40, 9, 33, 40)  # samples of each example; 40 of them make 9 frames, 17 make 3
TOKENS = 12
PAD = 0
EXAMPLES = 8


def _segformer(**settings: Any) -> PreTrainedModel:
    stages = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
    patches = {"patch_sizes": [3, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    none = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
    settings = {"num_labels": CLASSES, **settings}
    return SegformerForSemanticSegmentation(
        SegformerConfig(decoder_hidden_size=16, **stages, **patches, **none, **settings)
    )


def _vision_transformer() -> dict[str, Any]:
    size = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return {"image_size": SIDE, "patch_size": 8, "hidden_dropout_prob": 0.0, **size}


def _beit(**settings: Any) -> PreTrainedModel:
    settings = {"drop_path_rate": 0.0, "out_indices": [1, 2, 3, 4], "num_labels": CLASSES, **settings}
    return BeitForSemanticSegmentation(BeitConfig(**_vision_transformer(), **settings))


def _dpt(**settings: Any) -> PreTrainedModel:
    neck = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
    return DPTForDepthEstimation(
        DPTConfig(is_hybrid=False, reassemble_factors=[4, 2, 1, 0.5], **neck, **_vision_transformer(), **settings)
    )


def _glpn(**settings: Any) -> PreTrainedModel:
    stages = {"depths": [1] * 4, "sr_ratios": [2, 1, 1, 1], "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4}
    return GLPNForDepthEstimation(
        GLPNConfig(mlp_ratios=[2] * 4, decoder_hidden_size=8, drop_path_rate=0.0, **stages, **settings)
    )


def _wav2vec2_config(**settings: Any) -> Wav2Vec2Config:
    encoder = {"conv_dim": (8, 8), "conv_kernel": (3, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
    none: dict[str, Any] = {**dict.fromkeys((*dropouts, "layerdrop", "mask_time_prob"), 0.0), "pad_token_id": PAD}
    # The layer norm leaves padding out; the default group norm would let it change every frame.
    return Wav2Vec2Config(feat_extract_norm="layer", **{**encoder, **size, **positions, **none, **settings})


def _ctc(**settings: Any) -> PreTrainedModel:
    return Wav2Vec2ForCTC(_wav2vec2_config(vocab_size=TOKENS, **settings))


def _frames(**settings: Any) -> PreTrainedModel:
    return Wav2Vec2ForAudioFrameClassification(_wav2vec2_config(num_labels=CLASSES, **settings))


HEADS: dict[str, Callable[..., PreTrainedModel]] = {
    "segformer": _segformer,
    "beit": _beit,
    "dpt": _dpt,
    "glpn": _glpn,
    "ctc": _ctc,
    "frames": _frames,
}


def model(head: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A tiny model in training mode, its weights drawn from `seed`, batch statistics left out of it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = HEADS[head](**settings)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    network.train()
    freeze_batch_norm(network)
    return network


def batch(head: str, size: int = EXAMPLES) -> dict[str, torch.Tensor]:
    """Inputs and labels, of which some do not count, and how many differs from example to example."""
    generator = torch.Generator().manual_seed(7)
    if head in ("segformer", "beit", "dpt", "glpn"):
        side = 2 * SIDE if head == "glpn" else SIDE
        pictures = torch.randn(size, 3, side, side, generator=generator)
        unknown = torch.arange(side)[None, :, None] < torch.arange(0, 4 * size, 4)[:, None, None] % side
        if head in ("segformer", "beit"):
            labels = torch.randint(CLASSES, (size, side, side), generator=generator).masked_fill(unknown, IGNORED)
        else:
            spread = torch.arange(1.0, size + 1)[:, None, None]
            labels = (torch.rand(size, side, side, generator=generator) * spread + 1).masked_fill(unknown, 0.0)
        return {"pixel_values": pictures, "labels": labels}
    lengths = torch.tensor(LENGTHS * size)[:size, None]
    mask = torch.arange(SAMPLES) < lengths
    sounds = torch.randn(size, SAMPLES, generator=generator).masked_fill(~mask, 0.0)
    if head == "ctc":
        labels = torch.randint(1, TOKENS, (size, 3), generator=generator)
        labels[torch.arange(3) >= torch.tensor([3, 2, 1, 1] * size)[:size, None]] = -100
        labels[4::5] = -100
    else:
        labels = functional.one_hot(torch.randint(CLASSES, (size, FRAMES), generator=generator), CLASSES)
    return {"input_values": sounds, "attention_mask": mask.long(), "labels": labels}


def trainer(
    head: str,
    folder: Path,
    student: torch.nn.Module | None = None,
    teacher: torch.nn.Module | None = None,
    **arguments: Any,
) -> DistillationTrainer:
    """A trainer of one step of eight examples by SGD."""
    examples = batch(head)
    rows = [{key: value[place] for key, value in examples.items()} for place in range(EXAMPLES)]
    own = {"max_steps": 1, "learning_rate": 0.1, "per_device_eval_batch_size": 4, "alpha": 0.6, "temperature": 2.0}
    config = by_sgd.arguments(folder, **{**own, **arguments})
    return DistillationTrainer(
        student or model(head, seed=1),
        config,
        teacher_model=teacher or model(head, seed=2),
        train_dataset=rows,
        eval_dataset=rows,
    )


def trajectory(head: str, folder: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    """Parameters after a training, and every gradient norm and part that it logged, by name."""
    job = trainer(head, folder, **arguments)
    job.train()
    return by_sgd.seen_in(job)
