"""What a model that writes texts is worth on a split: the loss of the given ones, and what it writes itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from hfdistill.contract import bare
from hfdistill.data.text_to_text import TextPairs
from hfdistill.metrics_generation import ROUGE, rouge_scores
from hfdistill.recipe import RecipeError
from hfdistill.stages.exam import Exam
from hfdistill.stages.scores import Scores, token_scores
from hfdistill.views import accepted_names

TOKENS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
"""All that a model's own settings say about writing here: the rest is the recipe's, and the same for all models."""


def text_scores(exam: Exam) -> Scores:
    """Score a model that writes texts: sums over the given tokens and, unless the recipe wants none, its own texts."""
    given = token_scores(exam)
    section = exam.prepared.data.section
    if section.generation is None or not exam.writes:
        return given
    source = exam.own_examples().source
    assert isinstance(source, TextPairs), "texts are written from texts"
    rules = writing_rules(bare(exam.model), section.generation, section.max_target_length)
    texts = zip(written_texts(exam, rules, source.tokenizer), source.wanted(), strict=True)
    found = [rouge_scores(*pair) for pair in texts]
    columns = {name: torch.tensor([each[name] for each in found], dtype=torch.float64) for name in ROUGE}
    return Scores(given.columns | columns | {"texts": torch.ones(len(found), dtype=torch.float64)})


def writing_rules(model: nn.Module, options: Mapping[str, Any], longest: int) -> GenerationConfig:
    """How a model writes: by these options, greedily where they say nothing, at most `longest` tokens."""
    assert isinstance(model, PreTrainedModel), "a model of another kind writes nothing"
    own, config = model.generation_config.to_dict(), model.config.to_dict()
    tokens = {name: config.get(name) if own.get(name) is None else own[name] for name in TOKENS}
    length = {} if "max_length" in options else {"max_new_tokens": longest}
    settings = {**tokens, "do_sample": False, "num_beams": 1, **length, **options}
    return GenerationConfig(**settings)  # type: ignore[no-untyped-call]


def written_texts(exam: Exam, rules: GenerationConfig, tokenizer: Any) -> list[str]:
    """What a model writes for each row of a split, in its order. Errors: RecipeError for rules it cannot follow."""
    model: Any = bare(exam.model)  # adapters lie within it
    examples, config = exam.own_examples(), exam.config
    model.to(config.device)
    model.eval()
    read = set(accepted_names(model)) - {"labels"}
    size = int(config.eval_batch_size)
    mixed = torch.bfloat16 if config.bf16 else torch.float16
    texts: list[str] = []
    with _rules_of(model, rules), torch.no_grad():
        for start in exam.bar(range(0, len(examples), size), "Writing"):
            batch = examples.__getitems__(range(start, min(start + size, len(examples))))
            inputs = {name: value.to(config.device) for name, value in batch.items() if name in read}
            with torch.autocast(config.device.type, dtype=mixed, enabled=config.bf16 or config.fp16):
                try:
                    tokens = model.generate(**inputs)
                except ValueError as error:
                    raise RecipeError(f"data.generation: {' '.join(str(error).split())}") from error
            texts += [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    return texts


@contextmanager
def _rules_of(model: PreTrainedModel, rules: GenerationConfig) -> Iterator[None]:
    """Nothing but these rules: generate() fills what its argument leaves open from the model's own settings."""
    former = model.generation_config
    model.generation_config = rules
    try:
        yield
    finally:
        model.generation_config = former
