"""Run folders as `hfdistill run` leaves them, with predictions made up to order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

EXAMPLES = 1000


def classes(right: int, *, sure: float = 2.0) -> np.ndarray:
    """Logits of three classes for labels 0, 1, 2, 0, ...: the first `right` examples are right, the others one off."""
    labels = label_column()
    decided = np.where(np.arange(EXAMPLES) < right, labels, (labels + 1) % 3)
    return (np.eye(3)[decided] * sure).astype(np.float32)


def label_column() -> np.ndarray:
    return np.arange(EXAMPLES) % 3


def write_stage(folder: Path, logits: np.ndarray, labels: np.ndarray | None = None, **facts: Any) -> None:
    """A finished stage of a classifier or a regression."""
    labels = label_column() if labels is None else labels
    write_columns(folder, {"logits": logits.astype(np.float32), "labels": labels}, **facts)


def write_columns(folder: Path, columns: Mapping[str, np.ndarray], **facts: Any) -> None:
    """A finished stage of any task."""
    folder.mkdir(parents=True)
    save_file(dict(columns), folder / "predictions.safetensors")
    stage = {
        "stage": folder.name,
        "seed": 1,
        "model": f"some/{folder.name}",
        "revision": None,
        "problem_type": "single_label_classification",
        "seconds": 12.0,
        "steps": 40,
        "examples_seen": 1280,
        "parameters": 400_000 if folder.name == "teacher" else 100_000,
        "bytes": 1_600_000 if folder.name == "teacher" else 400_000,
        "metrics": {},
        "log_history": [
            {"step": step, "loss": 2 / step, "loss/task": 1 / step, "eval_accuracy": 1 - 1 / step} for step in (10, 20)
        ],
        "settings": {"learning_rate": 0.001},
        "fingerprint": "0",
    }
    (folder / "stage.json").write_text(json.dumps(stage | facts))


def write_run(
    folder: Path,
    seeds: Mapping[int, Mapping[str, int]],
    *,
    teacher: int | None = 950,
    recipe: str = "student: {model: some/student}\n",
) -> Path:
    """A run whose stages get so many of the thousand test examples right."""
    write_frame(folder, recipe)
    if teacher is not None:
        write_stage(folder / "teacher", classes(teacher), seed=None, revision="abc123")
    for seed, stages in seeds.items():
        for name, right in stages.items():
            write_stage(folder / f"seed-{seed}" / name, classes(right), seed=seed)
    return folder


def write_frame(folder: Path, recipe: str = "student: {model: some/student}\n") -> None:
    """What a run has beside its stages."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe)
    speed = {
        "threads": 1,
        "device": "cpu",
        "batch_size": 32,
        "models": {
            "teacher": {"latency_ms": [4.0, 3.9, 4.4], "throughput": 800.0},
            "student": {"latency_ms": [0.5, 0.4, 0.6], "throughput": 8000.0},
        },
    }
    (folder / "speed.json").write_text(json.dumps(speed))


TOKENS = 50
"""A text has so many, and every second text half of them."""


def text_lengths(examples: int = 40) -> np.ndarray:
    return np.where(np.arange(examples) % 2, TOKENS / 2, TOKENS)


def language_columns(loss: float, *, spread: float = 0.0, followed: bool = True) -> dict[str, np.ndarray]:
    """Texts with a mean loss a token; `spread` goes up and down from text to text. Two of five tokens are right."""
    tokens = text_lengths()
    up_and_down = np.where(np.arange(len(tokens)) % 4 < 2, spread, -spread)
    columns = {"loss_sum": (loss + up_and_down) * tokens, "tokens": tokens, "correct": 0.4 * tokens}
    return columns | (followed_columns(tokens) if followed else {})


