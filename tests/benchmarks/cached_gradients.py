"""How far the gradient from a language model's cache is from the exact one, and what a token takes on the disk."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfdistill.cache.top_k import LOGS, LOW, REST, TopK
from hfdistill.data.pydoc_topics import pydoc_topics
from hfdistill.losses import forward_kl, top_k_kl
from hfdistill.teachers import KeptLogits

STORES = ("float16", "uint8")
CHUNK = 16
"""Rows of logits that are compared at a time."""
Rows = dict[tuple[Any, ...], list[torch.Tensor]]
"""What is known of each row, by what it is."""


def gradient_errors(options: argparse.Namespace) -> dict[str, Any]:
    """Bytes a token for each k and type, and the relative error of the gradient for each student."""
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    windows = windows_of(
        AutoTokenizer.from_pretrained(options.model), texts_of(options.texts), options.tokens, options.window
    )
    teacher = logits_of(model, windows)
    layers = max((each for each in model.modules() if isinstance(each, nn.ModuleList)), key=len)
    skip = options.skip or max(1, len(layers) // 6)
    named = f"{len(layers) - skip} of {len(layers)} layers"
    del layers[-skip:]
    model.config.num_hidden_layers = len(layers)
    shorter = logits_of(model, windows)
    del model
    generator = torch.Generator().manual_seed(0)
    noisy = teacher + options.noise * torch.randn(teacher.shape, generator=generator)
    students = {named: shorter, f"noise {options.noise:g}": noisy}
    forms = [TopK(k, teacher.shape[-1], store=store) for k in options.kept for store in STORES]
    rows: Rows = defaultdict(list)
    for start in range(0, len(teacher), CHUNK):
        part = slice(start, start + CHUNK)
        add(rows, teacher[part], {name: each[part] for name, each in students.items()}, forms)
    known = {what: torch.cat(parts) for what, parts in rows.items()}
    entropy = known["entropy",]
    return {
        "model": options.model,
        "texts": options.texts,
        "tokens": len(teacher),
        "window": options.window,
        "classes": teacher.shape[-1],
        "entropy": float(entropy.mean()),
        "entropy_quartiles": entropy.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=entropy.dtype)).tolist(),
        "students": {name: {"divergence": float(known["divergence", name].mean())} for name in students},
        "rows": [row(form, known, list(students)) for form in forms],
    }


def row(form: TopK, known: dict[tuple[Any, ...], torch.Tensor], students: list[str]) -> dict[str, Any]:
    """What a form takes and costs: the error of all rows' gradient, and that of a middling row's."""
    errors: dict[str, dict[str, dict[str, float]]] = {}
    for name in students:
        exact = known["exact", name]
        errors[name] = {}
        for way in ("with_rest", "without_rest"):
            wrong = known[form, name, way]
            middling = float((wrong / exact).sqrt().median())
            errors[name][way] = {"all": math.sqrt(float(wrong.sum() / exact.sum())), "median_row": middling}
    return {"k": form.k, "store": form.store, "bytes": float(known["bytes", form].mean()), "errors": errors}


def add(rows: Rows, teacher: torch.Tensor, students: dict[str, torch.Tensor], forms: list[TopK]) -> None:
    """Note of some rows the squared lengths of gradients and their errors, bytes, entropy and divergences."""
    logs = teacher.log_softmax(-1)
    rows["entropy",].append(-(logs.exp() * logs).sum(-1))
    exact = {}
    for name, logits in students.items():
        student = logits.clone().requires_grad_()
        divergence = forward_kl(student, teacher, temperature=1.0)
        (exact[name],) = torch.autograd.grad(divergence.sum(), student)
        rows["divergence", name].append(divergence.detach())
        rows["exact", name].append(squared(exact[name]))
    for form in forms:
        arrays = form.packed(teacher)
        size = sum(array.nbytes for array in arrays.values())
        rows["bytes", form].append(torch.full((len(teacher),), size / len(teacher)))
        read = form.unpacked(arrays)
        rests = {"with_rest": read[REST], "without_rest": torch.full_like(read[REST], -torch.inf)}
        for way, rest in rests.items():
            kept = KeptLogits(read[LOW], read[LOGS], rest, form.temperatures)
            for name, logits in students.items():
                student = logits.clone().requires_grad_()
                values = top_k_kl(student, kept.at(1.0), indices=kept.places, temperature=1.0)
                (gradient,) = torch.autograd.grad(values.sum(), student)
                rows[form, name, way].append(squared(gradient - exact[name]))


def squared(rows: torch.Tensor) -> torch.Tensor:
    """The squared length of each row."""
    return rows.double().square().sum(-1)


@torch.no_grad()
def logits_of(model: nn.Module, windows: list[torch.Tensor]) -> torch.Tensor:
    """Of every token of the windows `(tokens, classes)`."""
    return torch.cat([model(input_ids=window[None], use_cache=False).logits[0].float() for window in windows])


def windows_of(tokenizer: Any, texts: list[str], tokens: int, window: int) -> list[torch.Tensor]:
    """So many token ids in all: the beginning of each text; where these are too few, what follows in them."""
    pieces, enough = [], 0
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long)
        if len(ids):
            pieces.append(ids.split(window))
            enough += len(pieces[-1][0])
        if enough >= tokens:
            break
    found: list[torch.Tensor] = []
    for place in range(max(map(len, pieces), default=0)):
        for piece in (each[place] for each in pieces if place < len(each)):
            left = tokens - sum(map(len, found))
            if left <= 0:
                return found
            found.append(piece[:left])
    return found


def texts_of(source: str) -> list[str]:
    """The texts of Python's help, of a file, or of a data set's train split."""
    if source == "pydoc_topics":
        return list(pydoc_topics()["train"]["text"])
    if Path(source).is_file():
        return [Path(source).read_text(encoding="utf-8")]
    return list(datasets.load_dataset(source, split="train")["text"])
