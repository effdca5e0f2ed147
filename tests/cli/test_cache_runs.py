"""A recipe's teacher on the disk: the same student as with the live one, and errors for whatever has changed since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from transformers import ViTForImageClassification

from hfdistill import cache_exchange, cli
from hfdistill.cache.shards import Index
from hfdistill.cache_exchange import Exchanged
from hfdistill.filling import Filling
from hfdistill.stages.run import Run
from tests.cli import test_token_runs as of_tokens
from tests.cli.small_run import small_recipe
from tests.recipes import inputs

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

ROWS = 60 + 12
STEPS = 8
"""Of 8 rows each: an epoch of the 60."""


@pytest.fixture(autouse=True)
def without_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured elsewhere."""
    monkeypatch.setattr(Run, "close", lambda self, changed: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each forward of a teacher had, from now on."""
    seen: list[int] = []
    forward = ViTForImageClassification.forward

    def counted(self: Any, pixel_values: torch.Tensor, **more: Any) -> Any:
        seen.append(len(pixel_values))
        return forward(self, pixel_values, **more)

    monkeypatch.setattr(ViTForImageClassification, "forward", counted)
    return seen


def recipe_of(folder: Path, epochs: int = 2, **sections: Any) -> str:
    training = {"max_steps": STEPS * epochs, "eval_strategy": "epoch", **sections.pop("training", {})}
    return str(small_recipe(folder, training=training, **sections))


def run(recipe: str, output: str, *changes: str, code: int = cli.OK) -> bytes:
    """The weights of the student of a run without its control."""
    assert cli.main(["run", recipe, "--no-control", "--output", output, *changes]) == code
    file = Path(output) / "seed-42" / "student" / "model.safetensors"
    return file.read_bytes() if file.exists() else b""


def said(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).split())


WHOLE = "teacher.cache={path: kept, dtype: float32}"


def test_the_student_is_the_live_one_to_the_last_bit(
    tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """While the cache fills itself, and filled before, without the teacher."""
    recipe = recipe_of(tmp_path)
    live = run(recipe, "live")
    assert run(recipe, "filling", "--teacher.cache={dtype: float32}") == live
    assert len(Index(Path("filling/cache"))) == ROWS
    assert cli.main(["cache", recipe, f"--{WHOLE}", "--output", "other"]) == cli.OK
    assert f"Cache: {ROWS} examples, {ROWS} new; " in said(capsys)
    assert not Path("other/teacher").exists()
    del asked[:]
    assert run(recipe, "whole", f"--{WHOLE}") == live
    # The teacher's own exam, on test and validation.
    assert sum(asked) == 15 + 12
    assert "without the teacher in memory: all its targets are in kept" in said(capsys)
    # In float32 nothing else is learnt, so that a finished stage counts.
    run(recipe, "live", f"--{WHOLE}")
    assert "Finished before: teacher, student (seed 42)." in said(capsys)
    run(recipe, "live", "--teacher.cache=true", code=cli.USAGE)
    assert "teacher.cache.dtype was not set and is 'float16'" in said(capsys)
    assert cli.main(["cache", recipe, f"--{WHOLE}", "--output", "other"]) == cli.OK
    assert f"{ROWS} examples, 0 new, {ROWS} were there" in said(capsys)


def test_the_teacher_is_not_in_memory_while_a_student_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    train = Run._train_and_finish

    def watched(self: Run, *arguments: Any) -> None:
        held.append(len(self._teacher))
        train(self, *arguments)

    monkeypatch.setattr(Run, "_train_and_finish", watched)
    recipe = recipe_of(tmp_path, epochs=1)
    run(recipe, "first", "--teacher.cache=kept")
    assert cli.main(["cache", recipe, "--teacher.cache=kept", "--output", "out"]) == cli.OK
    run(recipe, "second", "--teacher.cache=kept")
    assert held == [1, 0]


def test_an_imported_cache_is_as_whole_as_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the words of its mark, in which folders of the other machine may stand."""
    recipe = recipe_of(tmp_path, epochs=1)
    assert cli.main(["cache", recipe, f"--{WHOLE}", "--output", "out"]) == cli.OK
    (mark,) = Path("kept").glob("whole-*.json")
    Path("kept/whole-0123.json").write_text("half")
    cache_exchange.export_cache("kept", "set")
    assert str(tmp_path) not in Path("set/cache.json").read_text(encoding="utf-8")
    cache_exchange.import_cache("set", "back")
    shutil.rmtree("kept")
    assert [file.name for file in Path("back").glob("whole-*.json")] == [mark.name]
    capsys.readouterr()
    run(recipe, "run", "--teacher.cache={path: back, dtype: float32}")
    assert "without the teacher in memory: all its targets are in back" in said(capsys)


def test_views_repeat(tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """Two epochs of changes in four epochs: the third learns from those of the first."""
    recipe = recipe_of(tmp_path, epochs=4, data={"augment": ["random_crop", "horizontal_flip"]})
    views = "--teacher.cache={path: kept, dtype: float32, views: 2}"
    assert cli.main(["cache", recipe, views, "--output", "out", "--seeds", "2"]) == cli.OK
    told = said(capsys)
    assert "60 training examples in 2 views of seed 42, 12 for validation" in told
    assert "60 training examples in 2 views of seed 43, 12 for validation" in told
    # Small pictures have few crops, so that some views are the same as others.
    assert 4 * 60 < len(Index(Path("kept"))) <= 4 * 60 + 12
    del asked[:]
    whole = run(recipe, "whole", views)
    assert sum(asked) == 15 + 12
    assert "random changes of 2 epochs are kept; from epoch 3 of 4 on they come again" in said(capsys)
    filling_itself = "--teacher.cache={dtype: float32, views: 2}"
    assert run(recipe, "filling", filling_itself) == whole
    assert 2 * 60 < len(Index(Path("filling/cache"))) <= 2 * 60 + 12
    live = run(recipe, "live")
    assert live != whole
    # As many views as epochs are the changes of a live run.
    assert run(recipe, "every", "--teacher.cache={dtype: float32, views: 4}") == live
    # The mark speaks of two epochs, so that a training which shows more asks the teacher for the rest.
    capsys.readouterr()
    assert run(recipe, "more", "--teacher.cache={path: kept, dtype: float32}") == live
    assert "the teacher's targets are kept in kept" in said(capsys)


def test_a_teacher_that_sees_pictures_unchanged_needs_one_view(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"augment": ["horizontal_flip"], "teacher_sees": "unchanged"}
    recipe = recipe_of(tmp_path, data=data)
    assert cli.main(["cache", recipe, "--teacher.cache={path: kept, dtype: float32}", "--output", "out"]) == cli.OK
    assert "60 training examples, 12 for validation" in said(capsys)
    assert len(Index(Path("kept"))) == ROWS
    assert run(recipe, "whole", f"--{WHOLE}") == run(recipe, "live")


def test_a_fine_tuned_teacher_is_made_first_and_known_by_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, epochs=1, teacher={"finetune": {"max_steps": 2}})
    assert cli.main(["cache", recipe, "--output", "out"]) == cli.OK
    assert "--teacher.cache=out/cache" in said(capsys)
    run(recipe, "out", "--teacher.cache=true")
    told = said(capsys)
    assert "Finished before: teacher." in told and "without the teacher in memory" in told
    shutil.rmtree("out/teacher")
    shutil.rmtree("out/seed-42")
    run(recipe, "out", "--teacher.cache=true", "--teacher.finetune.max_steps=3", code=cli.FAILED)
    told = said(capsys)
    assert "out/cache holds targets of another teacher" in told and "the teacher in out/teacher has weights" in told
    assert "Delete out/cache, or name another folder in teacher.cache.path." in told
    assert cli.main(["cache", recipe, "--output", "out", "--teacher.finetune.max_steps=4"]) == cli.USAGE
    assert "teacher.finetune.max_steps was 3 and is 4" in said(capsys)


def edited(folder: Path) -> None:
    """Other pictures with the same labels."""
    data = {"train": inputs.pictures(60, seed=7), "validation": inputs.pictures(12, seed=1)}
    shutil.rmtree(folder / "data")
    inputs.data_folder(folder / "data", data | {"test": inputs.pictures(15, seed=2)})


def test_a_whole_cache_in_which_something_is_missing_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, epochs=1)
    command = ["cache", recipe, f"--{WHOLE}", "--output", "out"]
    assert cli.main(command) == cli.OK
    (mark,) = Path("kept").glob("whole-*.json")
    assert json.loads(mark.read_text())["examples"] == ROWS
    edited(tmp_path)
    run(recipe, "one", f"--{WHOLE}", code=cli.FAILED)
    told = said(capsys)
    assert "not in the cache kept" in told and "run `hfdistill cache` again" in told and "delete the mark" in told
    assert cli.main(command) == cli.OK
    new = len(Index(Path("kept"))) - ROWS
    assert 0 < new <= 60 and f"{new} new" in said(capsys)
    # Shards that were removed.
    max(Path("kept").glob("*.safetensors"), key=lambda path: path.stat().st_size).unlink()
    run(recipe, "three", f"--{WHOLE}", code=cli.FAILED)
    assert "shards have been removed" in said(capsys)
    mark.unlink()
    run(recipe, "three", f"--{WHOLE}")
    mark.write_text("half")
    run(recipe, "four", f"--{WHOLE}", code=cli.FAILED)
    assert "delete it and run `hfdistill cache` again" in said(capsys)


