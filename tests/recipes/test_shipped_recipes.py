"""Every shipped recipe runs two steps a stage, with small local models and data in the place of those on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import yaml
from transformers import CLIPImageProcessorPil, CLIPProcessor

import hfdistill.report
from hfdistill.recipe import DataSection, Recipe, load_recipe, shipped_recipes
from hfdistill.recipe.shipped import recipe_path
from hfdistill.stages import Reporter, run_recipe
from hfdistill.stages.run import Run
from tests import scenes, sounds, tiny_pairs
from tests.recipes import inputs

QUICK = {
    "training.max_steps": "2",
    "training.use_cpu": "true",
    "training.per_device_train_batch_size": "4",
    "training.dataloader_num_workers": "0",
}
SMALL_RESNET = {"student.config.hidden_sizes": "[8, 8, 8, 8]", "student.config.embedding_size": "8"}
MODELS: Mapping[str, tuple[str, dict[str, str]]] = {
    "beans": ("vit", {"student.config.depth_multiplier": "0.1"}),
    "cifar10": ("vit", {"data.image_size": "8", **SMALL_RESNET}),
    "cifar100": ("vit", {"data.image_size": "8", **SMALL_RESNET}),
    "imagefolder": ("vit", {}),
    "imagenet_1k": ("resnet", SMALL_RESNET),
    "mnli": ("bert", {}),
    "movie_reviews": ("bert", {}),
    "sst2": ("bert", {}),
}
"""The teacher's stand-in, and what makes the student small; recipes that are not here are small as they are."""
TOKEN_MODELS = {
    "cnn_dailymail": "seq2seq_lm",
    "conll2003": "token_classification",
    "gemma3_270m": "causal_lm",
    "squad": "question_answering",
    "wikitext_clm": "causal_lm",
    "wikitext_mlm": "masked_lm",
}
"""Teachers with a head over tokens."""
SCENES = ("digit_scenes", "digit_scenes_detection")
"""Recipes of the embedded pictures."""
AUDIO_MODELS = ("librispeech_ctc", "speech_commands", "whisper")
"""Recipes of recordings whose teacher is on the Hub."""


@pytest.fixture(autouse=True)
def no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed and report have tests of their own; here they would take most of the time."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(Run, "_measure", lambda self: None)
    monkeypatch.setattr("hfdistill.data.scenes.PICTURES", {"train": 24, "validation": 4, "test": 4})
    monkeypatch.setattr(hfdistill.report, "write_report", lambda folder: None)


def changes(name: str, folder: Path) -> dict[str, str]:
    """What replaces the Hub."""
    found = dict(QUICK)
    if name in MODELS:
        architecture, smaller = MODELS[name]
        teacher = inputs.model_folder(folder / "teacher", architecture, layers=5 if architecture == "bert" else 2)
        found |= {"teacher.model": teacher, **smaller}
    if name == "clip_cifar":
        found |= {"teacher.model": clip_folder(folder / "teacher"), "data.image_size": "8", "data.labelled": "9"}
        found |= SMALL_RESNET
    if name in TOKEN_MODELS:
        found |= {"teacher.model": inputs.token_model_folder(folder / "teacher", TOKEN_MODELS[name])}
        found |= {"data.max_length": "16", "training.gradient_accumulation_steps": "1", "training.bf16": "false"}
    if name == "squad":
        student = inputs.token_model_folder(folder / "student", "question_answering")
        found |= {"student.model": student, "data.doc_stride": "2"}
    if name in ("ade20k", "sidewalk"):
        models = {role: scenes.segformer_folder(folder / role) for role in ("teacher", "student")}
        found |= {f"{role}.model": model for role, model in models.items()}
    if name == "sidewalk":
        found |= {"data.class_names": f"[{', '.join(scenes.NAMES)}]"}
    if name == "coco_detr":
        teacher = scenes.rt_detr_folder(folder / "teacher")
        found |= {"teacher.model": teacher, "student.model": scenes.rt_detr_folder(folder / "student")}
        found |= {"data.test_split": "validation"}  # what local files called val are
    if name in AUDIO_MODELS:
        found |= audio_changes(name, folder)
    if name == "cnn_dailymail":
        found |= {"data.generation": "{num_beams: 2, max_length: 5}", "data.max_eval_samples": "4"}
    if name == "tiny_lm":
        return found | {"data.max_length": "32", "data.max_train_samples": "4", "data.max_eval_samples": "1"}
    if name == "imagefolder":
        student = inputs.model_folder(folder / "student", "mobilenet_v2", num_labels=7)
        return found | {"student.model": student, "data.dataset": inputs.picture_folder(folder / "pictures")}
    if name in SCENES:
        few = load_recipe(name).data.labelled is not None
        return found | {"data.image_size": "32"} | ({"data.labelled": "8"} if few else {})
    if name == "digits":
        return found | {"data.max_train_samples": "120", "data.max_eval_samples": "30"}
    found["data.dataset"] = local_data(load_recipe(name, found), folder / "data")
    return found


