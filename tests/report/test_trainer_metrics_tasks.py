"""Metrics inside Trainer's evaluation, for written and heard texts, label maps and objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DetrImageProcessorPil, EvalPrediction, Wav2Vec2CTCTokenizer

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, Objective, TaskLoss
from hfdistill.trainer_metrics import (
    ctc_metrics,
    decisions,
    detection_metrics,
    generation_metrics,
    segmentation_counts,
    segmentation_metrics,
    speech_metrics,
)
from tests import tiny_dense, tiny_queries

LETTERS = "abcdefghi"


class Spelling:
    """A tokenizer of letters: 0 is padding, 1 a space, 2 to 10 are letters."""

    pad_token_id = 0

    def batch_decode(self, ids: Any, *, skip_special_tokens: bool = False) -> list[str]:
        """One text a row."""
        assert skip_special_tokens
        return ["".join(f" {LETTERS}"[place - 1] for place in row if place) for row in np.asarray(ids)]


def letters(tmp_path: Path, blank: int = 0) -> Wav2Vec2CTCTokenizer:
    """A real tokenizer of CTC models: 0 is blank, 1 a space, 2 to 10 are letters; all moved on by `blank`."""
    vocabulary = {"[PAD]": 0, "|": 1, **{letter: place for place, letter in enumerate(LETTERS, start=2)}, "[UNK]": 11}
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps({token: (place + blank) % 12 for token, place in vocabulary.items()}))
    return Wav2Vec2CTCTokenizer(str(file), unk_token="[UNK]", pad_token="[PAD]", bos_token=None, eos_token=None)


def trained(model: torch.nn.Module, rows: list[dict[str, Any]], folder: Path, **metrics: Any) -> dict[str, float]:
    """Trainer's evaluation, three examples a batch."""
    config = DistillationConfig(
        str(folder), per_device_eval_batch_size=3, use_cpu=True, report_to=[], remove_unused_columns=False
    )
    trainer = DistillationTrainer(model, config, objective=Objective([TaskLoss()]), eval_dataset=rows, **metrics)
    return trainer.evaluate()


def test_written_texts() -> None:
    # "ab c d" for "ab c" and "e f" for "e f"; filled up in either way.
    written = np.array([[2, 3, 1, 4, 1, 5], [6, 1, 7, 0, -100, -100]])
    wanted = np.array([[2, 3, 1, 4], [6, 1, 7, -100]])
    values = generation_metrics(Spelling())(EvalPrediction(written, wanted))
    assert values == pytest.approx({"rouge1": 0.9, "rouge2": (2 / 3 + 1) / 2, "rougeL": 0.9, "rougeLsum": 0.9})
    # 1 word and 2 characters too many.
    values = speech_metrics(Spelling())(EvalPrediction(written, wanted))
    assert values == pytest.approx({"wer": 1 / 4, "cer": 2 / 7})
    for metrics in (generation_metrics, speech_metrics):
        with pytest.raises(HfDistillError, match="the token ids of a written text for each"):
            metrics(Spelling())(EvalPrediction(np.zeros((2, 4, 9)), wanted))


@pytest.mark.parametrize("blank", [0, 5])
def test_frames_by_hand(blank: int, tmp_path: Path) -> None:
    metrics = ctc_metrics(letters(tmp_path, blank))
    # a a _ a | b b: equal frames are one letter, with a blank between them two.
    frames = np.array([[2, 2, 0, 2, 1, 3, 3], [4, 4, 4, 0, -100, -100, -100]])
    labels = np.array([[2, 2, 1, 4], [4, -100, -100, -100]])
    frames, labels = (np.where(ids == -100, -100, (ids + blank) % 12) for ids in (frames, labels))
    # "aa b" for "aa c"; "c" is right, with nothing behind it.
    expected = pytest.approx({"wer": 1 / 3, "cer": 1 / 5})
    assert metrics(EvalPrediction(frames, labels)) == expected
    logits = np.where(frames[..., None] == -100, -100.0, np.eye(12)[np.maximum(frames, 0)])
    assert metrics(EvalPrediction(logits, labels)) == expected