def test_a_cache_of_another_teacher_task_or_form_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path, epochs=1)
    assert cli.main(["cache", recipe, "--teacher.cache=kept", "--output", "out"]) == cli.OK
    other = inputs.model_folder(tmp_path / "other", "vit", seed=3)
    run(recipe, "a", "--teacher.cache=kept", f"--teacher.model={other}", code=cli.FAILED)
    assert "kept holds targets of another teacher (ViTForImageClassification with weights" in (told := said(capsys))
    assert f"{other} has weights" in told
    run(recipe, "b", f"--{WHOLE}", code=cli.FAILED)
    assert "was filled with dtype float16, and the recipe says float32" in (told := said(capsys))
    assert "teacher.cache.dtype: float16" in told
    run(recipe, "c", "--teacher.cache={path: kept, top_k: 2}", code=cli.FAILED)
    assert "was filled with top_k null, and the recipe says 2" in said(capsys)
    manifest = Path("kept/cache.json")
    manifest.write_text(manifest.read_text().replace('"task": "single_label_classification"', '"task": "regression"'))
    run(recipe, "d", "--teacher.cache=kept", code=cli.FAILED)
    assert "kept holds targets for regression, and the student's task is single_label" in said(capsys)


def test_the_most_likely_classes_are_kept_for_the_temperatures_of_the_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, epochs=1, objective={"temperature": 3.0})
    top = "--teacher.cache={path: kept, top_k: 2}"
    assert cli.main(["cache", recipe, top, "--output", "out"]) == cli.OK
    kept = json.loads(Path("kept/cache.json").read_text())["contents"]["top_k"]
    assert (kept["k"], kept["temperatures"]) == (2, [3.0])
    run(recipe, "a", top)
    capsys.readouterr()
    run(recipe, "b", top, "--objective.temperature=2", code=cli.FAILED)
    told = said(capsys)
    assert "weigh at temperature 3, and the objective asks for 2" in told
    assert "teacher.cache.temperatures: [2, 3]" in told


