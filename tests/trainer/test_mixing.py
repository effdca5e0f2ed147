"""Mixup and cutmix: the same for both models, without labels, drawn again alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, Logits, Objective, TaskLoss
from hfdistill.mixing import Mixing
from hfdistill.recipe.values import RecipeError
from hfdistill.recipe.whole import recipe_of
from tests import by_sgd
from tests.trainer.trajectory import examples, models


def mixing(**changes: Any) -> Mixing:
    settings = {"mixup": 0.0, "cutmix": 0.0, "probability": 1.0, "seed": 0, "label_names": ("labels",)}
    return Mixing(**{**settings, **changes})


def batch_of(size: int = 8, side: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Pictures of one value each: what has been mixed can be read off."""
    values = torch.arange(1.0, size + 1) + seed * 100
    pictures = values[:, None, None, None].expand(size, 3, side, side).contiguous()
    return {"pixel_values": pictures, "labels": torch.arange(size)}


def test_mixup_is_a_weighted_mean_of_two_pictures() -> None:
    mixed = mixing(mixup=0.8)(batch_of())
    own, pictures = batch_of()["pixel_values"], mixed["pixel_values"]
    assert (pictures.flatten(1).std(1) < 1e-5).all()
    # 8 pictures of values 1 to 8, shifted by k: all shares are l.
    ring = [
        (own.roll(-shift, 0)[:, 0, 0, 0] - own[:, 0, 0, 0], pictures[:, 0, 0, 0] - own[:, 0, 0, 0])
        for shift in range(1, 8)
    ]
    shares = [moved / step for step, moved in ring]
    assert any((each - each[0]).abs().max() < 1e-4 and 0 < each[0] < 1 for each in shares)


def test_cutmix_takes_one_rectangle_from_another_picture() -> None:
    shares = []
    for seed in range(5):
        pictures = mixing(cutmix=1.0, seed=seed)(batch_of(side=40))["pixel_values"]
        changed = pictures != batch_of(side=40)["pixel_values"]
        # The same rectangle in every picture and channel, of one value each.
        assert (changed == changed[:1, :1]).all()
        rows, columns = changed[0, 0].any(1), changed[0, 0].any(0)
        assert torch.equal(changed[0, 0], rows[:, None] & columns[None])
        assert all(len(picture[:, changed[0, 0]].unique()) == 1 for picture in pictures)
        shares.append(float(changed.float().mean()))
    assert len({round(share, 2) for share in shares}) > 2
    assert any(0.1 < share < 0.9 for share in shares)


def test_both_views_are_mixed_alike() -> None:
    for kind in ("mixup", "cutmix"):
        small, large = batch_of(side=20), batch_of(side=40)
        mixed = mixing(**{kind: 1.0})({**small, "teacher_pixel_values": large["pixel_values"]})
        shares = [mixed[name].flatten(1).mean(1) for name in ("pixel_values", "teacher_pixel_values")]
        torch.testing.assert_close(shares[0], shares[1], rtol=0.1, atol=0)


def test_a_mixed_picture_has_no_label() -> None:
    assert (mixing(mixup=1.0)(batch_of())["labels"] == -100).all()
    several = {**batch_of(), "labels": torch.ones(8, 4)}
    assert mixing(mixup=1.0)(several)["labels"].isnan().all()


def test_a_share_of_the_batches_is_mixed() -> None:
    some = mixing(mixup=1.0, probability=0.3)
    mixed = [bool((some(batch_of(seed=seed))["labels"] == -100).all()) for seed in range(200)]
    assert 0.2 < sum(mixed) / len(mixed) < 0.4


def test_the_same_batch_is_mixed_in_the_same_way_and_others_differently() -> None:
    both = mixing(mixup=1.0, cutmix=1.0)
    first, again, other = (both(batch_of(seed=seed))["pixel_values"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first + 100, other)
    assert not torch.equal(mixing(mixup=1.0, cutmix=1.0, seed=1)(batch_of())["pixel_values"], first)


def trainer_of(folder: Path, objective: Objective | None = None, **arguments: Any) -> DistillationTrainer:
    student, teacher = models("vit", "single_label_classification")
    rows = examples("vit", "single_label_classification")
    return DistillationTrainer(
        student,
        by_sgd.arguments(folder, **{"learning_rate": 0.05, **arguments}),
        teacher_model=teacher,
        objective=objective,
        train_dataset=rows,
        eval_dataset=rows,
    )


def test_training_learns_from_the_teacher_and_evaluation_sees_whole_pictures(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "mixed", Objective([TaskLoss(), Logits()]), mixup=0.8, cutmix=1.0)
    plain = trainer_of(tmp_path / "plain", Objective([TaskLoss(), Logits()]))
    before = trainer.evaluate()["eval_loss/task"]
    assert before == pytest.approx(plain.evaluate()["eval_loss/task"])
    trainer.train()
    row = trainer.state.log_history[1]
    assert "loss/kd" in row
    assert "loss/task" not in row


def test_a_resumed_training_draws_the_same(tmp_path: Path) -> None:
    settings = {"mixup": 0.8, "max_steps": 4, "alpha": 1.0}
    whole = trainer_of(tmp_path / "whole", **settings)
    whole.train()
    trainer_of(tmp_path / "cut", **{**settings, "max_steps": 2}, save_strategy="steps", save_steps=2).train()
    resumed = trainer_of(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("values", [{"mixup": -1}, {"cutmix": float("nan")}, {"mix_probability": 0}])
def test_values_outside_their_domain_are_refused(values: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=next(iter(values))):
        DistillationConfig(str(tmp_path), **values)


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="leave no labels"):
        trainer_of(tmp_path, Objective([TaskLoss(), Logits("decoupled_kl")]), mixup=1.0)
    with pytest.raises(HfDistillError, match="expected pictures"):
        mixing(mixup=1.0)({"input_ids": torch.zeros(2, 3, dtype=torch.long)})


def test_a_recipe_mixes_for_the_student_alone() -> None:
    base = {"teacher": {"model": "a"}, "student": {"model": "b"}, "data": {"dataset": "c"}}
    recipe = recipe_of({**base, "objective": {"mixup": 0.8, "mix_probability": 0.5}})
    assert recipe.objective.arguments() == {"mixup": 0.8, "mix_probability": 0.5}
    with pytest.raises(RecipeError, match=r"write objective\.mixup"):
        recipe_of({**base, "training": {"mixup": 0.8}})
    with pytest.raises(RecipeError, match=r"objective\.cutmix"):
        recipe_of({**base, "objective": {"cutmix": -1}})
