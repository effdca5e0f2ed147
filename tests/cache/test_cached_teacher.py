"""A teacher on the disk: the same training as with the live one, and an error for whatever has changed since."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import IterableDataset, Subset
from transformers import TrainerCallback

from hfdistill import (
    Attentions,
    CachedTeacher,
    HfDistillError,
    HiddenStates,
    Logits,
    Module,
    Objective,
    Relations,
    TaskLoss,
)
from hfdistill.cache.shards import Index
from tests.cache import runs
from tests.tasks.trajectory import HEADS
from tests.trainer.trajectory import assert_same

EXAMPLES = 24


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("name", ["vit", "resnet", "bert", *HEADS])
def test_in_float32_it_is_the_live_teacher(name: str, tmp_path: Path) -> None:
    """While it fills itself, and from the disk alone."""
    live = runs.trained(name, runs.teacher(name), tmp_path / "out")
    cache = tmp_path / "cache"
    assert_equal(live, runs.trained(name, CachedTeacher(cache, runs.teacher(name), dtype="float32"), tmp_path / "out"))
    assert_equal(live, runs.trained(name, CachedTeacher(cache), tmp_path / "out"))
    assert len(Index(cache)) == EXAMPLES


@pytest.mark.parametrize("name", ["vit", "bert_tags", "llama", "t5"])
def test_in_float16_it_is_close(name: str, tmp_path: Path) -> None:
    """Within the rounding of the targets, and the same in each epoch, the first included."""
    live = runs.trained(name, runs.teacher(name), tmp_path / "out")
    filling = runs.trained(name, CachedTeacher(tmp_path / "cache", runs.teacher(name)), tmp_path / "out")
    assert_equal(filling, runs.trained(name, CachedTeacher(tmp_path / "cache"), tmp_path / "out"))
    for key, value in live.items():
        torch.testing.assert_close(filling[key], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "bert_masked", "t5", "bert_tags"])
def test_the_most_likely_classes_and_the_rest(name: str, tmp_path: Path) -> None:
    """All classes but one are nearly the whole teacher; fewer are what the loss of top-k says."""
    config = runs.teacher(name).config
    classes = config.num_labels if name == "bert_tags" else config.vocab_size
    live = runs.trained(name, runs.teacher(name), tmp_path / "out")
    given = CachedTeacher(tmp_path / "cache", runs.teacher(name), top_k=classes - 1, temperatures=(2.0,))
    filling = runs.trained(name, given, tmp_path / "out")
    assert_equal(filling, runs.trained(name, CachedTeacher(tmp_path / "cache"), tmp_path / "out"))
    for key, value in live.items():
        torch.testing.assert_close(filling[key], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["vit", "bert_tags", "llama", "t5", "bert_choices", "bert_spans"])
def test_accumulation_and_other_batches_change_nothing(name: str, tmp_path: Path) -> None:
    """Filled in batches of eight, read in batches of two: other padding, the same rows."""
    cache = tmp_path / "cache"
    whole = runs.trained(name, CachedTeacher(cache, runs.teacher(name), dtype="float32"), tmp_path / "out")
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert_same(whole, runs.trained(name, CachedTeacher(cache), tmp_path / "out", **cut))


def inner_objective(part: str | None = None) -> Objective:
    """Terms on what is inside."""
    terms = [TaskLoss(weight=0.5), Logits(weight=0.5, temperature=2.0), HiddenStates(layers="uniform", part=part)]
    return Objective([*terms, Relations("similarity_preserving", part=part)])


@pytest.mark.parametrize(("name", "part"), [("vit", None), ("resnet", None), ("bert", None), ("t5", "decoder")])
def test_hidden_states_are_kept_too(name: str, part: str | None, tmp_path: Path) -> None:
    """Those layers that the terms read."""

    def seen(given: Any, **changes: Any) -> dict[str, torch.Tensor]:
        return runs.trained(name, given, tmp_path / "out", objective=inner_objective(part), **changes)

    live = seen(runs.teacher(name))
    assert_equal(live, seen(CachedTeacher(tmp_path / "cache", runs.teacher(name), dtype="float32")))
    assert_equal(live, seen(CachedTeacher(tmp_path / "cache")))


def test_modules_and_relations_of_attention_are_kept_too(tmp_path: Path) -> None:
    """By the outputs of the projections, for which no map is needed."""
    terms = [TaskLoss(), Attentions("attention_relation", relation_heads=2), Module("bert.embeddings")]
    live = runs.trained("bert", runs.teacher("bert"), tmp_path / "out", objective=Objective(terms))
    given = CachedTeacher(tmp_path / "cache", runs.teacher("bert"), dtype="float32")
    assert_equal(live, runs.trained("bert", given, tmp_path / "out", objective=Objective(terms)))
    assert_equal(
        live, runs.trained("bert", CachedTeacher(tmp_path / "cache"), tmp_path / "out", objective=Objective(terms))
    )


def test_attention_maps_are_refused(tmp_path: Path) -> None:
    """They grow with the square of the length."""
    terms = [TaskLoss(), Attentions("attention_map_kl")]
    with pytest.raises(HfDistillError, match="too large to keep"):
        runs.trainer_of(
            "bert", CachedTeacher(tmp_path / "c", runs.teacher("bert")), tmp_path, objective=Objective(terms)
        )


def filled(tmp_path: Path, name: str = "vit", **options: Any) -> Path:
    """A cache of all examples."""
    trainer = runs.trainer_of(name, CachedTeacher(tmp_path / "cache", runs.teacher(name), **options), tmp_path / "out")
    assert trainer.fill_cache(bar=lambda batches, title: batches).new == EXAMPLES
    return tmp_path / "cache"


def test_filling_before_a_training(tmp_path: Path) -> None:
    """All at once; a second time there is nothing to do, and a training asks nobody."""
    cache = filled(tmp_path, dtype="float32")
    again = runs.trainer_of("vit", CachedTeacher(cache, runs.teacher("vit")), tmp_path / "out")
    assert again.fill_cache(bar=lambda batches, title: batches).new == 0
    live = runs.trained("vit", runs.teacher("vit"), tmp_path / "out")
    assert_equal(live, runs.trained("vit", CachedTeacher(cache), tmp_path / "out"))


class Stream(IterableDataset[Any]):
    """The examples of a list, one after the other, without a number."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def test_streams_filters_and_workers(tmp_path: Path) -> None:
    """Rows are known by what is in them, so that no number can go wrong."""
    cache, rows = filled(tmp_path, dtype="float32"), runs.examples("vit")
    stream = runs.trained("vit", CachedTeacher(cache), tmp_path / "out", rows=Stream(rows))
    assert_equal(stream, runs.trained("vit", runs.teacher("vit"), tmp_path / "out", rows=Stream(rows)))
    some = Subset(rows, [20, 3, 11, 7, 5, 2, 19, 1])
    settings = {"dataloader_num_workers": 2, "remove_unused_columns": False}
    few = runs.trained("vit", CachedTeacher(cache), tmp_path / "out", rows=some, **settings)
    assert_equal(few, runs.trained("vit", runs.teacher("vit"), tmp_path / "out", rows=some))


