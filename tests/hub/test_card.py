"""The card says who taught what, keeps what others wrote, and is written again without growing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hfdistill.card import CardFacts, ResultFacts, distillation_card, extend_card, hub_id, known_licence, term_facts
from hfdistill.citations import BIBTEX, SOURCES
from hfdistill.errors import HfDistillError
from hfdistill.knowledge import Logits, TaskLoss
from hfdistill.losses import LOSSES
from hfdistill.objective import Objective

FACTS = CardFacts(
    name="small",
    teacher="google/vit-base-patch16-224",
    teacher_revision="abc123",
    teacher_licence="apache-2.0",
    base_model="microsoft/resnet-18",
    terms=term_facts(Objective([TaskLoss(weight=0.25), Logits("decoupled_kl", weight=0.75, beta=2.0)])),
    task="image-classification",
    dataset="uoft-cs/cifar10",
    results=(ResultFacts("accuracy", "accuracy", 0.93),),
    versions={"torch": "2.13"},
)

TRAINERS_CARD = """---
license: mit
tags:
- generated_from_trainer
base_model: ../local/folder
model-index:
- name: small
  results: []
---

# small

This model is a fine-tuned version of [](https://huggingface.co/) on an unknown dataset.

My own words.
"""


def test_metadata() -> None:
    head = distillation_card(FACTS).data.to_dict()
    assert head["base_model"] == "microsoft/resnet-18"
    assert head["base_model_relation"] == "finetune"
    assert head["teacher_model"] == "google/vit-base-patch16-224"
    assert head["datasets"] == "uoft-cs/cifar10"
    assert head["pipeline_tag"] == "image-classification"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.93}]
    assert result["dataset"] == {"name": "uoft-cs/cifar10", "type": "uoft-cs/cifar10", "split": "test"}


def test_text() -> None:
    text = distillation_card(FACTS).text
    for expected in (
        "from the teacher [google/vit-base-patch16-224](https://huggingface.co/google/vit-base-patch16-224)",
        "at revision `abc123`",
        "Licence of the teacher: apache-2.0",
        "| task | 0.25 | loss against the labels |",
        "| kd | 0.75 | `decoupled_kl`: T² (α TCKD + β NCKD) | alpha = 1.0, beta = 2.0, temperature = 4.0",
        "@article{hinton2015distilling",
        "@inproceedings{zhao2022decoupled",
    ):
        assert expected in text, expected


def test_what_is_there_stays_and_nothing_is_written_twice(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(TRAINERS_CARD)
    extend_card(tmp_path, FACTS)
    first = readme.read_text()
    extend_card(tmp_path, FACTS)
    assert readme.read_text() == first
    card = ModelCard.load(readme)
    assert card.data.license == "mit"
    assert card.data.tags == ["generated_from_trainer", "knowledge-distillation", "hfdistill"]
    assert "My own words." in card.text
    assert "was trained from random values on an unknown dataset" in card.text
    extend_card(tmp_path, replace(FACTS, teacher="other/teacher"))
    assert "google/vit" not in readme.read_text()


def test_names_of_this_machine_stay_out_of_the_metadata(tmp_path: Path) -> None:
    facts = replace(FACTS, base_model=str(tmp_path), teacher=str(tmp_path), dataset="local files", results=())
    head = distillation_card(facts).data.to_dict()
    assert not {"base_model", "base_model_relation", "teacher_model", "datasets", "model-index"} & set(head)


def test_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("google/vit") == "google/vit"
    assert hub_id("bert-base-uncased") == "bert-base-uncased"
    (tmp_path / "google" / "vit").mkdir(parents=True)
    for name in ("google/vit", "/a/b", "../folder", "a/b/c", "vit, 2 layers", None):
        assert hub_id(name) is None


def test_a_control_and_a_teacher_without_a_name() -> None:
    control = distillation_card(replace(FACTS, teacher=None, terms=term_facts(Objective([TaskLoss()]))))
    assert "trained without a teacher" in control.text
    assert "Citation" not in control.text
    assert control.data.tags == ["hfdistill"]
    assert "a teacher that has no name" in distillation_card(replace(FACTS, teacher=None)).text


def test_a_term_of_ones_own_has_its_name_and_no_source() -> None:
    def my_loss(student: object, teacher: object, *, sharpness: float = 3.0) -> None:
        """Nobody has written about it."""

    text = distillation_card(replace(FACTS, terms=term_facts(Objective([Logits(my_loss)])))).text
    assert "| kd | 1 | `my_loss` | sharpness = 3.0 |" in text


def test_standardised_logits_are_cited() -> None:
    facts = replace(FACTS, terms=term_facts(Objective([Logits("forward_kl", standardized=True)])))
    assert "@inproceedings{sun2024logit" in distillation_card(facts).text


def test_every_loss_has_a_source() -> None:
    assert set(SOURCES) == set(LOSSES)
    for name, source in SOURCES.items():
        assert source.papers, name
        for paper in source.papers:
            assert f"{{{paper}," in BIBTEX[paper]
            assert BIBTEX[paper].count("{") == BIBTEX[paper].count("}")


def test_licence_of_a_folder(tmp_path: Path) -> None:
    assert known_licence(None) is None
    assert known_licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert known_licence(str(tmp_path)) == "cc-by-4.0"
    # On the Hub, which these tests cannot reach: unknown, and no error.
    assert known_licence("google/vit-base-patch16-224") is None


def test_a_broken_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntags: [one\n---\n")
    with pytest.raises(HfDistillError, match="metadata cannot be read"):
        extend_card(tmp_path, FACTS)