def test_trials_of_a_sweep_share_one_cache(
    tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """One forward of the teacher for each example, whatever is tried; and what the trials ask of the rest is kept."""
    recipe = recipe_of(tmp_path, epochs=1)
    sweep = ["sweep", recipe, "--temperature", "1,2,4", "--output", "swept", "--teacher.cache={top_k: 2}"]
    assert cli.main(sweep) == cli.OK
    # Its own exam, each example of training and evaluation once, and a sample of four that later trials compare with.
    assert sum(asked) == 12 + ROWS + 2 * 4
    kept = json.loads(Path("swept/cache/cache.json").read_text())["contents"]["top_k"]
    assert kept["temperatures"] == [1.0, 2.0, 4.0]
    other = ["sweep", recipe, "--output", "other", "--teacher.cache=kept", "--teacher.dtype=float32,bfloat16"]
    assert cli.main(other) == cli.USAGE
    assert "teacher.dtype: each of its values has a teacher or a cache of its own, and kept can hold one" in said(
        capsys
    )


def test_an_interrupted_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, training={"per_device_eval_batch_size": 8})
    command = ["cache", recipe, f"--{WHOLE}", "--output", "out"]
    batch, left = Filling._batch, [3]

    def pressed(self: Filling, given: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        batch(self, given)

    monkeypatch.setattr(Filling, "_batch", pressed)
    assert cli.main(command) == cli.INTERRUPTED
    assert "What the teacher has said is kept in kept; to go on: hfdistill cache" in said(capsys)
    assert len(Index(Path("kept"))) == 16 and not list(Path("kept").glob("whole-*"))
    assert cli.main(command) == cli.OK
    assert f"{ROWS} examples, {ROWS - 16} new, 16 were there" in said(capsys)


def test_a_filled_cache_is_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Any] = []

    def pushed(path: Path, repo_id: str, *, private: bool | None, bar: Any) -> Exchanged:
        sent.append((path, repo_id, private))
        return Exchanged("the Hub", 3, ROWS, 1000)

    monkeypatch.setattr(cache_exchange, "push_cache", pushed)
    recipe = recipe_of(tmp_path, epochs=1)
    assert cli.main(["cache", recipe, "--output", "out", "--push", "me/it", "--private"]) == cli.OK
    assert sent == [(Path("out/cache"), "me/it", True)]
    assert f"Pushed to the Hub: {ROWS} examples" in said(capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--teacher.cache.dtype=int8"], "one of float16, float32"),
        (["--teacher.cache.topk=3"], "did you mean 'top_k'"),
        (["--teacher.cache.top_k=all"], "expected a number, auto, or null"),
        (["--teacher.cache.views=0"], "expected at least 1"),
        (["--teacher.cache.views=2"], "the teacher sees each example in the same way in every epoch"),
        (["--teacher.cache.temperatures=[0]"], "expected numbers above 0"),
        (["--teacher.cache=true", "--objective.mixup=0.5"], "ReplayedViews(dataset, mixup=...)"),
        (["--teacher.cache=true", "--teacher.model=null", "--teacher.ema=0.9"], "it came beside teacher.ema"),
        (["--teacher.cache=true", "--teacher.zero_shot={}"], "it came beside teacher.zero_shot"),
        (["--teacher.cache=kept", "--assistants=[student]"], "each of which has another teacher"),
    ],
)
def test_what_no_cache_can_hold_is_refused_early(
    changes: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", recipe_of(tmp_path), *changes]) == cli.USAGE
    assert message in said(capsys)
    assert not Path("runs").exists()


def test_each_link_of_a_chain_has_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path, epochs=1)
    run(recipe, "out", "--assistants=[student]", "--teacher.cache=true")
    assert len(Index(Path("out/assistant-1/cache"))) == len(Index(Path("out/cache"))) == ROWS
    capsys.readouterr()
    assert cli.main(["cache", recipe, "--assistants=[student]"]) == cli.USAGE
    assert "fills a cache for each as it goes" in said(capsys)


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "token_classification"])
def test_heads_over_tokens_learn_the_same_from_the_disk(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where masks are drawn anew in each epoch, all of them are kept; texts of other lengths are padded otherwise."""
    vocabulary = of_tokens.tokenizer_folder(tmp_path / "tokenizer")
    model, processor = (of_tokens.LLAMA, "bytes") if task == "causal_lm" else (of_tokens.BERT, vocabulary)
    data = {} if task == "token_classification" else {"max_length": 16}
    recipe = str(of_tokens.recipe_file(tmp_path, task, model, processor, **data))
    changes = [f"--{WHOLE[:-1]}, top_k: null}}", "--training.num_train_epochs=2", "--training.max_steps=-1"]
    assert cli.main(["cache", recipe, "--output", "out", *changes]) == cli.OK
    assert ("views of seed 42" in said(capsys)) == (task == "masked_lm")
    whole = run(recipe, "out", *changes)
    assert "without the teacher in memory" in said(capsys)
    live = run(recipe, "live", *changes[1:])
    if task == "token_classification":
        torch.testing.assert_close(load(whole), load(live), rtol=1e-4, atol=1e-5)
    else:
        assert live == whole
