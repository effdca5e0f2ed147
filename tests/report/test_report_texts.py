"""The report of made-up runs over texts: language models, whose loss is better when lower, and tagged sentences."""

from __future__ import annotations

import json
from io import StringIO
from math import exp
from pathlib import Path

import numpy as np
import pytest
from report.run_folders import language_columns, tag_columns, write_columns, write_sum_run
from rich.console import Console

from hfdistill import plots
from hfdistill.card import distillation_card
from hfdistill.errors import HfDistillError
from hfdistill.report import report_of, write_report
from hfdistill.run_card import run_card_facts
from hfdistill.run_folder import read_run

LOG = [
    {"step": step, "loss": 3 / step, "loss/task": 2 / step, "eval_loss": 2 / step, "eval_loss/task": 1 / step}
    for step in (10, 20)
]
TEACHER = language_columns(1.5, followed=False)


def language_run(folder: Path, losses: dict[int, dict[str, float]], spread: float = 0.5) -> Path:
    """A run with a mean loss for each stage."""
    seeds = {
        seed: {name: language_columns(loss, spread=spread) for name, loss in stages.items()}
        for seed, stages in losses.items()
    }
    return write_sum_run(folder, "causal_lm", TEACHER, seeds, log_history=LOG)


def test_three_seeds_of_a_language_model(tmp_path: Path) -> None:
    losses = {seed: {"control": 2.0 + seed / 100, "student": 1.8 + seed / 100} for seed in (1, 2, 3)}
    report = write_report(language_run(tmp_path, losses))
    assert (report.metric, report.test_examples, report.test_counts) == ("loss", 40, {"tokens": 1500})
    student = report.models["student"]
    assert student.main.mean == pytest.approx(1.82)
    assert student.main.sd == pytest.approx(0.01)
    assert student.metrics["perplexity"] == pytest.approx(np.mean([exp(1.81), exp(1.82), exp(1.83)]))
    assert student.ece is None
    assert student.fidelity == pytest.approx(
        {
            "decisions": 1500,
            "agreement": 0.8,
            "kl": 0.3,
            "teacher_wrong_student_right": 40,
            "teacher_right_student_wrong": 80,
        }
    )
    # Lower is better: 0.2 of the teacher's lead of 2.02 − 1.5.
    assert report.gain is not None
    assert report.gain.mean == pytest.approx(0.2)
    assert report.teacher_lead is not None
    assert report.teacher_lead.mean == pytest.approx(0.52)
    assert report.share_recovered == pytest.approx(0.2 / 0.52)
    assert report.verdict == "helped"
    # exp(1.82) and exp(2.02).
    assert report.sentence == (
        "Distillation helped: the student's perplexity is 6.172, 0.2000 nats a token below the control's 7.538 "
        "(gain +0.2000 to +0.2000 nats a token, 95 % t interval over 3 seeds)."
    )
    text = (tmp_path / "report.md").read_text()
    reach = 4.30265 * 0.01 / 3**0.5
    for expected in (
        "40 test examples (1,500 tokens). *Perplexity* is exp(loss)",
        "| perplexity | 95 % interval | loss, nats a token | parameters |",
        f"| student (distilled) | 6.172 | {exp(1.82 - reach):.3f} to {exp(1.82 + reach):.3f} | 1.8200 ± 0.0100 |",
        "over the control: +0.2000 nats a token (",
        "recovered: 38 %",
        "counts in tokens. KL is in nats at temperature 1.",
        "| same answer as the teacher | 80.00 % | 80.00 % |",
        "| teacher right, model wrong | 80 | 80 |",
        "| seed | control (no teacher) | student (distilled) | gain |",
        "| 2 | 7.538 | 6.172 | +0.2000 nats a token |",
    ):
        assert expected in text, expected
    assert "calibration" not in text
    assert "ECE" not in text
    assert not (tmp_path / "calibration.png").exists()
    assert json.loads((tmp_path / "report.json").read_text())["gain"]["mean"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("student", "verdict", "words"),
    [
        (1.9, "helped", "0.1000 nats a token below the control's 7.389 (gain +0.1000"),
        (2.1, "did not help", "0.1000 nats a token above the control's 7.389 (gain −0.1000"),
    ],
)
def test_one_seed_of_a_language_model(tmp_path: Path, student: float, verdict: str, words: str) -> None:
    report = report_of(read_run(language_run(tmp_path, {1: {"control": 2.0, "student": student}})))
    assert report.verdict == verdict
    assert words in report.sentence
    assert "paired bootstrap over 40 test examples" in report.sentence
    console = Console(width=200, record=True, file=StringIO())
    console.print(report.table())
    shown = console.export_text()
    assert "40 test examples (1,500 tokens)" in shown
    assert f"{exp(student):.3f}" in shown


