"""Whole runs over recordings: classes, transcripts a frame, and written transcripts, from local files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCTC, AutoProcessor, pipeline

import hfdistill.stages.run
from hfdistill.data.sounds import read_wave
from hfdistill.doctor import diagnose
from hfdistill.measure import speeds
from hfdistill.metrics_generation import transcript_errors
from hfdistill.recipe import load_recipe
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.run import Run
from tests import sounds
from tests.recipes import inputs

TRAINING = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01, "use_cpu": True}
ROWS = {"train": 24, "validation": 6, "test": 7}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    quick = functools.partial(speeds, repetitions=3, warmup=0, batch_size=2)
    monkeypatch.setattr(hfdistill.stages.run, "speeds", quick)


def recipe_file(folder: Path, made: Any, teacher: dict[str, Any], student: dict[str, Any], **data: Any) -> Path:
    splits = {name: made(rows, seed) for seed, (name, rows) in enumerate(ROWS.items())}
    whole = {
        "teacher": teacher,
        "student": student,
        "data": {"dataset": inputs.data_folder(folder / "data", splits), "validation_split": "validation", **data},
        "objective": {"alpha": 0.5},
        "training": TRAINING,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file


def finished(file: Path) -> tuple[Path, dict[str, Any]]:
    """Run it, and again: nothing is done anew."""
    recipe, output = load_recipe(file, {}), file.parent / "out"
    run_recipe(recipe, output, Reporter(silent=True))
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "close", lambda self, changed: None)
        run_recipe(recipe, output, Reporter(silent=True))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == times
    return output, json.loads((output / "report.json").read_text())


def stage(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((folder / "stage.json").read_text()), load_file(folder / "predictions.safetensors")


def states(file: Path) -> dict[str, str]:
    return {check.name: check.state for check in diagnose(load_recipe(file, {}), Reporter(silent=True)).checks}


def test_classes_heard_in_two_ways(tmp_path: Path) -> None:
    """A spectrogram for the teacher, samples for the student, cut at the same places."""
    file = recipe_file(
        tmp_path,
        sounds.classes,
        {"config": sounds.SPECTROGRAM, "finetune": {"max_steps": 20}},
        {"config": sounds.WAV2VEC2},
        sampling_rate=sounds.RATE,
        max_seconds=0.25,
    )
    assert states(file)["inputs"] == "note"
    output, _ = finished(file)
    facts, columns = stage(output / "seed-42" / "student")
    assert facts["problem_type"] == "single_label_classification" and columns["logits"].shape == (7, 3)
    assert set(json.loads((output / "speed.json").read_text())["models"]) == {"teacher", "student"}
    heard = pipeline("audio-classification", str(output / "seed-42" / "student"))
    answer = heard(sounds.tone(300, 2000).astype("float32"))
    assert {each["label"] for each in answer} == set(sounds.CLASSES)


def test_characters_a_frame(tmp_path: Path) -> None:
    file = recipe_file(
        tmp_path,
        sounds.transcribed,
        {"config": sounds.WAV2VEC2 | {"model_type": "hubert"}, "finetune": {"max_steps": 40}},
        {"config": sounds.WAV2VEC2},
        task="ctc",
        label_column="text",
        sampling_rate=sounds.RATE,
        labelled=12,
    )
    assert states(file)["teacher's knowledge"] == "note"
    output, report = finished(file)
    student = output / "seed-42" / "student"
    assert "word error rate" in (output / "report.md").read_text() and report["seeds"]
    facts, columns = stage(student)
    assert facts["problem_type"] == "ctc" and columns["texts"].tolist() == [1.0] * 7
    model, processor = AutoModelForCTC.from_pretrained(student).eval(), AutoProcessor.from_pretrained(student)
    teacher = AutoModelForCTC.from_pretrained(output / "teacher").eval()
    test = sounds.transcribed(7, 2)
    for row, wave in enumerate(read(test)):
        heard = processor(wave, sampling_rate=sounds.RATE, return_tensors="pt")
        labels = processor(text=test["text"][row], return_tensors="pt").input_ids
        with torch.no_grad():
            answer = model(**heard, labels=labels)
            taught = teacher(**heard).logits[0].log_softmax(-1)
        assert float(columns["loss_sum"][row]) == pytest.approx(float(answer.loss), abs=1e-4)
        own = answer.logits[0].log_softmax(-1)
        assert float(columns["kl_sum"][row]) == pytest.approx(float((taught.exp() * (taught - own)).sum()), abs=1e-4)
        assert int(columns["compared"][row]) == len(own)
        counts = transcript_errors(processor.batch_decode(own.argmax(-1)[None])[0], test["text"][row])
        assert {name: int(columns[name][row]) for name in counts} == counts
    assert stage(output / "teacher")[0]["metrics"]["loss"] < stage(output / "seed-42" / "control")[0]["metrics"]["loss"]


def read(dataset: datasets.Dataset, rate: int = sounds.RATE) -> list[Any]:
    return [read_wave(dataset, "audio", row, rate, Path()) for row in range(len(dataset))]


def test_transcripts_that_are_written(tmp_path: Path) -> None:
    """By a Whisper that is used as it is, and a student of one of its two decoder layers."""
    file = recipe_file(
        tmp_path,
        sounds.transcribed,
        {"model": sounds.whisper_folder(tmp_path / "whisper", layers=2)},
        {"from_teacher": {"decoder_layers": 1}},
        task="seq2seq_lm",
        label_column="text",
        generation={"language": "en", "task": "transcribe", "max_new_tokens": 6},
    )
    output, _ = finished(file)
    facts, columns = stage(output / "seed-42" / "student")
    assert facts["problem_type"] == "speech_seq2seq"
    test = sounds.transcribed(7, 2)
    # Letters and spaces, two further tokens at the front that say language and task, one without times, and the end.
    assert columns["tokens"].tolist() == [len(text) + 4 for text in test["text"]]
    hear = pipeline("automatic-speech-recognition", str(output / "seed-42" / "student"))
    wave = {"raw": read(test, 16_000)[0], "sampling_rate": 16_000}
    options = {"language": "en", "task": "transcribe", "max_new_tokens": 6}
    counts = transcript_errors(hear(wave, generate_kwargs=options)["text"], test["text"][0])
    assert {name: int(columns[name][0]) for name in counts} == counts
    assert {"wer", "cer", "loss", "accuracy"} <= facts["metrics"].keys()


def test_a_decoder_of_bytes_from_a_config(tmp_path: Path) -> None:
    file = recipe_file(
        tmp_path,
        sounds.transcribed,
        {"config": sounds.SPEECH_TO_TEXT, "processor": "bytes", "finetune": {"max_steps": 12}},
        {"config": sounds.SPEECH_TO_TEXT | {"d_model": 8}},
        task="seq2seq_lm",
        label_column="text",
        max_target_length=12,
    )
    output, _ = finished(file)
    assert stage(output / "seed-42" / "student")[0]["metrics"]["wer"] > 0
