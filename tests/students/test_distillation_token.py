"""A ViT with a second token and head: what stays equal, what is new, and what the saved folder gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PreTrainedModel,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hfdistill import HfDistillError, student_with_distillation_token
from tests import tiny

PIXELS = tiny.batch("vit", 6, seed=3)["pixel_values"]
PATCHES = (tiny.IMAGE_SIZE // 8) ** 2


def converted(model: PreTrainedModel, seed: int = 0) -> DeiTForImageClassificationWithTeacher:
    return student_with_distillation_token(model, seed=seed)


def vit(seed: int = 1) -> PreTrainedModel:
    """A ViT each of whose parameters is a number of its own, also those that begin as 0 or 1."""
    model = tiny.model("vit", layers=2, seed=seed).eval()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_a_vit_stays_what_it_was_where_the_new_token_is_masked() -> None:
    model = vit()
    student, expected = converted(model), model(PIXELS).logits
    seen = torch.ones(len(PIXELS), PATCHES + 2, dtype=torch.long)
    seen[:, 1] = 0
    torch.testing.assert_close(student(PIXELS, attention_mask=seen).cls_logits, expected)
    # Unmasked the new token is a second class token, to be looked at beside the first.
    outputs = student(PIXELS)
    torch.testing.assert_close(outputs.cls_logits, outputs.distillation_logits)
    assert not torch.allclose(outputs.cls_logits, expected, atol=1e-3)


def test_every_weight_is_the_vit_s_and_none_is_shared() -> None:
    model = vit()
    student = converted(model)
    theirs, ours = model.vit.state_dict(), student.deit.state_dict()
    assert ours.keys() - theirs.keys() == {"embeddings.distillation_token"} and theirs.keys() <= ours.keys()
    for name, tensor in theirs.items():
        if name != "embeddings.position_embeddings":
            assert torch.equal(ours[name], tensor), name
    embeddings = student.deit.embeddings
    assert torch.equal(embeddings.distillation_token, model.vit.embeddings.cls_token)
    first, second, *rest = embeddings.position_embeddings[0]
    own = model.vit.embeddings.position_embeddings[0]
    assert torch.equal(first, own[0]) and torch.equal(second, own[0]) and torch.equal(torch.stack(rest), own[1:])
    for head in (student.cls_classifier, student.distillation_classifier):
        assert torch.equal(head.weight, model.classifier.weight) and torch.equal(head.bias, model.classifier.bias)
    before = model(PIXELS).logits
    for parameter in student.parameters():
        parameter.data.zero_()
    assert torch.equal(model(PIXELS).logits, before)


@torch.no_grad()
def test_a_deit_keeps_its_token_and_its_logits() -> None:
    model = tiny.model("deit", layers=2, seed=1).eval()
    torch.nn.init.normal_(model.deit.embeddings.distillation_token)
    student = converted(model)
    assert torch.equal(student(PIXELS).cls_logits, model(PIXELS).logits)
    assert torch.equal(student.deit.embeddings.distillation_token, model.deit.embeddings.distillation_token)


@pytest.mark.parametrize("kind", [ViTModel, ViTForMaskedImageModeling, DeiTModel])
def test_an_encoder_without_a_head_gets_two_from_the_seed(kind: type[PreTrainedModel]) -> None:
    model = kind(tiny.model("deit" if kind is DeiTModel else "vit", num_labels=5).config)
    state = torch.random.get_rng_state()
    one, same, other = converted(model, 1), converted(model, 1), converted(model, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one(PIXELS).logits.shape == (6, 5)
    assert torch.equal(one.cls_classifier.weight, same.cls_classifier.weight)
    assert not torch.equal(one.cls_classifier.weight, other.cls_classifier.weight)
    assert not torch.equal(one.cls_classifier.weight, one.distillation_classifier.weight)


def test_settings_go_with_it() -> None:
    model = tiny.model("vit", problem_type="multi_label_classification")
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.config.layer_norm_eps = 1e-3
    model.set_attn_implementation("eager")
    student = converted(model.to(torch.bfloat16))
    ours = student.config
    assert (ours.model_type, ours.id2label, ours.problem_type) == (
        "deit",
        model.config.id2label,
        model.config.problem_type,
    )
    assert ours.layer_norm_eps == 1e-3 and ours._attn_implementation == "eager"
    assert student.dtype == torch.bfloat16 and not student.training


@torch.no_grad()
def test_the_saved_folder_is_plain_transformers(tmp_path: Path) -> None:
    student = converted(vit())
    student.distillation_classifier.bias += 1.0
    student.save_pretrained(tmp_path)
    outputs = student(PIXELS)
    for auto_class in (DeiTForImageClassificationWithTeacher, AutoModelForImageClassification):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is DeiTForImageClassificationWithTeacher
        assert torch.equal(loaded(PIXELS).logits, outputs.logits)
    # The class head alone, with the token that the layers have learnt to look at.
    alone = DeiTForImageClassification.from_pretrained(tmp_path, key_mapping={"cls_classifier": "classifier"})
    assert torch.equal(alone(PIXELS).logits, outputs.cls_logits)


def test_other_models_are_refused() -> None:
    with pytest.raises(HfDistillError, match=r"ResNet.* came; expected a ViT or a DeiT"):
        converted(tiny.model("resnet"))
    with pytest.raises(HfDistillError, match="has a distillation head already"):
        converted(converted(tiny.model("vit")))
    changed = tiny.model("vit")
    changed.vit.layers[0].attention.q_proj = torch.nn.Sequential(changed.vit.layers[0].attention.q_proj)
    with pytest.raises(HfDistillError, match="expected a whole model without adapters"):
        converted(changed)
