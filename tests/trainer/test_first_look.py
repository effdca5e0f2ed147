"""What the first two examples tell before training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, CLIPConfig, CLIPModel

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError, Logits, Objective, TaskLoss

IDS = torch.arange(2, 10)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def masked_lm(places: int = 12) -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(vocab_size=30, max_position_embeddings=places, **SMALL))


def rows(**more: Any) -> list[dict[str, Any]]:
    return [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), **more} for _ in range(4)]


def trainer(folder: Path, student: Any, teacher: Any, data: Any, **arguments: Any) -> DistillationTrainer:
    config = DistillationConfig(str(folder), use_cpu=True, report_to="none", max_steps=1, disable_tqdm=True)
    return DistillationTrainer(student, config, teacher_model=teacher, train_dataset=data, **arguments)


def test_texts_longer_than_a_model_has_places_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=r"8 tokens long, and the teacher \(BertForMaskedLM\) has places for 4"):
        trainer(tmp_path, masked_lm(), masked_lm(4), rows(labels=IDS))
    trainer(tmp_path, masked_lm(8), masked_lm(8), rows(labels=IDS))


def test_places_of_pictures_are_no_places_of_texts(tmp_path: Path) -> None:
    text = {"vocab_size": 30, "max_position_embeddings": 8, **SMALL}
    config = CLIPConfig(text_config=text, vision_config={"image_size": 8, "patch_size": 4, **SMALL}, projection_dim=8)
    models = [CLIPModel(config) for _ in range(2)]
    trainer(tmp_path, models[0], models[1], rows(pixel_values=torch.randn(3, 8, 8)))


def test_views_of_different_length_are_refused(tmp_path: Path) -> None:
    own = {"teacher_input_ids": IDS[:5], "teacher_attention_mask": torch.ones(5)}
    with pytest.raises(HfDistillError, match="The student reads 8 tokens of an example and the teacher 5"):
        trainer(tmp_path, masked_lm(), masked_lm(), rows(labels=IDS, **own))


def test_data_without_labels_need_a_term_that_needs_none(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=30, num_labels=4, **SMALL)
    models = [BertForSequenceClassification(config) for _ in range(2)]
    labelled = Objective([TaskLoss(), Logits("decoupled_kl")])
    with pytest.raises(HfDistillError, match=r"has no labels \(its batches hold input_ids, attention_mask\)"):
        trainer(tmp_path, *models, rows(), objective=labelled)
    trainer(tmp_path, *models, rows()).train()


def test_the_look_draws_nothing(tmp_path: Path) -> None:
    """Examples and collators that draw at random draw the same afterwards."""

    class Drawn(torch.utils.data.Dataset[Any]):
        looked = 0

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, Any]:
            self.looked += 1
            random.random(), np.random.rand(), torch.rand(1)
            return rows(labels=IDS)[0]

    data = Drawn()
    models = masked_lm(), masked_lm()
    states = []
    for dataset in (rows(labels=IDS), data):
        trainer(tmp_path, *models, dataset)
        states.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert data.looked and states[0] == states[1]
