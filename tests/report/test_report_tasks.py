"""The report and the card of made-up runs that write, hear, segment and detect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.run_folders import (
    ctc_columns,
    object_columns,
    pixel_columns,
    speech_columns,
    summary_columns,
    write_columns,
    write_sum_run,
)

from hfdistill import plots
from hfdistill.card import distillation_card
from hfdistill.errors import HfDistillError
from hfdistill.report import Report, write_report
from hfdistill.run_card import run_card_facts
from hfdistill.run_folder import read_run

Columns = Callable[..., dict[str, np.ndarray]]

RECIPE = """
teacher: {model: some/teacher}
student: {model: some/student}
data: {dataset: some/data, label_column: highlights}
"""


def run_of(folder: Path, problem_type: str, columns: Columns, values: tuple[Any, Any, Any]) -> Path:
    """A run with one seed, from what makes the columns of teacher, control and student."""
    teacher, control, student = values
    own = {} if columns is object_columns else {"followed": False}
    log = [{"step": step, "eval_wer": 1 / step, "eval_loss/task": 1 / step, "loss/task": 2 / step} for step in (10, 20)]
    stages = {"control": columns(control), "student": columns(student)}
    write_sum_run(folder, problem_type, columns(teacher, **own), {1: stages}, RECIPE, log_history=log)
    (folder / "seed-1/student/config.json").write_text('{"architectures": ["SomeForConditionalGeneration"]}')
    return folder


def told(report: Report, *expected: str) -> None:
    """Check that report.md says so."""
    text = report.markdown()
    for words in expected:
        assert words in text, f"{words}\n\n{text}"
    assert "calibration" not in text
    assert "ECE" not in text


def test_written_texts(tmp_path: Path) -> None:
    report = write_report(run_of(tmp_path, "seq2seq_lm", summary_columns, (0.4, 0.3, 0.35)))
    assert (report.verdict, report.metric, report.share_recovered) == ("helped", "rougeLsum", pytest.approx(0.5))
    assert "the student's ROUGE-Lsum is 35.00 %, 5.00 points above the control's 30.00 %" in report.sentence
    assert report.models["student"].metrics["rouge2"] == 0.25
    told(
        report,
        "40 test examples (1,500 tokens). *ROUGE-Lsum*: F-measure",
        "| ROUGE-Lsum | 95 % interval | parameters |",
        "counts in tokens. KL is in nats",
    )
    assert "erplexity" not in report.markdown()


def test_texts_that_were_not_written(tmp_path: Path) -> None:
    report = write_report(
        run_of(tmp_path, "seq2seq_lm", lambda loss, **own: summary_columns(loss, written=False, **own), (0, 0, 0))
    )
    assert (report.metric, report.main_metric.name) == ("loss", "perplexity")
    told(report, "*Perplexity* is exp(loss)", "loss, nats a token")


def test_some_texts_that_were_not_written(tmp_path: Path) -> None:
    run = run_of(tmp_path, "seq2seq_lm", summary_columns, (0.4, 0.3, 0.35))
    write_columns(run / "seed-1/finetuned", summary_columns(0.4, written=False), problem_type="seq2seq_lm")
    with pytest.raises(HfDistillError, match=r"finetuned that are measured by perplexity and in .* by ROUGE-Lsum"):
        write_report(run)


@pytest.mark.parametrize(
    ("problem_type", "columns", "unit"), [("speech_seq2seq", speech_columns, "tokens"), ("ctc", ctc_columns, "frames")]
)
def test_fewer_errors_help(tmp_path: Path, problem_type: str, columns: Columns, unit: str) -> None:
    report = write_report(run_of(tmp_path, problem_type, columns, (1, 3, 2)))
    # 90 and 130 of 400 words.
    assert report.verdict == "helped"
    assert report.sentence == (
        "Distillation helped: the student's word error rate is 22.50 %, 10.00 points below the control's 32.50 % "
        "(gain +10.00 to +10.00 points, 95 % paired bootstrap over 40 test examples (one training run: training noise "
        "is not in it))."
    )
    assert report.share_recovered == pytest.approx(0.5)
    told(
        report,
        "40 test examples (400 words). *Word error rate*: words that are wrong, missing or too many",
        "| word error rate | 95 % interval | parameters |",
        f"counts in {unit}. KL",
        "| seed | control (no teacher) | student (distilled) | gain |",
        "| 1 | 32.50 % | 22.50 % | +10.00 points |",
    )
    # What frames have no labels for is not told.
    assert ("model right" in report.markdown()) == (problem_type == "speech_seq2seq")


def test_more_errors_hurt(tmp_path: Path) -> None:
    report = write_report(run_of(tmp_path, "ctc", ctc_columns, (1, 11, 12)))
    assert report.verdict == "did not help"
    # More errors than words.
    assert "is 122.50 %, 10.00 points above the control's 112.50 % (gain −10.00 to" in report.sentence
    assert report.models["student"].main.high > 1.2


def test_pixels(tmp_path: Path) -> None:
    report = write_report(run_of(tmp_path, "semantic_segmentation", pixel_columns, (0.95, 0.8, 0.9)))
    assert report.verdict == "helped"
    assert report.metric == "mean_iou"
    # 0.875 of the pixels: 52.5 of 60 and 35 of 40, with 5 and 7.5 more taken for the class.
    assert report.models["student"].main.mean == pytest.approx((52.5 / 65 + 35 / 47.5) / 2)
    assert "the student's mean IoU is 77.23 %" in report.sentence
    assert report.models["student"].metrics["pixel_accuracy"] == pytest.approx(0.875)
    told(
        report,
        "40 test examples (4,000 pixels). *Mean IoU*: for each class",
        "counts in pixels. KL",
        "| same answer as the teacher | 80.00 % | 80.00 % |",
    )
    assert "token" not in report.markdown()


def test_objects(tmp_path: Path) -> None:
    report = write_report(run_of(tmp_path, "object_detection", object_columns, (19, 10, 17)))
    assert report.verdict == "helped"
    # Recalls up to 0.85 and 0.5, of 101.
    assert "the student's mAP is 85.15 %, 34.65 points above the control's 50.50 %" in report.sentence
    assert report.models["student"].fidelity is None
    told(report, "20 test examples (20 objects). *mAP*: COCO's mean average precision", "| mAP | 95 % interval |")
    assert "Fidelity" not in report.markdown()
    assert "token" not in report.markdown()
    assert not (tmp_path / "calibration.png").exists()


def test_seeds_of_a_detector(tmp_path: Path) -> None:
    found = {1: (5, 15), 2: (5, 10), 3: (10, 15)}
    seeds = {
        seed: {"control": object_columns(control), "student": object_columns(student)}
        for seed, (control, student) in found.items()
    }
    report = write_report(write_sum_run(tmp_path, "object_detection", object_columns(19), seeds, RECIPE))
    assert report.gain is not None
    # Of 101 recalls those up to a quarter, a half, three quarters.
    assert report.gain.mean == pytest.approx((50 + 25 + 25) / 3 / 101)
    assert report.gain.basis == "95 % t interval over 3 seeds"


def test_errors_are_drawn_with_the_fewest_on_the_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda figure, *arguments, **options: figures.append(figure))
    write_report(run_of(tmp_path, "ctc", ctc_columns, (1, 3, 2)))
    accuracy, training = figures
    left, right = accuracy.axes[0].get_xlim()
    assert left > 32.5 > 12.5 > right
    assert accuracy.axes[0].get_xlabel() == "test word error rate (%), lower is better; bars: 95 % interval"
    assert training.axes[0].get_title(loc="left") == "validation word error rate"


@pytest.mark.parametrize(
    ("problem_type", "columns", "values", "task", "metric", "value", "loader"),
    [
        ("seq2seq_lm", summary_columns, (0.4, 0.3, 0.35), "summarization", "rouge", 0.35, "AutoModelForSeq2SeqLM"),
        ("speech_seq2seq", speech_columns, (1, 3, 2), "automatic-speech-recognition", "wer", 0.225, "pipeline"),
        ("ctc", ctc_columns, (1, 3, 2), "automatic-speech-recognition", "wer", 0.225, "pipeline"),
        ("semantic_segmentation", pixel_columns, (0.9, 0.8, 0.8), "image-segmentation", "mean_iou", None, "pipeline"),
        ("object_detection", object_columns, (19, 10, 17), "object-detection", "map", 86 / 101, "pipeline"),
    ],
)
def test_cards(
    tmp_path: Path, problem_type: str, columns: Columns, values: Any, task: str, metric: str, value: Any, loader: str
) -> None:
    run = read_run(run_of(tmp_path, problem_type, columns, values))
    card = distillation_card(run_card_facts(run, run.seeds[1]["student"], "me/small"))
    head = card.data.to_dict()
    (result,) = head["model-index"][0]["results"]
    assert (head["pipeline_tag"], result["task"]["type"], head["metrics"]) == (task, task, [metric])
    (measured,) = result["metrics"]
    assert measured["type"] == metric
    expected = run.seeds[1]["student"].sheet.main().mean if value is None else value
    assert measured["value"] == pytest.approx(expected, abs=1e-6)
    assert f"from transformers import {loader}" in card.text
    boxes = "| boxes | 0.5 | `boxes`: over pairs of queries" in card.text
    assert boxes == (problem_type == "object_detection")
    assert ("{carion2020end," in card.text) == boxes


def test_texts_that_are_no_summaries(tmp_path: Path) -> None:
    run = run_of(tmp_path / "texts", "seq2seq_lm", summary_columns, (0.4, 0.3, 0.35))
    (run / "recipe.yaml").write_text(RECIPE.replace("highlights", "french"))
    stage = read_run(run).seeds[1]["student"]
    assert run_card_facts(read_run(run), stage, "me/small").task == "text2text-generation"
