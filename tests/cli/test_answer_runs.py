"""Whole runs of models that answer questions, from local files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
)

from hfdistill import HfDistillError
from hfdistill.doctor import diagnose
from hfdistill.measure import speeds
from hfdistill.metrics_text import answer_scores
from hfdistill.recipe import load_recipe
from hfdistill.stages import Reporter, run, run_recipe
from tests.cli.test_token_runs import BERT, TRAINING, tokenizer_folder
from tests.recipes import inputs


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(run, "speeds", functools.partial(speeds, repetitions=1, warmup=0))


def recipe_file(folder: Path, answered: bool = False, **data: Any) -> Path:
    """With `answered` each question has an answer, so that a model has to give one."""
    rows = {"train": 48, "validation": 16, "test": 24}
    splits = {name: inputs.questions(count, seed) for seed, (name, count) in enumerate(rows.items())}
    if answered:
        splits = {name: split.filter(lambda row: bool(row["answers"]["text"])) for name, split in splits.items()}
    words = tokenizer_folder(folder / "words")
    whole = {
        "teacher": {"config": BERT, "processor": words, "finetune": {"max_steps": 12}},
        "student": {"config": BERT | {"hidden_size": 8}},
        "data": {
            "dataset": inputs.data_folder(folder / "data", splits),
            "validation_split": "validation",
            "task": "question_answering",
            "max_length": 10,
            "doc_stride": 2,
            **data,
        },
        "training": TRAINING,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file


def answer(model: Any, tokenizer: Any, question: str, context: str) -> str:
    """The best of all spans of at most two tokens over all windows, by the model itself; letters are two apart."""
    letters, best = context.split(), (-np.inf, "")
    for start in (0, 4):
        window = letters[start : start + 6]
        encoded = tokenizer(question, " ".join(window), return_tensors="pt")
        with torch.no_grad():
            given = model(**encoded)
        begins, ends = given.start_logits[0].double(), given.end_logits[0].double()
        for first in range(len(window)):
            for last in range(first, min(first + 2, len(window))):
                score = float(begins[3 + first] + ends[3 + last])
                best = max(best, (score, " ".join(window[first : last + 1])))
    return best[1]


def test_questions_with_few_labels(tmp_path: Path) -> None:
    """Windows of six letters, two of them shared; what counts is the answer to each question."""
    file = recipe_file(tmp_path, answered=True, labelled=20, max_answer_length=2)
    output = tmp_path / "out"
    report = run_recipe(load_recipe(file, {}), output, Reporter(silent=True))
    assert report is not None
    folder = output / "seed-42" / "student"
    facts, columns = json.loads((folder / "stage.json").read_text()), load_file(folder / "predictions.safetensors")
    assert facts["problem_type"] == "question_answering" and {"f1", "exact_match", "loss"} <= facts["metrics"].keys()
    assert columns["questions"].tolist() == [1.0] * 18
    # Two windows a question, in each a start and an end.
    assert columns["tokens"].tolist() == [4.0] * 18 and columns["compared"].tolist() == [4.0] * 18
    student = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    test = datasets.load_dataset(str(tmp_path / "data"))["test"]
    scores = [
        answer_scores(answer(student, inputs.tokenizer(), row["question"], row["context"]), row["answers"]["text"])
        for row in test
    ]
    assert 0 < sum(f1 for _, f1 in scores) < 18
    assert columns["exact"].tolist() == [exact for exact, _ in scores]
    assert columns["f1"].tolist() == pytest.approx([f1 for _, f1 in scores])
    assert json.loads((output / "report.json").read_text())["metric"] == "f1"
    assert json.loads((output / "seed-42" / "control" / "stage.json").read_text())["steps"] == facts["steps"]
    assert (output / "speed.json").is_file()
    before = (folder / "stage.json").stat().st_mtime_ns
    run_recipe(load_recipe(file, {}), output, Reporter(silent=True))
    assert (folder / "stage.json").stat().st_mtime_ns == before


def test_the_doctor_looks_at_questions(tmp_path: Path) -> None:
    file = recipe_file(tmp_path)
    found = {check.name: check for check in diagnose(load_recipe(file, {}), Reporter(silent=True)).checks}
    assert not [check for check in found.values() if check.state == "bad"], found
    assert "places among the tokens" in found["classes"].finding
    assert "exact_match" in found["teacher's knowledge"].finding


def test_a_student_whose_tokenizer_knows_no_parts_learns_from_one_that_does(tmp_path: Path) -> None:
    """DistilBERT gets BERT's tokens, so that BERT reads which of them are the question; its own tokenizer is kept."""
    tokenizer = inputs.tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    folder = tmp_path / "distilbert"
    sizes = {"vocab_size": 32, "dim": 8, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}
    DistilBertForQuestionAnswering(DistilBertConfig(**sizes, max_position_embeddings=40)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changed = {"student.config": "null", "student.model": str(folder), "control": "false"}
    made = run.Run(load_recipe(recipe_file(tmp_path), changed), tmp_path / "out", Reporter(silent=True))
    assert made.prepared.shared
    batch = made.prepared.student_train().__getitems__([0, 1])
    assert torch.equal(batch["token_type_ids"][0, :4], torch.tensor([0, 0, 0, 1]))
    assert made.views[0].processor.model_input_names == ["input_ids", "attention_mask"]
    run_recipe(made.recipe, tmp_path / "out", Reporter(silent=True))
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "seed-42" / "student")
    assert saved.model_input_names == ["input_ids", "attention_mask"]


def test_two_tokenizers_are_refused(tmp_path: Path) -> None:
    file = recipe_file(tmp_path)
    inputs.tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(HfDistillError, match="for question_answering both have to read the same tokens"):
        changed = {"student.processor": str(tmp_path / "other"), "student.config.max_position_embeddings": "9"}
        run_recipe(load_recipe(file, changed), tmp_path / "out", Reporter(silent=True))
