"""A sweep: every combination in a folder of its own, the best by validation data, and the test split untouched."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from hfdistill import cli
from hfdistill.data import PreparedData
from hfdistill.recipe import load_recipe, override_arguments
from hfdistill.stages import Reporter
from hfdistill.stages.run import Run
from hfdistill.sweep import Results, grid_of, run_sweep
from hfdistill.sweep.results import FINISHED, Result
from hfdistill.sweep.table import sentence
from hfdistill.trainer import DistillationTrainer
from tests.cli.small_run import STUDENT, small_recipe

ROOT = Path(__file__).parents[2]
SHORT = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 0.01, "use_cpu": True}
TERMS = [{"task": {"weight": 0.5}}, {"logits": {"weight": 0.5, "temperature": 2}}, {"hidden_states": {}}]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def swept(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "sweep.json").read_text())


def seen_splits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that models are asked about from now on."""
    seen: list[str] = []
    evaluation = PreparedData.evaluation

    def watched(self: PreparedData, split: str, role: str) -> Any:
        seen.append(split)
        return evaluation(self, split, role)

    monkeypatch.setattr(PreparedData, "evaluation", watched)
    return seen


def done_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the stages that are done from now on."""
    done: list[str] = []
    do = Run.do
    monkeypatch.setattr(Run, "do", lambda self, stage: (done.append(str(stage.folder)), do(self, stage))[1])
    return done


def test_a_sweep_trains_each_combination_and_leaves_the_test_split_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(small_recipe(tmp_path, training=SHORT))
    splits, done = seen_splits(monkeypatch), done_stages(monkeypatch)
    command = ["sweep", recipe, "--temperature", "1,2,4", "--alpha", ".5,.9", "--output", "out"]
    assert cli.main(command) == cli.OK
    said = capsys.readouterr().out
    assert set(splits) == {"validation"}
    assert not list(tmp_path.rglob("predictions.safetensors")) and not list(tmp_path.rglob("control"))
    content = swept("out")
    settings = [tuple(trial["settings"].values()) for trial in content["trials"]]
    # The recipe's own values, of which the temperature is the default, come first.
    assert settings == [(2.0, 0.5), (1.0, 0.5), (1.0, 0.9), (2.0, 0.9), (4.0, 0.5), (4.0, 0.9)]
    assert done[0] == "out/teacher" and len(done) == 7
    assert done[3] == "out/trials/alpha=0.9,temperature=1/seed-42/student"
    means = [trial["validation_metrics"]["42"]["accuracy"] for trial in content["trials"]]
    assert [trial["mean"] for trial in content["trials"]] == means
    assert content["chosen"] == means.index(max(means)) + 1 and content["finished"]
    assert "Trial 1 of 6: temperature 2, alpha 0.5" in said and "5 more, about" in said
    best = settings[content["chosen"] - 1]
    chosen = load_recipe("out/best.yaml")
    assert (chosen.objective.temperature, chosen.objective.alpha) == best
    page = Path("out/sweep.md").read_text()
    assert page.count("| finished |") == 5 and page.count("| finished, best |") == 1
    assert f"hfdistill run {recipe} --objective.temperature={best[0]:g}" in page
    # More values later: what is finished counts.
    del done[:]
    assert cli.main(["sweep", recipe, "--alpha", ".9,.5", "--temperature=4,2,3", "--output", "out"]) == cli.OK
    assert done == [f"out/trials/alpha={alpha},temperature=3/seed-42/student" for alpha in (0.5, 0.9)][::-1]
    assert "6 trials; 4 finished before, the others need about" in capsys.readouterr().out


def test_the_best_is_run_with_the_models_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A teacher that is fine-tuned keeps its own learning rate while that of the students varies.
    teacher = {"finetune": {"max_steps": 3}}
    recipe = str(small_recipe(tmp_path, training=SHORT, teacher=teacher))
    trained: list[str] = []
    train = DistillationTrainer.train
    monkeypatch.setattr(Run, "_measure", lambda self: None)
    monkeypatch.setattr(
        DistillationTrainer,
        "train",
        lambda self, *args, **kwargs: (trained.append(self.args.output_dir), train(self, *args, **kwargs))[1],
    )
    command = ["sweep", recipe, "--training.learning_rate", "1e-3,0.02", "--seeds", "5,", "--output", "out"]
    assert cli.main([*command, "--run-best"]) == cli.OK
    assert [name for name in trained if "/teacher/" in name] == ["out/teacher/checkpoints"]
    assert [name for name in trained if name.startswith("out/best")] == ["out/best/seed-5/control/checkpoints"]
    content = swept("out")
    chosen = Path("out") / content["trials"][content["chosen"] - 1]["folder"]
    for former, now, steps in ((Path("out"), "teacher", 3), (chosen, "seed-5/student", 2)):
        files = [folder / now / "model.safetensors" for folder in (former, Path("out/best"))]
        assert files[0].read_bytes() == files[1].read_bytes()
        facts = json.loads((Path("out/best") / now / "stage.json").read_text())
        assert facts["metrics"] and facts["steps"] == steps
    assert "test" in Path("out/best/report.md").read_text()
    # The page's command and best.yaml mean the very same run, and nothing of it is left to do.
    _, _, _, *words = shlex.split(content["command"])
    assert words[0] == "--teacher.finetune.learning_rate=0.01" and words[2:] == ["--seed", "5"]
    assert replace(load_recipe(recipe, override_arguments(words[:2])), seeds=[5]) == load_recipe("out/best.yaml")
    capsys.readouterr()
    assert cli.main(["run", "out/best.yaml", "--output", "out/best"]) == cli.OK
    assert "Finished before: teacher, control (seed 5), student (seed 5)." in capsys.readouterr().out


def interrupted_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Press Ctrl-C in that training step; returns how to undo it."""
    step, left = DistillationTrainer.training_step, [steps]

    def pressed(self: Any, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", pressed)
    return lambda: monkeypatch.setattr(DistillationTrainer, "training_step", step)


def test_an_interrupted_sweep_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(small_recipe(tmp_path, training={**SHORT, "max_steps": 6, "save_steps": 2}))
    command = ["sweep", recipe, "--alpha", ".5,.9,.7", "--output"]
    undo = interrupted_after(10, monkeypatch)
    assert cli.main([*command, "disturbed"]) == cli.INTERRUPTED
    assert "to go on: hfdistill sweep" in capsys.readouterr().err
    undo()
    assert [trial["state"] for trial in swept("disturbed")["trials"]] == ["finished", "waiting", "waiting"]
    done = done_stages(monkeypatch)
    assert cli.main([*command, "disturbed"]) == cli.OK
    # The second trial had made three steps.
    assert capsys.readouterr().out.count("going on from checkpoint-2") == 1
    assert done == [f"disturbed/trials/alpha={alpha}/seed-42/student" for alpha in (0.9, 0.7)]
    assert cli.main([*command, "undisturbed"]) == cli.OK
    first, second = swept("disturbed"), swept("undisturbed")
    assert [trial["mean"] for trial in first["trials"]] == [trial["mean"] for trial in second["trials"]]
    for trial in first["trials"]:
        ends = [
            Path(out) / trial["folder"] / "seed-42/student/model.safetensors" for out in ("disturbed", "undisturbed")
        ]
        assert ends[0].read_bytes() == ends[1].read_bytes(), trial["folder"]


def test_other_values_are_refused_until_they_are_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(small_recipe(tmp_path, training=SHORT))
    command = ["sweep", recipe, "--alpha", ".5,.9", "--output", "out"]
    assert cli.main(command) == cli.OK
    before = swept("out")
    changed = [*command, "--training.weight_decay=0.1"]
    assert cli.main(changed) == cli.USAGE
    message = capsys.readouterr().err
    assert "training.weight_decay was not set and is 0.1. That concerns 2 of 2 trials." in message
    assert swept("out") == before
    assert cli.main([*changed, "--overwrite"]) == cli.OK
    other = ["sweep", recipe, "--temperature", "1,3", "--output", "out"]
    capsys.readouterr()
    assert cli.main(other) == cli.FAILED
    assert "holds a sweep over objective.alpha, and this one is over objective.temperature" in capsys.readouterr().err
    assert cli.main([*other, "--overwrite"]) == cli.OK
    assert sorted(folder.name for folder in Path("out/trials").iterdir()) == ["temperature=1", "temperature=3"]


def test_terms_data_and_teachers_can_vary_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path, training=SHORT)
    content = yaml.safe_load(recipe.read_text())
    shutil.copytree(tmp_path / "vit", tmp_path / "other")
    content["objective"] = {"terms": TERMS[:2]}
    recipe.write_text(yaml.safe_dump(content))
    done = done_stages(monkeypatch)
    keys = {"objective.terms.1.logits.temperature": "1,4", "teacher.model": f"{tmp_path}/vit,{tmp_path}/other"}
    results = run_sweep(grid_of(str(recipe), keys), tmp_path / "out", Reporter(silent=True))
    assert len([name for name in done if name.endswith("/teacher")]) == 2 and len(done) == 6
    terms = [result.trial.recipe.objective.terms or [] for result in results.trials]
    assert [each[1]["logits"]["temperature"] for each in terms] == [1, 4, 1, 4]
    grid = grid_of(str(recipe), {"data.augment": "[],[random_crop]", "student.config": f"{json.dumps(STUDENT)}"})
    assert [trial.recipe.data.augment for trial in grid.trials] == [[], ["random_crop"]]
    assert grid.trials[1].title == 'augment ["random_crop"]'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no list of values came"),
        (["--temperature", "2"], "the command `hfdistill run"),
        (["--temperature", "2,4,2.0"], "objective.temperature: the same value came twice (2 and 2.0)"),
        (["--temperature", "2,,4"], "with nothing between two commas"),
        (["--temperature", "2,hot"], "objective.temperature: got 'hot', expected a number"),
        (["--alpha", ".5,1.5"], "objective.alpha: got 1.5"),
        (["--alpha", ".5,.9", "--objective.alpha=.5"], "objective.alpha came twice"),
        (["--training.learning_rat", "1,2"], "did you mean 'learning_rate'"),
        (["--training.logging_steps", "1,2"], "train the very same student"),
        (["--data.split_seed", "1,2"], "data.split_seed: it may change the examples"),
        (["--training.weight_decay", ",".join(f"{n}e-3" for n in range(201))], "make 201 combinations"),
        (["--alpha", ".5,.9", "--seeds", "4,4"], "expected different whole numbers"),
    ],
)
def test_a_mistake_is_one_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", str(small_recipe(tmp_path, training=SHORT)), *arguments]) == cli.USAGE
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said and "not foreseen" not in said
    assert not Path("runs").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(small_recipe(tmp_path, training=SHORT))
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text("{}")
    for output, message in (("data", "holds other files and no sweep"), ("run", "holds a run and no sweep")):
        assert cli.main(["sweep", recipe, "--alpha", ".5,.9", "--output", output]) == cli.FAILED
        assert message in capsys.readouterr().err