def audio_changes(name: str, folder: Path) -> dict[str, str]:
    """Small models of recordings."""
    plain = {"training.gradient_accumulation_steps": "1", "training.bf16": "false"}
    if name == "whisper":
        return {"teacher.model": sounds.whisper_folder(folder / "teacher", layers=3), **plain}
    if name == "speech_commands":
        return {"teacher.model": sounds.wav2vec2_folder(folder / "teacher", layers=5)}
    student = sounds.wav2vec2_folder(folder / "student", head=True)
    teacher = sounds.wav2vec2_folder(folder / "teacher", layers=2, head=True)
    return {"teacher.model": teacher, "student.model": student, "student.processor": teacher, **plain}


def clip_folder(folder: Path) -> str:
    """A tiny CLIP as it lies on the Hub."""
    size = {"height": tiny_pairs.IMAGE_SIZE, "width": tiny_pairs.IMAGE_SIZE}
    tiny_pairs.model("clip").save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tiny_pairs.tokenizer()).save_pretrained(folder)
    return str(folder)


def scene_data(section: DataSection, splits: list[str]) -> dict[str, datasets.Dataset]:
    assert isinstance(section.label_column, str)
    columns = (section.image_column or "image", section.label_column)
    if section.task == "semantic_segmentation":
        return {name: scenes.maps(30, seed, *columns) for seed, name in enumerate(splits)}
    corners = section.box_format == "pascal_voc"
    return {name: scenes.boxes(60, seed, scenes.NAMES, corners) for seed, name in enumerate(splits)}


def local_data(recipe: Recipe, folder: Path) -> str:
    section = recipe.data
    splits = [name for name in (section.train_split, section.validation_split, section.test_split) if name is not None]
    columns = section.text_columns
    assert isinstance(section.label_column, str) and not isinstance(columns, str)
    if section.task == "token_classification":
        assert columns is not None
        made = {name: inputs.sentences(30, columns[0], section.label_column, seed) for seed, name in enumerate(splits)}
        return inputs.data_folder(folder, made)
    if section.task in ("semantic_segmentation", "object_detection"):
        return inputs.data_folder(folder, scene_data(section, splits))
    if section.audio_column is not None:
        if section.task is None:
            made = {name: sounds.classes(12, seed) for seed, name in enumerate(splits)}
        else:
            made = {name: sounds.transcribed(9, seed, section.label_column) for seed, name in enumerate(splits)}
        if section.name is None:
            return inputs.data_folder(folder, made)
        return yaml.safe_dump({name: str(Path(inputs.data_folder(folder, made)) / f"{name}.parquet") for name in made})
    if section.task == "question_answering":
        return inputs.data_folder(folder, {name: inputs.questions(30, seed) for seed, name in enumerate(splits)})
    if section.task == "seq2seq_lm" and columns is not None:
        columns, section = [*columns, str(section.label_column)], replace(section, label_column="unread")
    made = {
        name: inputs.texts(30, columns, section.label_column, seed=seed)
        if columns is not None
        else inputs.pictures(30, section.image_column or "image", section.label_column, seed=seed)
        for seed, name in enumerate(dict.fromkeys(splits))
    }
    if section.name is None:
        return inputs.data_folder(folder, made)
    # A configuration of the Hub has no like among local files.
    return yaml.safe_dump({name: str(Path(inputs.data_folder(folder, made)) / f"{name}.parquet") for name in made})


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_recipe_runs_offline(name: str, tmp_path: Path) -> None:
    if name in ("ade20k", "digit_scenes", "sidewalk"):
        scenes.need_segformer()
    recipe = load_recipe(name, changes(name, tmp_path))
    if recipe.data.name is not None:
        recipe = replace(recipe, data=replace(recipe.data, name=None))
    output = tmp_path / "run"
    run_recipe(recipe, output, Reporter(silent=True))
    for stage in ("teacher", "seed-42/control", "seed-42/student"):
        facts = json.loads((output / stage / "stage.json").read_text())
        assert facts["steps"] == (0 if stage == "teacher" and recipe.teacher.finetune is None else 2)
        assert not (output / stage / "checkpoints").exists()


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_header_says_how_to_launch_and_what_comes_out(name: str) -> None:
    header = [line for line in recipe_path(name).read_text().splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in header)
    assert f"hfdistill run {name}" in text and f"runs/{name}/seed-42/student" in text
    assert "accelerate launch" in text or "torchrun" in text


def test_the_readme_tells_every_key_and_recipe() -> None:
    text = (recipe_path("digits").parent / "README.md").read_text()
    for section in load_recipe("digits").to_dict().values():
        for key in section if isinstance(section, dict) else ():
            assert f"`{key}`" in text or key in load_recipe("digits").training, key
    for name in shipped_recipes():
        assert f"`{name}`" in text