class StopAt(TrainerCallback):
    """Stops a training after a step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after each optimizer step."""
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """A cache that was half full at the checkpoint goes on."""
    whole = runs.trained("vit", CachedTeacher(tmp_path / "one", runs.teacher("vit")), tmp_path / "out")
    cache = tmp_path / "two"
    first = runs.trainer_of("vit", CachedTeacher(cache, runs.teacher("vit")), tmp_path / "run")
    first.add_callback(StopAt(1))
    first.train()
    assert 0 < len(Index(cache)) < EXAMPLES
    second = runs.trainer_of("vit", CachedTeacher(cache, runs.teacher("vit")), tmp_path / "run")
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for name, value in second.model.named_parameters():
        assert torch.equal(value, whole[f"parameter {name}"])
    assert len(Index(cache)) == EXAMPLES


@pytest.mark.slow
def test_several_processes_fill_one_cache(tmp_path: Path) -> None:
    """Each its share, and each reads what all have written."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, "-m", "tests.cache.runs", str(tmp_path)], check=True, timeout=240)
    seen = load_file(tmp_path / "seen.safetensors")
    assert int(seen.pop("processes")) == 2
    assert int(seen.pop("filled here")) == EXAMPLES // 2
    assert_same(runs.trained("vit", runs.teacher("vit"), tmp_path / "out"), seen)


def test_an_edited_example_is_missed(tmp_path: Path) -> None:
    """At the start, by the sample."""
    cache, rows = filled(tmp_path), runs.examples("vit")
    rows[3] = {**rows[3], "pixel_values": rows[3]["pixel_values"] + 1e-3}
    with pytest.raises(HfDistillError, match=r"1 of 4 examples .* though others are: .* changed or added to"):
        runs.trainer_of("vit", CachedTeacher(cache), tmp_path / "out", rows=rows)
    fresh = runs.trainer_of("vit", CachedTeacher(cache, runs.teacher("vit")), tmp_path / "out", rows=rows)
    assert fresh.fill_cache(bar=lambda batches, title: batches).new == 1


def test_inputs_of_another_form_are_named(tmp_path: Path) -> None:
    """Another processor made them."""
    cache, rows = filled(tmp_path), runs.examples("vit")
    wide = [{**row, "pixel_values": torch.nn.functional.pad(row["pixel_values"], (0, 8))} for row in rows]
    with pytest.raises(HfDistillError, match=r"reads pixel_values float32 \(3, 16, 24\), and it was .*\(3, 16, 16\)"):
        runs.trainer_of("vit", CachedTeacher(cache), tmp_path / "out", rows=wide)


def test_another_teacher_task_or_folder_is_refused(tmp_path: Path) -> None:
    """Each with what was found."""
    cache = filled(tmp_path)
    other = runs.teacher("vit")
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(HfDistillError, match="targets of another teacher: ViTForImageClassification with weights"):
        runs.trainer_of("vit", CachedTeacher(cache, other), tmp_path / "out")
    with pytest.raises(HfDistillError, match=r"is no cache: it holds no cache\.json"):
        runs.trainer_of("vit", CachedTeacher(tmp_path / "nothing"), tmp_path / "out")
    manifest = cache / "cache.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"single_label_classification",\n  "inputs"', '"regression",\n  "inputs"'))
    with pytest.raises(HfDistillError, match="holds targets for regression, and the student's task is single_label"):
        runs.trainer_of("vit", CachedTeacher(cache), tmp_path / "out")
    manifest.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(HfDistillError, match="is of format 2; this version of hfdistill reads 1"):
        runs.trainer_of("vit", CachedTeacher(cache), tmp_path / "out")
    manifest.write_text("half a file")
    with pytest.raises(HfDistillError, match="is no manifest of a cache"):
        runs.trainer_of("vit", CachedTeacher(cache), tmp_path / "out")
    manifest.unlink()
    with pytest.raises(HfDistillError, match=r"holds shards and no cache\.json"):
        runs.trainer_of("vit", CachedTeacher(cache, runs.teacher("vit")), tmp_path / "out")


def test_another_precision_is_another_teacher(tmp_path: Path) -> None:
    """Its numbers are others."""
    cache = filled(tmp_path)
    with pytest.raises(HfDistillError, match=r"in float32, and .* in bfloat16 came"):
        runs.trainer_of("vit", CachedTeacher(cache, runs.teacher("vit")), tmp_path / "out", teacher_dtype="bfloat16")


def test_mixing_in_the_batch_is_refused(tmp_path: Path) -> None:
    """No two batches are mixed alike."""
    with pytest.raises(HfDistillError, match=r"ReplayedViews\(dataset, mixup="):
        runs.trainer_of("vit", CachedTeacher(tmp_path / "c", runs.teacher("vit")), tmp_path / "out", mixup=0.5)


def test_stored_numbers_are_held_against_the_live_teacher(tmp_path: Path) -> None:
    """A cache whose numbers were changed, and whose manifest was not."""
    cache = filled(tmp_path)
    for shard in cache.glob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        content[-2 * 3 * EXAMPLES :] = bytes(range(2 * 3 * EXAMPLES))
        shard.write_bytes(bytes(content))
    with pytest.raises(HfDistillError, match="holds other targets than the teacher gives now"):
        runs.trainer_of("vit", CachedTeacher(cache, runs.teacher("vit")), tmp_path / "out")


def test_losses_that_need_all_logits_are_refused_with_top_k(tmp_path: Path) -> None:
    """By the term's name."""
    objective = Objective([Logits("reverse_kl")])
    trainer = runs.trainer_of(
        "llama", CachedTeacher(tmp_path / "c", runs.teacher("llama"), top_k=5), tmp_path / "out", objective=objective
    )
    with pytest.raises(HfDistillError, match="keeps the most likely classes"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"dtype": "int8"}, "dtype='int8'"), ({"top_k": "all"}, "top_k='all'"), ({"teacher_model": 3}, "holds a int")],
)
def test_bad_arguments_are_refused(options: dict[str, Any], said: str) -> None:
    """At construction."""
    with pytest.raises(HfDistillError, match=said):
        CachedTeacher("folder", **options)
