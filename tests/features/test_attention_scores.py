"""Attention scores: those that the model itself takes the softmax of, and the term over them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AttentionInterface,
    BartConfig,
    BartModel,
    BloomConfig,
    BloomForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
)

from hfdistill import Attentions, DistillationConfig, HfDistillError, Objective, TaskLoss
from hfdistill.attention_calls import AttentionCall, calls_noted
from hfdistill.recipe import RecipeError
from hfdistill.recipe.objective import terms_of
from tests import tiny
from tests.features.runs import trained
from tests.trainer.trajectory import assert_same, examples

IDS = {"input_ids": torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]])}
TEXTS = {**IDS, "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
WORDS = {"vocab_size": 12, "pad_token_id": 0}
PICTURES = {"pixel_values": torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    narrow = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    if name == "gemma3":  # norms of queries and keys, shared key heads, a window
        return Gemma3TextModel(Gemma3TextConfig(**narrow, **WORDS, num_key_value_heads=2, head_dim=4, sliding_window=2))
    if name == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 2, "eos_token_id": 3}
        return GPT2Model(GPT2Config(**sizes, **WORDS, scale_attn_by_inverse_layer_idx=True))
    if name == "t5":
        return T5Model(T5Config(d_model=16, d_kv=4, num_layers=2, num_heads=4, d_ff=16, **WORDS))
    if name == "bart":
        sides = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        return BartModel(BartConfig(d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sides, **WORDS))
    if name == "swin":
        return SwinModel(
            SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[1], num_heads=[2], window_size=4)
        )
    return tiny.model(name, layers=2, seed=1)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "llama", "modernbert", "gemma3", "gpt2", "t5", "bart", "vit", "swin"])
def test_their_softmax_is_the_attention_map(name: str, kernel: str) -> None:
    """Of eager attention, with rotary and relative positions, norms, windows and padding, layer by layer."""
    model = model_of(name).eval()
    inputs = PICTURES if name in ("vit", "swin") else TEXTS
    if name in ("t5", "bart"):
        inputs = {**inputs, "decoder_input_ids": IDS["input_ids"]}
    calls: list[AttentionCall] = []
    with torch.no_grad():
        model.set_attn_implementation(kernel)
        with calls_noted(model, calls):
            model(**inputs)
        model.set_attn_implementation("eager")
        outputs = model(**inputs, output_attentions=True)
    maps = outputs.get("attentions") or (*outputs.encoder_attentions, *outputs.decoder_attentions)
    own = [call for call in calls if not any(word in call.name for word in ("encoder_attn", "EncDecAttention"))]
    if not maps and transformers.__version__.startswith("5.18."):
        pytest.skip("its T5 shows no attention maps to hold the scores against")
    assert len(own) == len(maps) > 0
    for call, expected in zip(own, maps, strict=True):
        pairs = call.pairs()
        given = call.scores().masked_fill(~pairs[:, None], -1e30).softmax(-1)
        looks = pairs.any(-1)[:, None, :, None]
        torch.testing.assert_close(given * looks, expected * looks, rtol=1e-4, atol=1e-6)
    assert not pairs.all() or inputs is PICTURES


def test_the_term_is_the_squared_distance_of_the_scores(tmp_path: Path) -> None:
    """By hand from the layers' projections, over the pairs of tokens that are no padding."""
    student, teacher = (tiny.model("bert", layers=2, num_labels=3, seed=seed) for seed in (1, 2))
    rows = examples("bert", "single_label_classification", unlabelled=False)[:8]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key != "labels"}
    assert not batch["attention_mask"].all()
    terms = Objective([TaskLoss(), Attentions("attention_score_mse", layers={1: 2})])
    scores = []
    with torch.no_grad():
        for model, layer in ((student, 0), (teacher, 1)):
            hidden = model(**batch, output_hidden_states=True).hidden_states[layer]
            attention = model.bert.encoder.layer[layer].attention.self
            query, key = (
                part(hidden).unflatten(-1, (2, 8)).transpose(1, 2) for part in (attention.query, attention.key)
            )
            scores.append(query @ key.mT / 8**0.5)
    expected = []
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        expected.append((scores[0] - scores[1])[row, :, :length, :length].square().mean())
    _, seen = trained("bert", tmp_path, terms, pair=(student, teacher), rows=rows, learning_rate=0.0, max_steps=1)
    torch.testing.assert_close(seen["step 1 loss/attentions"].float(), torch.stack(expected).mean(), rtol=1e-5, atol=0)
    assert student.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("architecture", "layers"), [("bert", "uniform"), ("llama", "last"), ("vit", "last")])
def test_the_update_does_not_depend_on_the_cut(architecture: str, layers: str, tmp_path: Path) -> None:
    terms = [Objective([TaskLoss(), Attentions("attention_score_mse", layers=layers)]) for _ in range(3)]
    _, whole = trained(architecture, tmp_path, terms[0])
    _, cut = trained(architecture, tmp_path, terms[1], per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(whole, cut)
    assert whole["step 3 loss/attentions"] > 0
    if architecture != "vit":
        names = {field.name for field in fields(DistillationConfig)}
        switch = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
        _, again = trained(architecture, tmp_path, terms[2], **{switch: True})
        assert_same(whole, again)


def test_more_heads_on_one_side_are_compared_by_their_mean(tmp_path: Path) -> None:
    student, teacher = (tiny.model("bert", layers=1, num_labels=3, seed=seed) for seed in (1, 2))
    for layer in teacher.bert.encoder.layer:
        attention = layer.attention.self
        attention.num_attention_heads, attention.attention_head_size, attention.scaling = 4, 4, 0.5
    terms = Objective([TaskLoss(), Attentions("attention_score_mse")])
    _, seen = trained("bert", tmp_path, terms, pair=(student, teacher), max_steps=1)
    assert seen["step 1 loss/attentions"] > 0


def test_what_gives_no_scores_is_refused(tmp_path: Path) -> None:
    scores = Objective([Attentions("attention_score_mse")])
    bloom = BloomForSequenceClassification(
        BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2, num_labels=3)
    )
    bloom.config.pad_token_id = 1
    with pytest.raises(HfDistillError, match="not called through Transformers' AttentionInterface"):
        trained("bert", tmp_path, scores, pair=(tiny.model("bert", num_labels=3), bloom), max_steps=0)
    with pytest.raises(HfDistillError, match="No attention scores were seen"):
        trained("resnet", tmp_path, scores, max_steps=0)
    with pytest.raises(HfDistillError, match="expected layers with attention, from 1 on"):
        trained("bert", tmp_path, Objective([Attentions("attention_score_mse", layers={0: 1})]), max_steps=0)


def test_nothing_is_left_behind_by_a_forward_that_fails() -> None:
    before = AttentionInterface.get_interface
    with pytest.raises(RuntimeError, match="a fault"), calls_noted(tiny.model("bert"), []):
        raise RuntimeError("a fault")
    assert AttentionInterface.get_interface is before


def test_a_recipe_names_it() -> None:
    (term,) = terms_of([{"attentions": {"loss": "attention_score_mse", "layers": "uniform", "weight": 2}}], "objective")
    assert isinstance(term, Attentions) and term.of_scores and term.weight == 2
    with pytest.raises(RecipeError, match="relation_heads: there is no such key"):
        terms_of([{"attentions": {"loss": "attention_score_mse", "relation_heads": 2}}], "objective")
