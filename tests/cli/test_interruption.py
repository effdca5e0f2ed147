"""A run that is killed, then interrupted, then left alone ends with the weights of one that was never touched."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from hfdistill import cli
from hfdistill.stages.run import Run
from tests.cli.small_run import small_recipe

ROOT = Path(__file__).parents[2]
LONG = {"max_steps": 200, "save_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 0.01, "use_cpu": True}


def stopped(arguments: list[str], when: Callable[[], bool], how: signal.Signals) -> tuple[int, str]:
    """Run the command until `when`, end it with a signal; returns its exit code and what it said."""
    command = [sys.executable, "-m", "hfdistill", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    # A shell starts what it runs in the background with interrupts ignored, and that is inherited.
    pipes["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **pipes) as process:
        limit = time.monotonic() + 120
        while not when() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.timeout(300)
def test_a_killed_and_interrupted_run_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(Run, "close", lambda self, changed: None)
    monkeypatch.setattr(cli, "_set_environment", lambda debug: None)
    monkeypatch.setattr(cli, "_end_on_sigterm", lambda: None)
    recipe = str(small_recipe(tmp_path, training=LONG, data={"augment": ["random_crop"]}))
    output = tmp_path / "disturbed"
    arguments = ["run", recipe, "--output", str(output)]

    def checkpoint_of(stage: str) -> Callable[[], bool]:
        return lambda: any((output / "seed-42" / stage / "checkpoints").glob("checkpoint-*/trainer_state.json"))

    code, _ = stopped(arguments, checkpoint_of("control"), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (output / "seed-42" / "control" / "stage.json").exists()
    code, said = stopped(arguments, checkpoint_of("student"), signal.SIGINT)
    assert code == cli.INTERRUPTED
    assert "Interrupted." in said and f"hfdistill run {recipe}" in said and "Traceback" not in said
    assert (output / "seed-42" / "control" / "stage.json").exists()
    assert not (output / "seed-42" / "student" / "stage.json").exists()
    assert cli.main(arguments) == cli.OK
    assert "going on from checkpoint-" in capsys.readouterr().out
    assert cli.main(["run", recipe, "--output", str(tmp_path / "undisturbed")]) == cli.OK
    for stage in ("control", "student"):
        ends = [tmp_path / run / "seed-42" / stage / "model.safetensors" for run in ("disturbed", "undisturbed")]
        assert ends[0].read_bytes() == ends[1].read_bytes(), stage