def test_a_language_model_that_cannot_be_told_from_its_control(tmp_path: Path) -> None:
    write_sum_run(
        tmp_path,
        "causal_lm",
        TEACHER,
        {1: {"control": language_columns(2.0), "student": language_columns(1.99, spread=0.5)}},
    )
    report = report_of(read_run(tmp_path))
    assert report.verdict == "cannot tell"
    assert (
        "perplexity is 7.316 and the control's 7.389, but the interval of their difference includes 0 (gain −0.1"
        in (report.sentence)
    )


def test_without_a_teacher_there_is_no_share(tmp_path: Path) -> None:
    run = language_run(tmp_path, {1: {"control": 2.0, "student": 1.9}})
    (run / "teacher/stage.json").unlink()
    report = report_of(read_run(run))
    assert report.models["student"].fidelity is None
    assert report.share_recovered is None


def test_few_texts_are_named(tmp_path: Path) -> None:
    one = {name: column[:1] for name, column in language_columns(2.0).items()}
    write_sum_run(tmp_path, "causal_lm", None, {1: {"student": one}})
    assert "Fewer than 10 test examples" in " ".join(report_of(read_run(tmp_path)).notes)


def test_tagged_sentences(tmp_path: Path) -> None:
    seeds = {1: {"control": tag_columns(2, 3), "student": tag_columns(3, 3)}}
    report = write_report(
        write_sum_run(tmp_path, "token_classification", tag_columns(3, 4, followed=False), seeds, log_history=LOG)
    )
    assert report.metric == "f1"
    assert report.models["student"].main.mean == pytest.approx(2 * 90 / (90 + 160))
    assert "the student's entity F1 is 72.00 %, 24.00 points above the control's 48.00 %" in report.sentence
    assert report.models["student"].metrics["recall"] == pytest.approx(90 / 160)
    text = report.markdown()
    assert "| entity F1 | 95 % interval | parameters |" in text
    assert "Perplexity" not in text
    assert "calibration.png" not in text
    assert "| student (distilled) | 80.00 % |" not in text


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the pictures are made of, kept when they are saved."""
    figures: list[object] = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda figure, *arguments, **options: figures.append(figure))
    return figures


def test_the_axis_of_a_loss_has_the_better_models_on_the_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    run = read_run(language_run(tmp_path, {1: {"control": 2.0, "student": 1.8}}))
    report = report_of(run)
    plots.draw_accuracy(report, tmp_path / "accuracy.png")
    plots.draw_training(run, report.main_metric, tmp_path / "training.png")
    (axes,) = figures[0].axes
    left, right = axes.get_xlim()
    assert left > exp(2.0) > exp(1.5) > right
    assert axes.get_xlabel().startswith("test perplexity, lower is better")
    # The objective's eval_loss holds the teacher's share: control and student are compared on the labels.
    assert [panel.get_title(loc="left") for panel in figures[1].axes] == [
        "validation loss on the labels",
        "training loss on the labels",
    ]


RECIPE = """
teacher: {config: {model_type: llama}, processor: bytes, finetune: {max_steps: 3}}
student: {config: {model_type: llama}}
data: {dataset: pydoc_topics, task: causal_lm}
"""


def test_the_card_of_a_language_model(tmp_path: Path) -> None:
    stages = {"control": language_columns(2.0), "student": language_columns(1.9)}
    run = read_run(write_sum_run(tmp_path, "causal_lm", TEACHER, {1: stages}, RECIPE))
    stage = run.seeds[1]["student"]
    (stage.folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    facts = run_card_facts(run, stage, "me/tiny")
    assert facts.task == "text-generation"
    (result,) = facts.results
    assert (result.metric, result.name, result.value) == ("perplexity", "perplexity", pytest.approx(exp(1.9)))
    card = distillation_card(facts)
    assert card.data.datasets is None
    assert "the help texts that ship with Python" in card.text
    assert 'pipeline("text-generation", model="me/tiny")' in card.text
    assert "the student's perplexity is 6.686" in card.text


def test_another_test_split_is_refused(tmp_path: Path) -> None:
    run = language_run(tmp_path, {1: {"control": 2.0}})
    other = language_columns(2.0)
    write_columns(run / "seed-1/student", other | {"tokens": other["tokens"] + 1}, problem_type="causal_lm")
    with pytest.raises(HfDistillError, match="the same test split for every stage"):
        read_run(run)


@pytest.mark.parametrize(
    ("problem_type", "columns", "message"),
    [
        ("causal_lm", {"tokens": np.ones(3)}, "predictions.safetensors.*expected also correct, loss_sum"),
        ("detection", {"tokens": np.ones(3)}, "problem_type 'detection', expected one of causal_lm"),
    ],
)
def test_spoilt_columns_are_refused(
    tmp_path: Path, problem_type: str, columns: dict[str, np.ndarray], message: str
) -> None:
    write_sum_run(tmp_path, problem_type, columns, {})
    with pytest.raises(HfDistillError, match=message):
        read_run(tmp_path)
