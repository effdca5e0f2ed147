"""Students with adapters on bases that were saved before: a language model and two classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from hfdistill import DistillationTrainer
from tests import by_sgd, tiny
from tests.trainer.trajectory import examples

SINGLE = "single_label_classification"
AUTO_CLASSES = {
    "llama": AutoModelForCausalLM,
    "bert": AutoModelForSequenceClassification,
    "vit": AutoModelForImageClassification,
}
KINDS = tuple(AUTO_CLASSES)
TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"], "vit": ["q_proj", "v_proj"]}


def lora(kind: str, **options: Any) -> LoraConfig:
    """Adapters of rank 2 without dropout."""
    return LoraConfig(**{"r": 2, "target_modules": TARGETS[kind], **options})


def language_model(layers: int, seed: int, **options: Any) -> PreTrainedModel:
    """A tiny Llama that writes; `options` are of its config."""
    settings = {**tiny.config("llama", layers=layers).to_dict(), **options}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**settings, "tie_word_embeddings": False}))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def saved(kind: str, folder: Path, layers: int = 1, seed: int = 1, **options: Any) -> Path:
    """The folder of a base with its head, both of random weights."""
    if not folder.exists():
        network = (
            language_model(layers, seed, **options) if kind == "llama" else tiny.model(kind, layers=layers, seed=seed)
        )
        network.save_pretrained(folder)
    return folder


def loaded(kind: str, folder: Path, **options: Any) -> PreTrainedModel:
    """A base as a user loads it."""
    return AUTO_CLASSES[kind].from_pretrained(folder, **options)


def data(kind: str) -> list[dict[str, torch.Tensor]]:
    """Twenty-four examples with labels."""
    if kind != "llama":
        return examples(kind, SINGLE)
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in torch.randint(5, tiny.LENGTH + 1, (24,), generator=generator).tolist():
        tokens = torch.randint(4, tiny.VOCABULARY, (tiny.LENGTH,), generator=generator)
        mask = (torch.arange(tiny.LENGTH) < length).long()
        labels = tokens.where(mask.bool(), -100)
        rows.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return rows


def batch(kind: str, rows: int = 4) -> dict[str, torch.Tensor]:
    """Inputs without labels."""
    first = data(kind)[:rows]
    return {key: torch.stack([row[key] for row in first]) for key in first[0] if key != "labels"}


def run(
    kind: str,
    folder: Path,
    peft_config: PeftConfig | None = None,
    student: Any = None,
    teacher: Any = None,
    **arguments: Any,
) -> DistillationTrainer:
    """A trainer of a student from `folder / "base"` that has not begun."""
    if teacher is None:
        teacher = loaded(kind, saved(kind, folder / "teacher", layers=2, seed=2))
    rows = data(kind)
    return DistillationTrainer(
        loaded(kind, saved(kind, folder / "base")) if student is None else student,
        by_sgd.arguments(folder / "out", **{"alpha": 0.6, **arguments}),
        teacher_model=teacher,
        peft_config=peft_config,
        train_dataset=rows,
        eval_dataset=rows[:8],
    )
