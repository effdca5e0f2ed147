"""Whole runs of models that write texts from texts, from local files."""

from __future__ import annotations

import functools
import inspect
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration, ByT5Tokenizer

from hfdistill._atomic import write_json
from hfdistill.doctor import diagnose
from hfdistill.measure import speeds
from hfdistill.metrics_generation import rouge_scores
from hfdistill.recipe import RecipeError, load_recipe
from hfdistill.stages import Reporter, run, run_recipe, texts
from tests.cli.test_token_runs import TRAINING
from tests.recipes import inputs

T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 384,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


OFTEN = "Return the name of a file"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(run, "speeds", functools.partial(speeds, repetitions=1, warmup=0))


def summaries() -> list[dict[str, str]]:
    """What Python says of its own functions, and the first line of that, which sums it up."""
    found = []
    for module in (json, shutil, textwrap, inspect):
        for name in sorted(vars(module)):
            text = inspect.getdoc(vars(module)[name])
            if inspect.isfunction(vars(module)[name]) and text is not None and "\n\n" in text:
                first, _, rest = text.partition("\n\n")
                found.append({"text": rest[:60], "summary": " ".join(first.split())[:40]})
    return found


def recipe_file(folder: Path, **sections: dict[str, Any]) -> Path:
    rows = summaries()
    places = {"train": slice(0, 30), "validation": slice(30, 36), "test": slice(36, 44)}
    splits = {name: datasets.Dataset.from_list(rows[place]) for name, place in places.items()}
    whole: dict[str, dict[str, Any]] = {
        "teacher": {"config": T5, "processor": "bytes", "finetune": {"max_steps": 8}},
        "student": {"config": T5 | {"d_model": 8}},
        "data": {
            "dataset": inputs.data_folder(folder / "data", splits),
            "validation_split": "validation",
            "task": "seq2seq_lm",
            "text_columns": "text",
            "label_column": "summary",
            "prefix": "sum up: ",
            "max_target_length": 12,
        },
        "training": TRAINING,
    }
    for name, changes in sections.items():
        whole[name] = whole[name] | changes
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file


