"""Several teachers of tokens and of pixels in a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSemanticSegmentation,
    AutoModelForTokenClassification,
)

from hfdistill.doctor import diagnose
from hfdistill.recipe import load_recipe
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.exam import Exam
from hfdistill.stages.exams import outcome_of
from hfdistill.stages.run import Run
from hfdistill.stages.settings import STUDENT, stage_settings
from tests import scenes
from tests.cli import test_region_runs as regions
from tests.cli import test_token_runs as tokens

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def saved(folder: Path, auto_class: Any, settings: dict[str, Any], seed: int, names: list[str] | None = None) -> str:
    torch.manual_seed(seed)
    options = dict(settings)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: place for place, name in enumerate(names)}
    model = auto_class.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from a uniform answer
    model.save_pretrained(folder)
    return str(folder)


def turned(folder: Path, auto_class: Any, origin: str, head: str) -> str:
    """The same model with its classes the other way round."""
    model = auto_class.from_pretrained(origin)
    layer = model.get_submodule(head)
    assert isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(0))
        layer.bias.copy_(layer.bias.flip(0))
    names = [model.config.id2label[place] for place in range(model.config.num_labels)][::-1]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: place for place, name in enumerate(names)}
    model.save_pretrained(folder)
    return str(folder)


def taught_by(file: Path, members: list[str], **teacher: Any) -> Path:
    content = yaml.safe_load(file.read_text())
    section = {"processor": content["teacher"].get("processor"), **teacher}
    section |= {"model": members[0]} if len(members) == 1 else {"ensemble": [{"model": each} for each in members]}
    file.write_text(yaml.safe_dump({**content, "teacher": section}))
    return file


def test_a_language_model_learns_from_two(tmp_path: Path) -> None:
    settings = {**tokens.LLAMA, "tie_word_embeddings": False}
    members = [saved(tmp_path / str(seed), AutoModelForCausalLM, settings, seed) for seed in (1, 2)]
    file = taught_by(tokens.recipe_file(tmp_path, "causal_lm", tokens.LLAMA, "bytes"), members, weights=[3, 1])
    output = tmp_path / "out"
    run_recipe(load_recipe(file), output, Reporter(silent=True))
    columns = load_file(output / "teacher" / "predictions.safetensors")
    text = "".join(f"{document}\x01" for document in datasets.load_dataset(str(tmp_path / "data"))["test"]["text"])
    ids = [1 if each == "\x01" else ord(each) + 3 for each in text]
    blocks = torch.tensor(ids[: len(ids) // 16 * 16]).reshape(-1, 16)
    with torch.no_grad():
        one, other = (AutoModelForCausalLM.from_pretrained(each).eval()(blocks).logits.softmax(-1) for each in members)
    probabilities = (0.75 * one + 0.25 * other)[:, :-1].gather(-1, blocks[:, 1:, None])[..., 0]
    torch.testing.assert_close(columns["loss_sum"].float(), -probabilities.log().sum(1), rtol=1e-4, atol=1e-4)
    report = json.loads((output / "report.json").read_text())
    assert report["models"]["teacher"]["model"].endswith("(mean of probabilities, 3:1)")
    assert report["models"]["student"]["fidelity"]["kl"] > 0
    found = {check.name: check for check in diagnose(load_recipe(file), Reporter(silent=True)).checks}
    assert "384 tokens in the student's head and 384 in the teacher's" in found["classes"].finding


@pytest.mark.parametrize("kind", ["tokens", "pixels"])
def test_classes_in_another_order_are_put_in_ours(kind: str, tmp_path: Path) -> None:
    """A model and the same with its classes turned round are together what it is alone."""
    if kind == "tokens":
        words = tokens.tokenizer_folder(tmp_path / "words")
        file = tokens.recipe_file(tmp_path, "token_classification", tokens.BERT, words)
        auto_class, head = AutoModelForTokenClassification, "classifier"
        alone = saved(tmp_path / "one", auto_class, tokens.BERT, 1, ["O", "B-X", "I-X"])
    else:
        scenes.need_segformer()
        file = regions.recipe_file(tmp_path)
        auto_class, head = AutoModelForSemanticSegmentation, "decode_head.classifier"
        alone = saved(tmp_path / "one", auto_class, regions.SEGFORMER, 1, scenes.NAMES)
        Run(load_recipe(file), tmp_path / "out", Reporter(silent=True)).views[1].processor.save_pretrained(alone)
    other = turned(tmp_path / "other", auto_class, alone, head)
    given = []
    for members in ([alone], [alone, other]):
        recipe = load_recipe(taught_by(file, members, processor=words if kind == "tokens" else alone))
        run = Run(recipe, tmp_path / "out", Reporter(silent=True))
        config = stage_settings(recipe, STUDENT, 42).config(tmp_path / "out")
        given.append(outcome_of(Exam(run.teacher(), None, run.prepared, "test", config)).tensors())
    assert len({float(value) for value in given[0]["loss_sum"]}) > 1
    for name, column in given[0].items():
        torch.testing.assert_close(given[1][name], column, rtol=1e-5, atol=1e-5)
