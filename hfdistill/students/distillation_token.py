"""A vision transformer with a second token and head of its own for its teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTPreTrainedModel,
    LevitForImageClassificationWithTeacher,
    PreTrainedConfig,
    PreTrainedModel,
    ViTForImageClassification,
    ViTPreTrainedModel,
)

from hfdistill.errors import HfDistillError

TWO_HEADED: Mapping[str, type[PreTrainedModel]] = {
    "deit": DeiTForImageClassificationWithTeacher,
    "levit": LevitForImageClassificationWithTeacher,
}
"""The class with a distillation head for each model type that has one."""

TOKEN, POSITIONS = "embeddings.distillation_token", "embeddings.position_embeddings"
LEFT_BEHIND = ("pooler.", "embeddings.mask_token")
"""What an encoder may have and a classifier does not use."""


def student_with_distillation_token(model: PreTrainedModel, *, seed: int = 42) -> DeiTForImageClassificationWithTeacher:
    """Return a DeiT student with the weights of a ViT or DeiT, and a token and head that learn from the teacher.

    Of a ViT the class token, its position and its head are the start of the new token, its position and its head: both
    heads give the same logits at first, and exactly the ViT's where the new token is masked. Unmasked, each layer looks
    at the class token twice, which moves them. A DeiT has the token already, so that the class head's logits stay
    exactly as they were. An encoder without a head gets two fresh ones. The model is not changed and shares no memory
    with the student.

    Args:
        model: a ViT or DeiT, such as ViTForImageClassification or DeiTModel; pooler and mask token are left behind.
        seed: draws the heads of an encoder that has none; the generators of the session stay as they were.

    Returns:
        The student in evaluation mode, on the model's device and in its dtype. `logits` is the mean of `cls_logits` and
        `distillation_logits`.

    Raises:
        HfDistillError: if the model is no plain ViT or DeiT, or has a distillation head already.

    Source: Touvron et al. (DeiT), arXiv 2012.12877, section 4.

    """
    if isinstance(model, tuple(TWO_HEADED.values())):
        raise HfDistillError(
            f"A {type(model).__name__} came, which has a distillation head already; expected a model without. Pass it "
            "to DistillationTrainer as it is."
        )
    if not isinstance(model, ViTPreTrainedModel | DeiTPreTrainedModel):
        raise HfDistillError(
            f"A {type(model).__name__} came; expected a ViT or a DeiT, such as ViTForImageClassification, to which a "
            "token can be added. Of a LeViT build LevitForImageClassificationWithTeacher; any other student learns "
            "from its teacher with the one head that it has."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        student = DeiTForImageClassificationWithTeacher(_config(model.config))
    nn.Module.to(student, device=model.device, dtype=model.dtype)
    _fill(student.deit, _body(model), model)
    if isinstance(model, ViTForImageClassification | DeiTForImageClassification):
        for head in (student.cls_classifier, student.distillation_classifier):
            _fill(head, model.classifier.state_dict(), model)
    student.train(mode=False)
    return student


def with_two_heads(model: PreTrainedModel, *, seed: int = 42) -> PreTrainedModel:
    """The model itself if it has a distillation head already, else the student made of it."""
    two_headed = isinstance(model, tuple(TWO_HEADED.values()))
    return model if two_headed else student_with_distillation_token(model, seed=seed)


def _config(config: PreTrainedConfig) -> DeiTConfig:
    """The same settings, under the name of the other family."""
    settings = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    made: DeiTConfig = DeiTConfig.from_dict(settings)
    made._attn_implementation = config._attn_implementation
    return made


def _body(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of the encoder, with those of the new token where it has none."""
    tensors = {
        name: tensor for name, tensor in model.base_model.state_dict().items() if not name.startswith(LEFT_BEHIND)
    }
    if TOKEN in tensors:
        return tensors
    positions = tensors[POSITIONS]
    added = {
        TOKEN: tensors["embeddings.cls_token"],
        POSITIONS: torch.cat([positions[:, :1], positions], dim=1),
    }
    return tensors | added


def _fill(part: nn.Module, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    try:
        part.load_state_dict(tensors)
    except RuntimeError as error:
        raise HfDistillError(
            f"The tensors of this {type(model).__name__} are not those of its class: {str(error).splitlines()[-1]}; "
            "expected a whole model without adapters or quantised layers. Convert it first, then change it."
        ) from error