def test_summaries_by_a_model_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model writes no words, so that some are put before its texts; these it writes alone as in a batch."""
    write = texts.written_texts
    monkeypatch.setattr(
        texts, "written_texts", lambda *exam: [f"{OFTEN} {place} {text}" for place, text in enumerate(write(*exam))]
    )
    file = recipe_file(tmp_path)
    output = tmp_path / "out"
    report = run_recipe(load_recipe(file, {}), output, Reporter(silent=True))
    assert report is not None and json.loads((output / "report.json").read_text())["metric"] == "rougeLsum"
    folder = output / "seed-42" / "student"
    facts, columns = json.loads((folder / "stage.json").read_text()), load_file(folder / "predictions.safetensors")
    test = datasets.load_dataset(str(tmp_path / "data"))["test"]
    assert columns["tokens"].tolist() == [min(len(row["summary"].encode()) + 1, 12) for row in test]
    student, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), ByT5Tokenizer()
    losses, scores = [], []
    for place, row in enumerate(test):
        encoded = tokenizer("sum up: " + row["text"], return_tensors="pt")
        labels = tokenizer(row["summary"], truncation=True, max_length=12, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            losses.append(float(student(**encoded, labels=labels).loss) * labels.shape[1])
            written = student.generate(**encoded, max_new_tokens=12, do_sample=False, num_beams=1)
        text = tokenizer.decode(written[0], skip_special_tokens=True)
        scores.append(rouge_scores(f"{OFTEN} {place} {text}", row["summary"]))
    assert len({each["rouge1"] for each in scores}) > 2
    assert columns["loss_sum"].tolist() == pytest.approx(losses, rel=1e-4)
    for name in scores[0]:
        assert columns[name].tolist() == pytest.approx([each[name] for each in scores]), name
    assert columns["texts"].tolist() == [1.0] * 8 and facts["metrics"]["perplexity"] > 1
    assert set(json.loads((output / "speed.json").read_text())["models"]) == {"teacher", "student"}
    before = (folder / "stage.json").stat().st_mtime_ns
    run_recipe(load_recipe(file, {}), output, Reporter(silent=True))
    assert (folder / "stage.json").stat().st_mtime_ns == before


def bart_folder(folder: Path) -> str:
    """A BART of bytes that always begins with the same token, and whose own settings ask for long texts."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 80}
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(vocab_size=384, forced_eos_token_id=1, **sizes, **heads, **tokens))
    model.generation_config.forced_bos_token_id = ord("T") + 3
    model.generation_config.min_length = 30
    model.generation_config.num_beams = 4
    model.save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured once above."""
    monkeypatch.setattr(run.Run, "_measure", lambda self: write_json(self.output / "speed.json", {}))


@pytest.mark.usefixtures("unmeasured")
def test_all_models_write_by_the_recipe_s_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are a model's own, such as the one that a text begins with; how long a text is the recipe says."""
    written: list[torch.Tensor] = []
    generate = BartForConditionalGeneration.generate

    def kept(self: Any, **inputs: Any) -> torch.Tensor:
        written.append(generate(self, **inputs))
        return written[-1]

    monkeypatch.setattr(BartForConditionalGeneration, "generate", kept)
    teacher = bart_folder(tmp_path / "bart")
    file = recipe_file(
        tmp_path,
        teacher={"model": teacher, "config": None, "finetune": None, "processor": None},
        student={"model": teacher, "config": None},
        data={"generation": {"num_beams": 2, "max_new_tokens": 6}, "max_eval_samples": 4},
    )
    run_recipe(load_recipe(file, {"control": "false"}), tmp_path / "out", Reporter(silent=True))
    assert len(written) == 4  # two models, two splits
    for tokens in written:
        assert tokens.shape[0] == 4 and tokens.shape[1] <= 7 and (tokens[:, 1] == ord("T") + 3).all()
    student = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out" / "seed-42" / "student")
    assert student.generation_config.num_beams == 4 and student.generation_config.min_length == 30


@pytest.mark.usefixtures("unmeasured")
def test_without_generation_the_loss_is_measured(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, data={"generation": None})
    run_recipe(load_recipe(file, {"control": "false"}), tmp_path / "out", Reporter(silent=True))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["metric"] == "loss"
    assert "texts" not in load_file(tmp_path / "out" / "seed-42" / "student" / "predictions.safetensors")


def test_the_doctor_looks_at_writers_without_waiting_for_them(tmp_path: Path) -> None:
    file = recipe_file(tmp_path)
    found = {check.name: check for check in diagnose(load_recipe(file, {}), Reporter(silent=True)).checks}
    assert not [check for check in found.values() if check.state == "bad"], found
    assert "384 tokens in the student's head" in found["classes"].finding
    assert "decoder_input_ids" in found["inputs"].finding and "rouge" not in found["teacher's knowledge"].finding


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"config": T5 | {"pad_token_id": 3}}}, r"teacher.config.pad_token_id: got 3, .* is 0"),
        ({"student": {"config": T5 | {"decoder_start_token_id": None}}}, "student.config.decoder_start_token_id"),
        ({"student": {"config": {"model_type": "bert"}}}, "bert has no decoder beside an encoder"),
        ({"data": {"generation": {"num_beans": 2}}}, "num_beams"),
        ({"data": {"generation": {"do_sample": True}}}, "without chance"),
        ({"data": {"generation": {"max_new_tokens": 0}}}, "data.generation: .*max_new_tokens"),
        ({"data": {"labelled": 10}}, "a decoder reads its target"),
        ({"data": {"task": "causal_lm", "label_column": "label"}}, "it is for data.task seq2seq_lm"),
        ({"data": {"text_columns": ["text", "summary"]}}, "expected one, the text to write from"),
        ({"data": {"label_column": "nothing"}}, "there is no column 'nothing'"),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, **sections)
    with pytest.raises(RecipeError, match=message):
        run_recipe(load_recipe(file, {}), tmp_path / "out", Reporter(silent=True))