def test_a_recipe_of_terms_is_told_which_keys_to_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe(tmp_path, training=SHORT)
    content = yaml.safe_load(recipe.read_text())
    content["objective"] = {"terms": TERMS}
    recipe.write_text(yaml.safe_dump(content))
    assert cli.main(["sweep", str(recipe), "--temperature", "1,2"]) == cli.USAGE
    said = capsys.readouterr().err
    assert "expected such a key of a term with its values: --objective.terms.1.logits.temperature." in said
    assert cli.main(["sweep", str(recipe), "--alpha", ".1,.2"]) == cli.USAGE
    assert "--objective.terms.0.task.weight or --objective.terms.1.logits.weight" in capsys.readouterr().err


def test_a_trial_that_fails_ends_the_sweep_and_the_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(small_recipe(tmp_path, training=SHORT))
    command = ["sweep", recipe, "--objective.alpha", ".5,.6", "--student.config.hidden_sizes", "[8],[-8]"]
    assert cli.main([*command, "--output", "out"]) != cli.OK
    said = capsys.readouterr().err
    assert "trial 2 of 4 (alpha 0.5, hidden_sizes [-8]) failed: " in said and "Finished trials are kept" in said
    assert [trial["state"] for trial in swept("out")["trials"]] == ["finished", "waiting", "waiting", "waiting"]


