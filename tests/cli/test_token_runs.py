"""Whole runs of heads over tokens: teacher, control, student and report, from local files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTokenClassification, AutoTokenizer

from hfdistill import HfDistillError
from hfdistill.doctor import diagnose
from hfdistill.recipe import RecipeError, load_recipe
from hfdistill.stages import Reporter, run_recipe
from tests.recipes import inputs

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
TRAINING = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 0.02, "use_cpu": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def letters(rows: int, seed: int) -> list[list[str]]:
    """Words of one letter, each the next of the one before or "a"."""
    generator = np.random.default_rng(seed)
    return [[*"abcdefghijkl"[: generator.integers(4, 12)]] for _ in range(rows)]


def data_folder(folder: Path, tagged: bool) -> str:
    splits = {}
    for seed, (name, rows) in enumerate({"train": 40, "validation": 12, "test": 14}.items()):
        words = letters(rows, seed)
        columns: dict[str, Any] = {"text": [" ".join(each) for each in words]}
        if tagged:
            tags = [["B-X" if word in "ae" else "I-X" if word in "bf" else "O" for word in each] for each in words]
            columns = {"tokens": words, "ner_tags": tags}
        splits[name] = datasets.Dataset.from_dict(columns)
    return inputs.data_folder(folder, splits)


def tokenizer_folder(folder: Path) -> str:
    tokenizer = inputs.tokenizer()
    tokenizer.mask_token = "[UNK]"
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe_file(folder: Path, task: str, model: dict[str, Any], processor: str, **data: Any) -> Path:
    tagged = task == "token_classification"
    whole = {
        "teacher": {"config": model, "processor": processor, "finetune": {"max_steps": 12}},
        "student": {"config": model | {"hidden_size": 8}},
        "data": {
            "dataset": data_folder(folder / "data", tagged),
            "validation_split": "validation",
            "task": task,
            "max_length": 16,
            **({"label_column": "ner_tags"} if tagged else {}),
            **data,
        },
        "objective": {"alpha": 0.5, "temperature": 2.0},
        "training": TRAINING,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file


def finished(file: Path) -> tuple[Path, dict[str, Any]]:
    output = file.parent / "out"
    run_recipe(load_recipe(file, {}), output, Reporter(silent=True))
    return output, json.loads((output / "report.json").read_text())


def stage(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((folder / "stage.json").read_text()), load_file(folder / "predictions.safetensors")


def own_loss(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Mean loss a token by the model's own head."""
    total, count = 0.0, 0
    model.eval()
    for batch in batches:
        tokens = int((batch["labels"] != -100).sum())
        with torch.no_grad():
            total += float(model(**batch).loss) * tokens
        count += tokens
    return total / count


def test_a_causal_language_model(tmp_path: Path) -> None:
    output, report = finished(recipe_file(tmp_path, "causal_lm", LLAMA, "bytes"))
    facts, columns = stage(output / "seed-42" / "student")
    assert facts["problem_type"] == "causal_lm"
    # 15 of the 16 bytes of each block are predicted from the ones before.
    assert (columns["tokens"] == 15).all() and (columns["compared"] == 15).all()
    student = AutoModelForCausalLM.from_pretrained(output / "seed-42" / "student")
    text = "".join(f"{document}\x01" for document in datasets.load_dataset(str(tmp_path / "data"))["test"]["text"])
    ids = [1 if each == "\x01" else ord(each) + 3 for each in text]
    blocks = torch.tensor(ids[: len(ids) // 16 * 16]).reshape(-1, 16)
    batches = [{"input_ids": block[None], "labels": block[None]} for block in blocks]
    assert own_loss(student, batches) == pytest.approx(facts["metrics"]["loss"], rel=1e-5)
    assert facts["metrics"]["perplexity"] == pytest.approx(np.exp(facts["metrics"]["loss"]))
    assert report["models"]["student"]["metrics"]["loss"] == pytest.approx(facts["metrics"]["loss"])
    assert type(AutoTokenizer.from_pretrained(output / "seed-42" / "student")).__name__ == "ByT5Tokenizer"


def test_a_masked_language_model(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "masked_lm", BERT, tokenizer_folder(tmp_path / "words"), mask_probability=0.3)
    output, report = finished(file)
    _, columns = stage(output / "seed-42" / "student")
    assert 0.15 < float(columns["tokens"].sum() / (16 * len(columns["tokens"]))) < 0.4
    assert torch.equal(columns["tokens"], stage(output / "seed-42" / "control")[1]["tokens"])
    assert AutoModelForMaskedLM.from_pretrained(output / "seed-42" / "student").config.hidden_size == 8
    assert report["problem_type"] == "masked_lm" and report["models"]["student"]["fidelity"] is not None


def test_tagged_words_with_few_labels(tmp_path: Path) -> None:
    words = tokenizer_folder(tmp_path / "words")
    file = recipe_file(tmp_path, "token_classification", BERT, words, labelled=10, teacher_labels="all")
    output, report = finished(file)
    facts, columns = stage(output / "seed-42" / "student")
    student = AutoModelForTokenClassification.from_pretrained(output / "seed-42" / "student")
    assert [student.config.id2label[place] for place in range(3)] == ["O", "B-X", "I-X"]
    test = datasets.load_dataset(str(tmp_path / "data"))["test"]
    gold = [sum(tag == "B-X" for tag in tags) for tags in test["ner_tags"]]
    assert columns["gold"].tolist() == gold
    assert columns["tokens"].tolist() == [len(tags) for tags in test["ner_tags"]]
    assert "f1" in facts["metrics"] and report["metric"] == "f1"
    control, _ = stage(output / "seed-42" / "control")
    assert control["steps"] == facts["steps"]


def test_two_tokenizers_are_refused_for_tokens(tmp_path: Path) -> None:
    words = tokenizer_folder(tmp_path / "words")
    file = recipe_file(tmp_path, "masked_lm", BERT, words)
    content = yaml.safe_load(file.read_text())
    content["student"]["processor"] = "bytes"
    content["student"]["config"]["vocab_size"] = 384
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(HfDistillError, match="both have to read the same tokens"):
        finished(file)


def test_the_doctor_looks_at_language_models_and_taggers(tmp_path: Path) -> None:
    words = tokenizer_folder(tmp_path / "words")
    for task in ("masked_lm", "token_classification"):
        (tmp_path / task).mkdir()
        file = recipe_file(tmp_path / task, task, BERT, words)
        found = {check.name: check for check in diagnose(load_recipe(file, {}), Reporter(silent=True)).checks}
        assert not [check for check in found.values() if check.state == "bad"], found
        expected = "32 tokens in the student's head" if task == "masked_lm" else "3 classes"
        assert expected in found["classes"].finding
        assert "loss" in found["teacher's knowledge"].finding


def test_texts_are_not_mixed(tmp_path: Path) -> None:
    recipe = load_recipe("tiny_lm", {"objective.mixup": "0.8", "training.use_cpu": "true"})
    with pytest.raises(RecipeError, match="mix whole pictures"):
        run_recipe(recipe, tmp_path / "out", Reporter(silent=True))
    assert not (tmp_path / "out" / "teacher").exists()
