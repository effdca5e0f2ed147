"""Terms on attention: relations of queries, keys and values taken at their projections, and maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, ModernBertConfig, ModernBertModel

from hfdistill import Attentions, HfDistillError, Objective, TaskLoss
from hfdistill.features.attention_names import projections
from hfdistill.losses import attention_map_kl, attention_relation
from tests import tiny
from tests.features.runs import trained
from tests.trainer.trajectory import assert_same, examples


def batch_of(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key != "labels"}


def test_relations_are_those_of_the_layer_s_projections(tmp_path: Path) -> None:
    """The logged part against queries, keys and values that are worked out from the layer's input by hand."""
    student, teacher = (tiny.model("bert", layers=2, num_labels=3, seed=seed) for seed in (1, 2))
    rows = examples("bert", "single_label_classification", unlabelled=False)[:8]
    batch = batch_of(rows)
    terms = Objective([TaskLoss(), Attentions(layers={1: 2}, relation_heads=4)])
    expected = torch.tensor(0.0)
    with torch.no_grad():
        inputs = [model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher)]
        for kind in ("query", "key", "value"):
            ours, theirs = (
                model.bert.encoder.layer[place].attention.self.get_submodule(kind)(hidden[place])
                for model, hidden, place in zip((student, teacher), inputs, (0, 1), strict=True)
            )
            values = attention_relation(ours, theirs, relation_heads=4, attention_mask=batch["attention_mask"])
            expected += values.mean()
    _, seen = trained("bert", tmp_path, terms, pair=(student, teacher), rows=rows, learning_rate=0.0, max_steps=1)
    torch.testing.assert_close(seen["step 1 loss/attentions"].float(), expected, rtol=1e-5, atol=0)
    assert student.config._attn_implementation == "sdpa"


def test_maps_are_those_of_eager_attention(tmp_path: Path) -> None:
    student, teacher = (tiny.model("bert", layers=1, num_labels=3, seed=seed) for seed in (1, 2))
    rows = examples("bert", "single_label_classification", unlabelled=False)[:8]
    terms = Objective([TaskLoss(), Attentions("attention_map_kl")])
    _, seen = trained("bert", tmp_path, terms, pair=(student, teacher), rows=rows, learning_rate=0.0, max_steps=1)
    assert student.config._attn_implementation == "eager"
    batch = batch_of(rows)
    with torch.no_grad():
        ours, theirs = (model(**batch, output_attentions=True).attentions[-1] for model in (student, teacher))
    expected = attention_map_kl(ours, theirs, attention_mask=batch["attention_mask"]).mean()
    torch.testing.assert_close(seen["step 1 loss/attentions"].float(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "llama", "vit", "deit", "modernbert"])
def test_the_update_does_not_depend_on_the_cut(architecture: str, tmp_path: Path) -> None:
    heads = {"relation_heads": 2}
    terms = [Objective([TaskLoss(), Attentions(**heads)]) for _ in range(2)]  # type: ignore[arg-type]
    _, whole = trained(architecture, tmp_path, terms[0])
    _, cut = trained(architecture, tmp_path, terms[1], per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(whole, cut)
    assert whole["step 3 loss/attentions"] > 0


def fused(name: str) -> Any:
    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    if name == "bloom":
        return BloomForCausalLM(BloomConfig(vocab_size=11, hidden_size=8, n_layer=1, n_head=2))
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return ModernBertModel(ModernBertConfig(vocab_size=11, pad_token_id=0, **small))


@pytest.mark.parametrize("name", ["gpt2", "bloom", "modernbert"])
def test_fused_projections_are_taken_apart(name: str) -> None:
    """Whichever way they are interleaved: setting the values' share of the weights to 0 makes the values 0 alone."""
    model = fused(name)
    (layer,) = projections(model, None)
    fused_layer = model.get_submodule(layer["value"].module)
    with torch.no_grad():
        inputs = torch.randn(1, 3, 8)
        parts = {kind: projection(fused_layer(inputs)) for kind, projection in layer.items()}
        assert {part.shape for part in parts.values()} == {(1, 3, 8)}
        whole = torch.cat([parts[kind] for kind in ("query", "key", "value")], -1)
        torch.testing.assert_close(whole.sort().values, fused_layer(inputs).sort().values)
    if name == "bloom":
        # Head by head: the first 12 of 24 outputs are the first head's queries, keys and values, 4 of each.
        torch.testing.assert_close(parts["key"][..., :4], fused_layer(inputs)[..., 4:8])
        torch.testing.assert_close(parts["key"][..., 4:], fused_layer(inputs)[..., 16:20])
    else:
        torch.testing.assert_close(parts["key"], fused_layer(inputs)[..., 8:16])


def test_what_has_no_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="No queries, keys and values were found in ResNet"):
        trained("resnet", tmp_path, Objective([Attentions()]), max_steps=0)
    with pytest.raises(HfDistillError, match="relation_heads got 5 for widths 16 and 24"):
        trained("bert", tmp_path, Objective([Attentions(relation_heads=5)]), max_steps=0)
    with pytest.raises(HfDistillError, match="expected layers with attention, from 1 on"):
        trained("bert", tmp_path, Objective([Attentions(layers={0: 1}, relation_heads=2)]), max_steps=0)
    with pytest.raises(HfDistillError, match="kinds="):
        Attentions(kinds=["queries"])  # type: ignore[arg-type]
