"""Tiny set-prediction models from their configs alone, and pictures with a few objects."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    LwDetrConfig,
    LwDetrForObjectDetection,
    LwDetrViTConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
)

SIDE = 32
CLASSES = 3
SEGMENTING = ("mask2former",)
# Neither timm nor a download: the backbone is a config.
NO_TIMM: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}


def _resnet(*stages: str) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=[*stages]
    )


def _transformer(width: int = 16, **changes: Any) -> dict[str, Any]:
    return {
        "d_model": width, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 5, "dropout": 0.0,
        "num_labels": CLASSES, **changes,
    }  # fmt: skip


def _detr(**changes: Any) -> PreTrainedModel:
    return DetrForObjectDetection(DetrConfig(**_transformer(**changes), **NO_TIMM, backbone_config=_resnet("stage4")))


def _detr_with_masks(**changes: Any) -> PreTrainedModel:
    # Its mask head wants a width of 128 or so, in groups of 8.
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, **changes}
    backbone = _resnet("stage1", "stage2", "stage3", "stage4")
    return DetrForSegmentation(DetrConfig(**_transformer(128, **heads), **NO_TIMM, backbone_config=backbone))


def _conditional_detr(**changes: Any) -> PreTrainedModel:
    config = ConditionalDetrConfig(**_transformer(**changes), **NO_TIMM, backbone_config=_resnet("stage4"))
    return ConditionalDetrForObjectDetection(config)


def _yolos(**changes: Any) -> PreTrainedModel:
    return YolosForObjectDetection(
        YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=[SIDE, SIDE],
            patch_size=8, **{"num_detection_tokens": 5, "num_labels": CLASSES, **changes},
        )
    )  # fmt: skip


def _rt_detr(**changes: Any) -> PreTrainedModel:
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 12, 16], encoder_layers=1,
            encoder_ffn_dim=16, encoder_attention_heads=2, d_model=16, decoder_in_channels=[16, 16, 16],
            decoder_ffn_dim=16, decoder_n_points=2, decoder_layers=2, decoder_attention_heads=2, num_denoising=4,
            **{"num_queries": 5, "num_labels": CLASSES, **changes},
        )
    )  # fmt: skip


def _lw_detr(**changes: Any) -> PreTrainedModel:
    backbone = LwDetrViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=SIDE,
        pretrain_image_size=SIDE, patch_size=4, num_windows=4, window_block_indices=[0], out_features=["stage2"],
    )  # fmt: skip
    return LwDetrForObjectDetection(
        LwDetrConfig(
            backbone_config=backbone, d_model=16, decoder_ffn_dim=16, decoder_layers=2, decoder_n_points=2,
            decoder_self_attention_heads=2, decoder_cross_attention_heads=2, group_detr=3, hidden_expansion=0.5,
            projector_scale_factors=[1.0], **{"num_queries": 5, "num_labels": CLASSES, **changes},
        )
    )  # fmt: skip


def _mask2former(**changes: Any) -> PreTrainedModel:
    backbone = SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        drop_path_rate=0.0, out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
            encoder_feedforward_dim=16, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, dropout=0.0,
            train_num_points=16, **{"num_queries": 5, "num_labels": CLASSES, **changes},
        )
    )  # fmt: skip


BUILDERS = {
    "detr": _detr,
    "detr_with_masks": _detr_with_masks,
    "conditional_detr": _conditional_detr,
    "yolos": _yolos,
    "rt_detr": _rt_detr,
    "lw_detr": _lw_detr,
    "mask2former": _mask2former,
}


def model(architecture: str, seed: int, **changes: Any) -> PreTrainedModel:
    """A model with its own random weights, larger than usual so that queries differ."""
    torch.manual_seed(seed)
    made = BUILDERS[architecture](**changes)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 2 and "backbone" not in name:
                parameter.mul_(3)
    return made


def examples(architecture: str, count: int = 8, classes: int = CLASSES) -> list[dict[str, Any]]:
    """Pictures with none, one or two objects each, in the form that the architecture reads."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for place in range(count):
        objects = 1 + place % 2 if architecture in SEGMENTING else place % 3
        labels = torch.randint(0, classes, (objects,), generator=generator)
        row: dict[str, Any] = {"pixel_values": torch.randn(3, SIDE, SIDE, generator=generator)}
        masks = (torch.rand(objects, SIDE, SIDE, generator=generator) > 0.5).float()
        boxes = 0.2 + 0.3 * torch.rand(objects, 4, generator=generator)
        if architecture in SEGMENTING:
            row |= {"mask_labels": masks, "class_labels": labels}
        else:
            row["labels"] = {"class_labels": labels, "boxes": boxes, "masks": masks}
        rows.append(row)
    return rows
