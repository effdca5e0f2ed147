"""Random views replay: alike in any order, batch, worker and run, in a training, after a resume and from a cache."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hfdistill import CachedTeacher, DistillationTrainer, HfDistillError, Logits, Objective, ReplayedViews
from tests import by_sgd
from tests.cache.random_pictures import PlainPictures, RandomPictures
from tests.trainer.trajectory import assert_same, examples, models


def pictures(views: ReplayedViews, epoch: int, places: list[int]) -> list[torch.Tensor]:
    views.set_epoch(epoch)
    return [views[place]["pixel_values"] for place in places]


def test_a_view_follows_from_seed_epoch_and_place_alone() -> None:
    views = ReplayedViews(RandomPictures(), epochs=3)
    first = pictures(views, 1, [0, 1, 2, 3])
    again = pictures(ReplayedViews(RandomPictures(), epochs=3), 1, [3, 2, 1, 0])[::-1]
    assert all(map(torch.equal, first, again))
    together = [each["pixel_values"] for each in views.__getitems__([2, 0])]
    assert all(map(torch.equal, together, [first[2], first[0]]))
    for other in (
        pictures(views, 2, [0, 1, 2, 3]),
        pictures(ReplayedViews(RandomPictures(), epochs=3, seed=1), 1, [0, 1, 2, 3]),
    ):
        assert not any(map(torch.equal, first, other))
    same_row = [examples("vit", "single_label_classification")[0]] * 2
    one, two = pictures(ReplayedViews(RandomPictures(same_row), epochs=3), 0, [0, 1])
    assert not torch.equal(one, two)
    assert torch.equal(views[-1]["pixel_values"], views[len(views) - 1]["pixel_values"])


def test_the_numbers_are_the_same_in_every_version() -> None:
    """A cache outlives the program that filled it."""

    class Numbers(Dataset[tuple[float, float]]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[float, float]:
            return random.random(), float(np.random.random())

    views = ReplayedViews(Numbers(), epochs=2, seed=5)
    views.set_epoch(1)
    assert views[2] == (0.46576858587894876, 0.2328963852573641)


def test_transforms_of_datasets_replay() -> None:
    """Which fetch several examples at once, with random numbers in a row, if they are asked to."""

    def changed(batch: dict[str, list[float]]) -> dict[str, list[float]]:
        return {"value": [value + random.random() for value in batch["value"]]}

    rows = datasets.Dataset.from_dict({"value": [0.0] * 6}).with_transform(changed)
    views = ReplayedViews(rows, epochs=1)
    alone = [views[place]["value"] for place in range(6)]
    assert [each["value"] for each in views.__getitems__([4, 1])] == [alone[4], alone[1]]
    assert len(set(alone)) == 6


def test_nobody_elses_random_numbers_change() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    expected = random.random(), np.random.random(), torch.rand(())
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    views = ReplayedViews(RandomPictures(), epochs=1)
    _ = views[3], views.__getitems__([1, 2])
    assert (random.random(), np.random.random(), torch.rand(())) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_the_epoch(workers: int) -> None:
    views = ReplayedViews(RandomPictures(), epochs=2)
    loader = DataLoader(views, batch_size=5, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1, 0):
        views.set_epoch(epoch)
        seen = torch.cat([batch["pixel_values"] for batch in loader])
        assert torch.equal(seen, torch.stack(pictures(views, epoch, list(range(len(views))))))


def test_views_repeat_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    views = ReplayedViews(RandomPictures(), epochs=2)
    with caplog.at_level(logging.WARNING, logger="hfdistill"):
        first, second = pictures(views, 0, [1]), pictures(views, 1, [1])
        assert not caplog.messages
        assert torch.equal(pictures(views, 2, [1])[0], first[0])
        assert torch.equal(pictures(views, 3, [1])[0], second[0])
    assert caplog.messages == ["Epoch 3 shows the views of epoch 1 again: there are views of 2 epochs."]


def test_mixup_within_the_data_set() -> None:
    views = ReplayedViews(PlainPictures(), epochs=2, mixup=0.8)
    found = [views[place] for place in range(8)]
    for place, view in enumerate(found):
        value = float(view["pixel_values"].mean())
        assert view["pixel_values"].std() < 1e-5
        assert isinstance(view["teacher_pixel_values"], np.ndarray)
        np.testing.assert_allclose(view["teacher_pixel_values"], value, rtol=1e-5)
        assert view["labels"] == -100
        assert place + 1 != value
    assert not np.allclose(float(found[0]["pixel_values"].mean()) % 1, 0, atol=1e-4)
    views.set_epoch(1)
    assert not torch.equal(views[0]["pixel_values"], found[0]["pixel_values"])


def test_the_other_picture_is_the_view_of_its_own_epoch() -> None:
    plain, mixed = ReplayedViews(RandomPictures(), epochs=1), ReplayedViews(RandomPictures(), epochs=1, cutmix=1.0)
    own = torch.stack([plain[place]["pixel_values"] for place in range(len(plain))])
    cut = mixed[0]["pixel_values"]
    foreign = cut != own[0]
    sources = [place for place in range(1, len(own)) if torch.equal(own[place][foreign], cut[foreign])]
    assert len(sources) == 1
    assert foreign.any() and not foreign.all()


def test_a_share_is_mixed_and_other_labels_become_nan() -> None:
    class Scores(PlainPictures):
        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(index) | {"labels": torch.tensor([0.5, 1.0]), "label": [index / 2, 3]}

    views = ReplayedViews(Scores(), epochs=1, mixup=1.0, cutmix=1.0, mix_probability=0.3)
    mixed = [view for view in map(views.__getitem__, range(200)) if view["labels"].isnan().all()]
    assert 0.2 < len(mixed) / 200 < 0.4
    assert all(math.isnan(view["label"][0]) and view["label"][1] == -100 for view in mixed)
    kinds = {len(np.unique(view["pixel_values"])) for view in mixed}
    assert kinds == {1, 2}


def test_what_cannot_replay_is_refused() -> None:
    class OwnGenerator(RandomPictures):
        generator = np.random.default_rng(0)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"pixel_values": self.generator.normal(size=3)}

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield 1

    class Endless(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    class Sizes(PlainPictures):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"pixel_values": torch.zeros(3, 8 + index, 8)}

    with pytest.raises(HfDistillError, match="a generator of its own"):
        ReplayedViews(OwnGenerator(), epochs=1)
    with pytest.raises(HfDistillError, match="a stream"):
        ReplayedViews(Stream(), epochs=1)
    with pytest.raises(HfDistillError, match="without a length"):
        ReplayedViews(Endless(), epochs=1)
    with pytest.raises(HfDistillError, match="epochs=0"):
        ReplayedViews(PlainPictures(), epochs=0)
    with pytest.raises(HfDistillError, match="mixup=-1"):
        ReplayedViews(PlainPictures(), epochs=1, mixup=-1)
    with pytest.raises(HfDistillError, match="one size"):
        ReplayedViews(Sizes(), epochs=1, mixup=1.0)
    with pytest.raises(HfDistillError, match="came for examples that are a int"):
        ReplayedViews([1, 2, 3], epochs=1, cutmix=1.0)


def trained(folder: Path, resume: str | None = None, teacher: Any = None, **arguments: Any) -> DistillationTrainer:
    student, live = models("vit", "single_label_classification")
    settings = {"learning_rate": 0.05, "seed": 3, **arguments}
    trainer = DistillationTrainer(
        student,
        by_sgd.arguments(folder, **settings),
        teacher_model=live if teacher is None else teacher,
        objective=Objective([Logits(temperature=2.0)]),
        train_dataset=ReplayedViews(RandomPictures(), epochs=2, cutmix=1.0, mix_probability=0.5),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resume_in_the_middle_of_an_epoch_goes_on_with_its_views(tmp_path: Path) -> None:
    settings = {"max_steps": 6}
    whole = by_sgd.seen_in(trained(tmp_path / "whole", **settings))
    trained(tmp_path / "cut", **{**settings, "max_steps": 4}, save_strategy="steps", save_steps=4)
    resumed = trained(tmp_path / "cut", str(tmp_path / "cut" / "checkpoint-4"), **settings)
    assert_same(whole, by_sgd.seen_in(resumed))


def test_cached_views_train_as_live_ones_do(tmp_path: Path) -> None:
    _, live = models("vit", "single_label_classification")
    folder = tmp_path / "cache"
    filling = CachedTeacher(folder, live, dtype="float32")
    student, _ = models("vit", "single_label_classification")
    views = ReplayedViews(RandomPictures(), epochs=2, cutmix=1.0, mix_probability=0.5)
    filler = DistillationTrainer(
        student,
        by_sgd.arguments(tmp_path / "filling"),
        teacher_model=filling,
        objective=Objective([Logits(temperature=2.0)]),
        train_dataset=views,
    )
    assert filler.fill_cache(views=2).new == 2 * len(views)
    # Four epochs of three steps: the views of two, twice.
    one = trained(tmp_path / "live", max_steps=12)
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    other = trained(tmp_path / "cached", teacher=CachedTeacher(folder), max_steps=12, **workers)
    assert_same(by_sgd.seen_in(one), by_sgd.seen_in(other))


def test_one_data_set_for_training_and_evaluation_is_refused(tmp_path: Path) -> None:
    student, live = models("vit", "single_label_classification")
    views = ReplayedViews(RandomPictures(), epochs=2)
    with pytest.raises(HfDistillError, match="set it back to another epoch"):
        DistillationTrainer(
            student,
            by_sgd.arguments(tmp_path),
            teacher_model=live,
            train_dataset=views,
            eval_dataset={"same": views},
        )
