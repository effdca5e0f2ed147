"""A teacher's head over a vocabulary runs only where a term reads its logits."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import LlamaForCausalLM

from hfdistill import DistillationTrainer, Logits, Objective, TaskLoss
from hfdistill.features import HiddenStates, Module
from tests import by_sgd
from tests.tasks import token_models
from tests.tasks import trajectory as of_tokens
from tests.teachers.test_forward import live
from tests.trainer.trajectory import assert_same


def of_language(head: str, objective: Objective, folder: Path, teacher: nn.Module | None = None) -> DistillationTrainer:
    """A trainer of a student with a head over a vocabulary."""
    return DistillationTrainer(
        token_models.model(head, seed=1),
        by_sgd.arguments(folder),
        teacher_model=token_models.model(head, layers=2, seed=2) if teacher is None else teacher,
        objective=objective,
        train_dataset=of_tokens.examples(head),
        data_collator=token_models.padded,
    )


def products(trainer: DistillationTrainer) -> list[int]:
    """How many classes the products with the teacher's head have in one training."""
    head = live(trainer).model.get_output_embeddings()  # type: ignore[operator]
    made: list[int] = []
    handle = head.register_forward_hook(lambda module, given, output: made.append(output.shape[-1]))
    trainer.train()
    handle.remove()
    return made


@pytest.mark.parametrize("head", ["llama", "gpt2", "bert_masked", "t5", "bart", "whisper"])
def test_a_head_does_not_run_where_no_term_reads_its_logits(head: str, tmp_path: Path) -> None:
    def insides() -> Objective:
        part = "decoder" if head in ("t5", "bart", "whisper") else None
        return Objective([TaskLoss(0.5), HiddenStates(part=part)])

    unread = of_language(head, insides(), tmp_path)
    assert set(products(unread)) == {0}
    read = of_language(head, Objective([*insides().terms, Logits()]), tmp_path)
    assert set(products(read)) == {token_models.VOCABULARY}
    assert "forward" not in vars(live(unread).model.get_output_embeddings())  # type: ignore[operator]
    whole = of_language(head, insides(), tmp_path)
    live(whole).arguments, live(whole)._replaced = {}, None
    assert set(products(whole)) == {token_models.VOCABULARY}
    assert_same(by_sgd.seen_in(unread), by_sgd.seen_in(whole))


class Bare(LlamaForCausalLM):
    """A decoder that needs all of its logits."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        outputs = super().forward(*arguments, **named)
        outputs.logits[..., 1].sum()
        return outputs


def test_a_decoder_whose_head_is_not_understood_gives_the_last_logits_alone(tmp_path: Path) -> None:
    given = Bare(token_models.model("llama", layers=2).config)
    given.forward.__func__.__signature__ = inspect.signature(LlamaForCausalLM.forward)  # type: ignore[attr-defined]
    trainer = of_language("llama", Objective([TaskLoss(0.5), HiddenStates()]), tmp_path, given)
    batch = token_models.padded(of_tokens.examples("llama")[:4])
    del batch["labels"]
    assert live(trainer)(batch).logits.shape[1:] == (1, token_models.VOCABULARY)


@pytest.mark.parametrize("module", ["lm_head", "model.layers.0.mlp"])
def test_a_term_that_looks_at_the_head_has_it_run(module: str, tmp_path: Path) -> None:
    trainer = of_language("llama", Objective([TaskLoss(0.5), Module(module, loss="hint")]), tmp_path)
    assert set(products(trainer)) == {token_models.VOCABULARY if module == "lm_head" else 0}