@pytest.mark.parametrize("options", [{}, {"preprocess_logits_for_metrics": decisions}], ids=["logits", "decisions"])
def test_frames_in_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    batch = tiny_dense.batch("ctc", 7)
    batch["labels"][batch["labels"] == 0] = 2
    rows = [{name: column[place] for name, column in batch.items()} for place in range(7)]
    values = trained(tiny_dense.model("ctc"), rows, tmp_path, compute_metrics=ctc_metrics(letters(tmp_path)), **options)
    assert values["eval_wer"] > 0.5


def test_pictures_by_hand() -> None:
    # Two classes; the labels have twice the size of the logits. The left half is 1, the right half 0.
    logits = torch.tensor([[[[0.0, 9.0]], [[9.0, 0.0]]]])
    labels = torch.tensor([[[1, 0, 0, 0], [1, 1, 255, 0]]])
    counts = segmentation_counts(2)((logits, None), labels)
    # 4 pixels are decided as 1, all with a label; 4 as 0, one without.
    assert counts.tolist() == [[[3, 3], [4, 4], [4, 3]]]
    values = segmentation_metrics(2)(EvalPrediction(counts.numpy(), labels.numpy()))
    assert values == pytest.approx({"mean_iou": 3 / 4, "pixel_accuracy": 6 / 7})
    yes = segmentation_counts(2)(logits[:, 1:] - logits[:, :1], labels)
    assert yes.tolist() == counts.tolist()
    assert segmentation_counts(2, ignored=0)(logits, labels.clamp(max=1)).tolist()[0][2] == [0, 4]
    with pytest.raises(HfDistillError, match=r"segmentation_counts\(3\)"):
        segmentation_metrics(3)(EvalPrediction(counts.numpy(), labels.numpy()))
    with pytest.raises(HfDistillError, match="no pixel with a label"):
        segmentation_metrics(2)(EvalPrediction(np.zeros((1, 3, 2)), labels.numpy()))


def test_pictures_in_trainer(tmp_path: Path) -> None:
    batch = tiny_dense.batch("segformer", 7)
    rows = [{name: column[place] for name, column in batch.items()} for place in range(7)]
    model = tiny_dense.model("segformer").eval()
    values = trained(
        model,
        rows,
        tmp_path,
        compute_metrics=segmentation_metrics(tiny_dense.CLASSES),
        preprocess_logits_for_metrics=segmentation_counts(tiny_dense.CLASSES),
    )
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(model(batch["pixel_values"]).logits, size=32, mode="bilinear")
    right = (logits.argmax(1) == batch["labels"]).sum() / (batch["labels"] != 255).sum()
    assert values["eval_pixel_accuracy"] == pytest.approx(right.item(), abs=1e-3)
    assert 0 < values["eval_mean_iou"] < values["eval_pixel_accuracy"]


def test_objects_by_hand() -> None:
    # One picture with an object of class 1 that the second query sees exactly, and one without any; the last class of
    # the logits means that there is no object.
    logits = np.array([[[0.0, 0.0, 9.0], [0.0, 9.0, 0.0]], [[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]]])
    box = [0.5, 0.5, 0.2, 0.4]
    boxes = np.array([[[0.1, 0.1, 0.1, 0.1], box], [[0.1, 0.1, 0.1, 0.1]] * 2])
    labels = (np.array([[1, -100], [-100, -100]]), np.array([[box, [-100.0] * 4], [[-100.0] * 4] * 2]))
    metrics = detection_metrics(DetrImageProcessorPil())
    assert metrics(EvalPrediction((logits, boxes), labels)) == pytest.approx({"map": 1, "map_50": 1, "map_75": 1})
    # Half as high: the overlap is one half.
    half = labels[1] * np.array([1, 1, 1, 0.5])
    lower = metrics(EvalPrediction((logits, boxes), (labels[0], half)))
    assert (lower["map_75"], lower["map"]) == (0, pytest.approx(lower["map_50"] / 10))


def test_objects_in_trainer(tmp_path: Path) -> None:
    values = trained(
        tiny_queries.model("detr", 0),
        tiny_queries.examples("detr", 7),
        tmp_path,
        compute_metrics=detection_metrics(DetrImageProcessorPil()),
    )
    assert 0 <= values["eval_map"] <= values["eval_map_50"] <= 1
