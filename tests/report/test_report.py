"""The report of made-up runs whose numbers are known."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from report.run_folders import EXAMPLES, classes, label_column, write_run, write_stage
from rich.console import Console

from hfdistill.errors import HfDistillError
from hfdistill.report import Report, report_of, write_report
from hfdistill.run_folder import read_run

THREE = {seed: {"control": 800 + seed, "student": 850 + seed} for seed in (1, 2, 3)}
PICTURES = ("accuracy.png", "calibration.png", "training.png")


def report_in(folder: Path) -> Report:
    """The numbers alone: drawing takes most of the time."""
    return report_of(read_run(folder))


def test_three_seeds(tmp_path: Path) -> None:
    report = report_in(write_run(tmp_path, THREE))
    assert report.seeds == [1, 2, 3]
    assert report.models["student"].main.mean == pytest.approx(0.852)
    assert report.models["student"].main.sd == pytest.approx(0.001)
    assert report.models["control"].by_seed == {1: 0.801, 2: 0.802, 3: 0.803}
    assert report.models["teacher"].main.mean == 0.95
    assert "Wilson" in report.models["teacher"].main.basis
    # Paired by seed, every difference is 50 of 1,000.
    assert report.gain is not None
    assert (report.gain.mean, report.gain.low, report.gain.high) == pytest.approx((0.05, 0.05, 0.05))
    assert report.share_recovered == pytest.approx(0.05 / (0.95 - 0.802))
    assert report.verdict == "helped"
    assert "85.20 %, 5.00 points above the control's 80.20 %" in report.sentence
    # The first 851 to 853 examples agree with the teacher, and those that both have wrong.
    followed = report.models["student"].fidelity
    assert followed is not None
    assert followed["agreement"] == pytest.approx(0.852 + 0.05)
    assert followed["teacher_right_student_wrong"] == pytest.approx(950 - 852)
    assert followed["both_wrong_same"] == 50


def test_everything_is_written_and_the_same_again(tmp_path: Path) -> None:
    report = write_report(write_run(tmp_path, THREE))
    files = [*PICTURES, "report.md", "report.json"]
    before = [(tmp_path / file).read_bytes() for file in files]
    write_report(tmp_path)
    assert [(tmp_path / file).read_bytes() for file in files] == before
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["sentence"] == report.sentence
    assert written["models"]["student"]["by_seed"] == {"1": 0.851, "2": 0.852, "3": 0.853}
    for picture in PICTURES:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "report.md").read_text()
    for expected in (
        report.sentence,
        "| teacher | 95.00 % | 93.47 to 96.19 % | 400,000 | 1.6 MB | 4.00 ms | 800/s | 12 s |",
        "| student (distilled) | 85.20 ± 0.10 % |",
        "recovered: 34 %",
        "25.0 % of the teacher's parameters",
        "throughput is 10.0× the teacher's",
        "15 equal-width bins",
        "| 2 | 80.20 % | 85.20 % | +5.00 points |",
        "hfdistill run recipe.yaml",
        "`some/teacher` at revision abc123",
        "torch 2.",
        *[f"({picture})" for picture in PICTURES],
    ):
        assert expected in text, expected


def test_table(tmp_path: Path) -> None:
    console = Console(width=160, record=True, file=StringIO())
    console.print(report_in(write_run(tmp_path, THREE)).table())
    text = console.export_text()
    assert "student (distilled)" in text
    assert "85.20 ± 0.10 %" in text
    assert "Distillation helped" in text


def test_no_interval_beyond_all_examples(tmp_path: Path) -> None:
    report = report_in(write_run(tmp_path, {1: {"student": 980}, 2: {"student": 1000}}))
    assert report.models["student"].main.high == 1


@pytest.mark.parametrize(
    ("seeds", "verdict", "words"),
    [
        ({1: {"control": 800, "student": 850}}, "helped", "training noise is not in it"),
        ({1: {"control": 850, "student": 800}}, "did not help", "5.00 points below the control's 85.00 %"),
        ({1: {"control": 800, "student": 803}}, "cannot tell", "−0.14 to +0.74"),
        ({1: {"control": 800, "student": 850}, 2: {"control": 850, "student": 851}}, "cannot tell", "includes 0"),
        ({1: {"student": 850}}, "unknown", "no control is finished"),
        ({1: {"control": 850}}, "unknown", "no student is finished"),
    ],
)
def test_verdicts(tmp_path: Path, seeds: dict[int, dict[str, int]], verdict: str, words: str) -> None:
    report = report_in(write_run(tmp_path, seeds))
    assert report.verdict == verdict
    assert words in report.sentence


def test_control_switched_off(tmp_path: Path) -> None:
    report = report_in(write_run(tmp_path, {1: {"student": 850}}, recipe="control: false\n"))
    assert "The gain is unknown (the control was switched off)." in report.sentence
    assert report.gain is None
    assert "unknown" in report.share_note


def test_no_share_without_a_lead(tmp_path: Path) -> None:
    report = report_in(write_run(tmp_path, {1: {"control": 800, "student": 850}}, teacher=802))
    assert report.share_recovered is None
    assert "does not lead the control by more than the noise (+0.20 points" in report.share_note


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, THREE, teacher=None)
    (tmp_path / "speed.json").unlink()
    (tmp_path / "seed-3" / "student" / "stage.json").unlink()
    notes = " ".join(report_in(tmp_path).notes)
    assert "Unfinished and left out: seed-3/student." in notes
    assert "teacher's predictions are missing" in notes
    assert "Speed was not measured" in notes
    assert "2 of 3 seeds" in notes


def test_unequal_budgets_are_said(tmp_path: Path) -> None:
    write_run(tmp_path, {1: {"control": 800}})
    write_stage(tmp_path / "seed-1" / "student", classes(850), steps=80, examples_seen=2560)
    assert "80 steps and 2560 examples against 40 and 1280" in " ".join(report_in(tmp_path).notes)


def test_notices_of_the_data_are_repeated(tmp_path: Path) -> None:
    write_run(tmp_path, {1: {"student": 850}}, teacher=None, recipe="seeds: [1]\n")
    write_stage(tmp_path / "teacher", classes(950), notices=["the teacher is trained on all labels"])
    write_stage(tmp_path / "seed-2" / "student", classes(850))
    notes = report_in(tmp_path).notes
    assert "The teacher is trained on all labels." in notes
    assert "Seeds that recipe.yaml no longer lists count as well: 2." in notes


def test_fine_tuned_student(tmp_path: Path) -> None:
    report = report_in(write_run(tmp_path, {1: {"control": 800, "student": 850, "finetuned": 870}}))
    assert report.finetuned_gain is not None
    assert report.finetuned_gain.mean == pytest.approx(0.07)
    assert "After the last fine-tune, over the control: +7.00 points" in report.markdown()


@pytest.mark.parametrize(
    ("problem_type", "metric", "shown"),
    [("multi_label_classification", "f1_micro", "micro F1 is 100.00 %"), ("regression", "r2", "R² is 1.0000")],
)
def test_other_tasks(tmp_path: Path, problem_type: str, metric: str, shown: str) -> None:
    generator = np.random.default_rng(0)
    real = generator.normal(size=(EXAMPLES, 1))
    labels = real[:, 0] if metric == "r2" else (np.concatenate([real, -real], axis=1) > 0)
    noisy = real + generator.normal(size=real.shape)
    write_run(tmp_path, {}, teacher=None)
    for name, column in (("teacher", real), ("seed-1/student", real), ("seed-1/control", noisy)):
        logits = column if metric == "r2" else np.concatenate([column, -column], axis=1)
        write_stage(tmp_path / name, logits, labels.astype(np.float32), problem_type=problem_type)
    report = write_report(tmp_path)
    assert report.metric == metric
    assert report.verdict == "helped"
    assert shown in report.sentence
    assert all((tmp_path / picture).exists() for picture in PICTURES)


def spoil_nothing_finished(run: Path) -> None:
    for file in run.glob("**/stage.json"):
        file.unlink()


def spoil_other_test_split(run: Path) -> None:
    write_stage(run / "seed-2" / "student", classes(850), np.roll(label_column(), 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "recipe.yaml").unlink(), "expected the output folder of a run"),
        (lambda run: (run / "recipe.yaml").write_text("a: [1"), "recipe.yaml, which cannot be read"),
        (lambda run: (run / "recipe.yaml").write_text("just words"), "it holds no mapping"),
        (lambda run: (run / "seed-1/student/stage.json").write_text('{"seed": 1'), "stage.json, which cannot be read"),
        (lambda run: (run / "seed-1/student/stage.json").write_text("{}"), "it has no problem_type"),
        (lambda run: (run / "seed-1/student/predictions.safetensors").unlink(), "predictions.safetensors"),
        (lambda run: (run / "teacher/predictions.safetensors").write_bytes(b"x" * 50), "predictions.safetensors"),
        (lambda run: (run / "speed.json").write_bytes(b"\xff\xfe"), "speed.json, which cannot be read"),
        (lambda run: (run / "seed-x").mkdir(), "expected seed- and a whole number"),
        (spoil_nothing_finished, "without a finished stage"),
        (spoil_other_test_split, "the same test split for every stage"),
    ],
)
def test_a_spoilt_run_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    write_run(tmp_path, {1: {"control": 800, "student": 850}})
    assert callable(spoil)
    spoil(tmp_path)
    with pytest.raises(HfDistillError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.json").exists()
