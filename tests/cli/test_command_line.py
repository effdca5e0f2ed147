"""The command line: exit codes, one clear message for each mistake, and never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hfdistill import cli
from hfdistill.recipe import load_recipe
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.processes import launch_warning
from hfdistill.stages.run import Run
from hfdistill.stages.training import last_whole_checkpoint
from tests.cli.small_run import small_recipe

ROOT = Path(__file__).parents[2]
END_ON_SIGTERM = cli._end_on_sigterm


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def stages(output: Path) -> dict[str, dict[str, Any]]:
    return {str(file.parent.relative_to(output)): json.loads(file.read_text()) for file in output.rglob("stage.json")}


def test_help_answers_without_the_heavy_libraries() -> None:
    code = (
        "import sys; from hfdistill.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--training.learning_rate" in done.stdout
    assert time.perf_counter() - started < 5


def test_a_run_is_whole_and_a_second_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(small_recipe(tmp_path))
    assert cli.main(["run", recipe, "--seeds", "2"]) == cli.OK
    output = tmp_path / "runs" / "small"
    first = stages(output)
    names = ["seed-42/control", "seed-42/student", "seed-43/control", "seed-43/student", "teacher"]
    assert sorted(first) == names
    assert {first[name]["steps"] for name in names[:4]} == {4}
    assert not list(output.rglob("checkpoint*"))
    assert "accuracy" in capsys.readouterr().out and (output / "report.md").is_file()
    assert cli.main(["run", recipe, "--seeds", "2"]) == cli.OK
    assert "Finished before: teacher, control (seed 42)" in capsys.readouterr().out
    assert stages(output) == first


def test_a_changed_recipe_is_refused_until_it_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    recipe = str(small_recipe(tmp_path))
    assert cli.main(["run", recipe, "--output", "out"]) == cli.OK
    before = stages(tmp_path / "out")
    changed = ["run", recipe, "--output", "out", "--objective.alpha=0.9", "--training.logging_steps=1"]
    assert cli.main(changed) == cli.USAGE
    message = capsys.readouterr().err
    assert "objective.alpha was 0.5 and is 0.9. That concerns student (seed 42)." in message
    assert "--output" in message and "--overwrite" in message
    assert stages(tmp_path / "out") == before
    assert cli.main([*changed, "--overwrite"]) == cli.OK
    after = stages(tmp_path / "out")
    assert after["seed-42/control"] == before["seed-42/control"]
    assert after["seed-42/student"]["settings"]["alpha"] == 0.9


def test_control_and_student_begin_alike_and_see_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    # With no share for the teacher the student has to become the control, to the last bit.
    run_recipe(load_recipe(small_recipe(tmp_path, objective={"alpha": 0.0})), tmp_path / "out", Reporter(silent=True))
    files = [tmp_path / "out" / "seed-42" / name / "model.safetensors" for name in ("control", "student")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_control_on_few_labels_has_the_steps_of_its_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    training = {"max_steps": -1, "num_train_epochs": 1.5, "gradient_accumulation_steps": 2, "eval_strategy": "epoch"}
    recipe = load_recipe(
        small_recipe(tmp_path, training=training, data={"labelled": 9}, student={"finetune": {"max_steps": 3}})
    )
    run_recipe(recipe, tmp_path / "out", Reporter(silent=True))
    found = stages(tmp_path / "out")
    # 60 rows in batches of 8, two to a step: 4 steps an epoch.
    assert found["seed-42/student"]["steps"] == found["seed-42/control"]["steps"] == 6
    assert found["seed-42/finetuned"]["steps"] == 3
    evaluations = {
        name: [row["step"] for row in found[f"seed-42/{name}"]["log_history"] if "eval_loss" in row]
        for name in ("control", "student")
    }
    assert evaluations["control"] == evaluations["student"] == [4, 6]
    assert "9 labelled rows" in found["teacher"]["notices"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "digit"], cli.USAGE, "did you mean 'digits'"),
        (["run", "absent.yaml"], cli.USAGE, "there is no such file"),
        (["run", "RECIPE", "--training.learning_rat=1"], cli.USAGE, "'learning_rate'"),
        (["run", "RECIPE", "--training.lr_scheduler_type=cosin"], cli.USAGE, "'cosine'"),
        (["run", "RECIPE", "--training.per_device_train_batch_size=0"], cli.USAGE, "batch_size"),
        (["run", "RECIPE", "--data.label_column=lable"], cli.USAGE, "image, label"),
        (["run", "RECIPE", "--student.config.model_type=resnt"], cli.USAGE, "'resnet'"),
        (["run", "RECIPE", "--student.config.hiden_sizes=[8]"], cli.USAGE, "'hidden_sizes'"),
        (["run", "RECIPE", "--teacher.model=nobody/nothing"], cli.FAILED, "'nobody/nothing' cannot be loaded"),
        (
            ["run", "RECIPE", "--data.dataset=nobody/nothing"],
            cli.FAILED,
            "Expected a Hub id that this machine can reach",
        ),
        (["run", "RECIPE", "--output", "small.yaml"], cli.FAILED, "is a file; expected a folder"),
        (["run", "RECIPE", "--output", "data"], cli.FAILED, "holds other files and no run"),
        (["run", "RECIPE", "--output", "/proc/nowhere"], cli.FAILED, "Cannot write /proc/nowhere"),
        (["report", "data"], cli.FAILED, "expected the output folder of a run"),
        (["push", "absent", "me/it"], cli.FAILED, "absent"),
        (["report", "data", "--training.learning_rate=1"], cli.USAGE, "this command has none"),
    ],
)
def test_a_mistake_is_one_message(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(small_recipe(tmp_path))
    given = [recipe if argument == "RECIPE" else argument for argument in arguments]
    assert cli.main(given) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said and "not foreseen" not in said


def test_wrong_usage_is_argparse_s() -> None:
    for arguments in (["run"], ["run", "digits", "--sedes", "3"], ["run", "digits", "--seeds", "0"], []):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == cli.USAGE


def test_a_full_disk_is_told_from_other_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hfdistill.stages.run.train", full)
    assert cli.main(["run", str(small_recipe(tmp_path))]) == cli.FAILED
    assert "The disk of runs/small is full" in capsys.readouterr().err


def test_sigterm_ends_a_run_as_ctrl_c_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(options: object) -> int:
        END_ON_SIGTERM()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return cli.OK

    monkeypatch.setattr(cli, "_run", terminated)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(["run", "digits", "--seeds", "3"]) == cli.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert "kept in runs/digits" in said and "to go on: hfdistill run digits --seeds 3" in said


def test_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == cli.OK
    assert "movie_reviews" in capsys.readouterr().out


def test_a_checkpoint_that_was_cut_short_is_not_taken(tmp_path: Path) -> None:
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_st'), (15, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]


def test_a_launcher_that_started_one_process_is_told() -> None:
    alone = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    assert "torchrun --nproc_per_node 2" in (launch_warning(alone) or "")
    assert launch_warning(alone | {"WORLD_SIZE": "2"}) is None
    assert launch_warning({"ACCELERATE_MIXED_PRECISION": "no"}) is None
    assert launch_warning(dict(os.environ)) is None