def followed_columns(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """A student that agrees with its teacher on four of five tokens, 0.3 nats away."""
    return {
        "kl_sum": 0.3 * tokens,
        "agree": 0.8 * tokens,
        "compared": tokens,
        "teacher_wrong_student_right": np.ones_like(tokens),
        "teacher_right_student_wrong": 2 * np.ones_like(tokens),
    }


def tag_columns(right: int, predicted: int, *, followed: bool = True) -> dict[str, np.ndarray]:
    """Sentences of four entities, so many of them right and so many predicted; every fourth sentence is missed."""
    tokens = text_lengths()
    found = np.arange(len(tokens)) % 4 > 0
    columns = {
        "loss_sum": 0.5 * tokens,
        "tokens": tokens,
        "correct": 0.9 * tokens,
        "true_positive": found * float(right),
        "predicted": found * float(predicted),
        "gold": np.full(len(tokens), 4.0),
    }
    return columns | (followed_columns(tokens) if followed else {})


def write_sum_run(
    folder: Path,
    problem_type: str,
    teacher: Mapping[str, np.ndarray] | None,
    seeds: Mapping[int, Mapping[str, Mapping[str, np.ndarray]]],
    recipe: str = "student: {model: some/student}\n",
    **facts: Any,
) -> Path:
    """A run over texts, from each stage's columns."""
    write_frame(folder, recipe)
    if teacher is not None:
        write_columns(folder / "teacher", teacher, seed=None, problem_type=problem_type, **facts)
    for seed, stages in seeds.items():
        for name, columns in stages.items():
            write_columns(folder / f"seed-{seed}" / name, columns, seed=seed, problem_type=problem_type, **facts)
    return folder


def summary_columns(rouge: float, *, written: bool = True, followed: bool = True) -> dict[str, np.ndarray]:
    """Texts from texts with a mean ROUGE-Lsum, a tenth up and down from text to text, at a loss of 2 nats a token."""
    columns = language_columns(2.0, followed=followed)
    if written:
        around = np.where(np.arange(len(columns["tokens"])) % 2, 0.1, -0.1)
        scores = {"rouge1": 0.5, "rouge2": 0.25, "rougeL": 0.4, "rougeLsum": rouge}
        columns |= {name: score + around for name, score in scores.items()}
        columns["texts"] = np.ones_like(around)
    return columns


def speech_columns(errors: float, *, followed: bool = True) -> dict[str, np.ndarray]:
    """Transcripts of ten words and forty characters with so many wrong words; every fourth has one more."""
    columns = language_columns(0.5, followed=followed)
    examples = len(columns["tokens"])
    wrong = errors + (np.arange(examples) % 4 == 0)
    sizes = {"words": np.full(examples, 10.0), "chars": np.full(examples, 40.0)}
    return columns | sizes | {"word_errors": wrong, "char_errors": 2 * wrong}


def ctc_columns(errors: float, *, followed: bool = True) -> dict[str, np.ndarray]:
    """The same heard frame by frame, at a loss of 3 nats a text; frames have no labels to be right about."""
    columns = speech_columns(errors)
    kept = ("words", "chars", "word_errors", "char_errors", *(("kl_sum", "agree", "compared") if followed else ()))
    texts = np.ones_like(columns["words"])
    return {name: columns[name] for name in kept} | {"loss_sum": 3 * texts, "texts": texts}


def pixel_columns(right: float, *, followed: bool = True) -> dict[str, np.ndarray]:
    """Pictures of 60 and 40 pixels of two classes, of which this share is right, and a third class that never occurs.

    What is not seen as one class is seen as the other. Every fourth picture is one tenth worse.
    """
    examples = 40
    share = right - np.where(np.arange(examples) % 4, 0.0, 0.1)
    region = np.array([60.0, 40.0, 0.0])
    intersection = share[:, None] * region
    predicted = intersection + (1 - share)[:, None] * np.array([40.0, 60.0, 0.0])
    pixels = np.full(examples, 100.0)
    columns = {
        "loss_sum": 0.5 * pixels,
        "pixels": pixels,
        "correct": intersection.sum(axis=1),
        "intersection": intersection,
        "union": region + predicted - intersection,
    }
    return columns | (followed_columns(pixels) if followed else {})


def object_columns(found: int, images: int = 20) -> dict[str, np.ndarray]:
    """Images with an object each, of which the first so many are found exactly; in the others there is a mistake."""
    here, elsewhere = [10.0, 10.0, 30.0, 30.0], [100.0, 100.0, 130.0, 130.0]
    seen = [[image, 1, 0.9, *(here if image < found else elsewhere)] for image in range(images)]
    gold = [[image, 1, 0, *here] for image in range(images)]
    return {"detections": np.array(seen, float), "gold": np.array(gold, float), "examples": np.array([float(images)])}