def test_the_best_is_the_first_of_equals_and_has_a_number(tmp_path: Path) -> None:
    grid = grid_of(str(small_recipe(tmp_path)), {"objective.alpha": ".1,.2,.3,.4"}).with_seeds([1, 2])
    metrics = [{1: 0.8, 2: None}, {1: 0.5, 2: 0.7}, {1: 0.7, 2: 0.5}, {1: 0.6, 2: 0.59}]
    trials = [
        Result(trial, {seed: {"accuracy": number, "loss": 1.0} for seed, number in by_seed.items()}, state=FINISHED)
        for trial, by_seed in zip(grid.trials, metrics, strict=True)
    ]
    results = Results(grid, "single_label_classification", trials)
    assert results.best is trials[1]
    assert "As good: alpha 0.3. The first was taken." in sentence(results)
    assert trials[1].spread(results.metric) == pytest.approx(0.02**0.5)
    assert trials[0].spread(results.metric) is None
    trials[2].by_seed[1] = {"accuracy": 0.69}
    assert "The next (alpha 0.3) is within the spread of its seeds." in sentence(results)
    # Of a loss less is better.
    for result, loss in zip(trials, (2.0, 1.0, 0.5, 3.0), strict=True):
        result.by_seed = {1: {"loss": loss}, 2: {"loss": loss}}
    assert Results(grid, "causal_lm", trials).best is trials[2]


def test_a_terminal_shows_the_table_above_the_bar(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=12)
    grid = grid_of(str(small_recipe(tmp_path, training=SHORT)), {"objective.alpha": ".5,.6,.7,.8"})
    run_sweep(grid, tmp_path / "out", Reporter(console))
    shown = console.file.getvalue()
    assert "running" in shown and "1 more row" in shown and "finished, best" in shown


@pytest.mark.slow
def test_two_processes_sweep_as_one(tmp_path: Path) -> None:
    recipe = str(small_recipe(tmp_path, training=SHORT, teacher={"finetune": {"max_steps": 2}}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "hfdistill", "sweep", recipe, "--alpha", ".5,.9", "--output", "out", "--run-best"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Best of 2:") == 1
    assert json.loads((tmp_path / "out/best/seed-42/student/stage.json").read_text())["processes"] == 2
