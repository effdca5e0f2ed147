"""What a recipe may say: each mistake is one error that names the key and what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hfdistill import HfDistillError, Logits, TaskLoss
from hfdistill.losses import decoupled_kl
from hfdistill.recipe import (
    RecipeError,
    StudentSection,
    load_recipe,
    override_arguments,
    recipe_of,
    recipe_path,
    shipped_recipes,
)
from hfdistill.stages.settings import stage_settings


def content(**sections: Any) -> dict[str, Any]:
    """A valid recipe with some sections replaced."""
    whole = {
        "student": {"config": {"model_type": "resnet"}},
        "teacher": {"model": "google/vit-base-patch16-224"},
        "data": {"dataset": "digits"},
        "training": {"learning_rate": 0.001},
    }
    return whole | sections


def test_numbers_may_be_written_as_yaml_reads_them() -> None:
    recipe = recipe_of(content(training={"learning_rate": "1e-4", "max_steps": "1e3", "eval_strategy": False}))
    assert recipe.training == {"learning_rate": 1e-4, "max_steps": 1000, "eval_strategy": "no"}
    assert isinstance(recipe.training["max_steps"], int)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"stduent": {}}, r"stduent: .* did you mean 'student'"),
        ({"data": {"dataset": "digits", "lable_column": "y"}}, r"data\.lable_column: .* 'label_column'"),
        ({"data": {}}, r"data\.dataset: this key is missing"),
        ({"data": "digits"}, r"data: got 'digits', expected a mapping"),
        ({"data": {"dataset": "digits", "augment": ["random_crp"]}}, r"data\.augment\.0: .* 'random_crop'"),
        ({"data": {"dataset": "digits", "labelled": 0}}, r"data\.labelled: got 0"),
        ({"data": {"dataset": "digits", "text_columns": ["a", "b", "c"]}}, r"one column, or two"),
        ({"data": {"dataset": "digits", "test_fraction": 0.2}}, r"set data\.test_split to null"),
        ({"student": {"model": "a", "from_teacher": {"layers": 2}}}, r"exactly one of .* model and from_teacher came"),
        ({"student": {"config": {"hidden_size": 8}}}, r"student\.config: model_type is missing"),
        ({"teacher": {"config": {"model_type": "vit"}}}, r"knows nothing yet; add teacher\.finetune"),
        (
            {"teacher": {"model": "a", "finetune": {"learning_rat": 1}}},
            r"teacher\.finetune\.learning_rat: .* 'learning_rate'",
        ),
        (
            {"teacher": {"model": "a", "revision": 3}},
            r'teacher\.revision: got 3, expected a text; write it in quotes: "3"',
        ),
        ({"teacher": {"model": "a", "dtype": "bf16"}}, r"teacher\.dtype: .* 'bfloat16'"),
        ({"teacher": {"model": "a", "batch_size": 0}}, r"teacher\.batch_size: got 0, expected at least 1"),
        ({"teacher": {"model": "a", "device": "cpu", "sharded": True}}, r"teacher\.device: teacher\.sharded"),
        ({"teacher": {"ema": 0.9, "device": "cpu"}}, r"teacher\.device: a teacher that learns beside the student"),
        ({"training": {"teacher_dtype": "float32"}}, r"training\.teacher_dtype: .* write teacher\.dtype"),
        ({"training": {"learning_rate": "fast"}}, r"training\.learning_rate: got 'fast', expected a number"),
        ({"training": {"bf16": "yes please"}}, r"training\.bf16: .* true or false"),
        ({"training": {"lr_scheduler_type": "cosin"}}, r"did you mean 'cosine'"),
        ({"training": {"output_dir": "x"}}, r"training\.output_dir: .* --output"),
        ({"training": {"temperature": 2}}, r"write objective\.temperature"),
        ({"objective": {"alpha": 2}}, r"objective\.alpha: got 2\.0, expected .* 0 to 1"),
        ({"objective": {"temperature": 0}}, r"objective\.temperature: got 0\.0"),
        ({"objective": {"alpha": 0.5, "terms": []}}, r"expected one way"),
        ({"objective": {"terms": [{"task": {}}]}}, r"no term learns from the teacher"),
        ({"objective": {"terms": [{"logit": {}}]}}, r"objective\.terms\.0\.logit: .* 'logits'"),
        ({"objective": {"terms": [{"logits": {"loss": "foward_kl"}}]}}, r"'foward_kl'; did you mean 'forward_kl'"),
        ({"objective": {"terms": [{"logits": {"temperatur": 2}}]}}, r"option 'temperatur'; did you mean 'temperature'"),
        ({"objective": {"terms": [{"logits": {"temperature": "hot"}}]}}, r"0\.logits\.temperature: got 'hot'"),
        ({"objective": {"terms": [{"task": {"wieght": 1}}]}}, r"task\.wieght: .* 'weight'"),
        ({"objective": {"terms": [{"logits": {"weight": -1}}]}}, r"finite number of at least 0"),
        ({"seeds": []}, r"seeds: got \[\]"),
        ({"seeds": [1, 1]}, r"different whole numbers"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_remedy(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(content(**sections))


def test_sections_are_checked_when_built_in_python_too() -> None:
    with pytest.raises(HfDistillError, match=r"student\.finetune\.learning_rat"):
        StudentSection(model="a", finetune={"learning_rat": 1})


def test_terms_are_bound_when_the_file_is_read() -> None:
    terms = [{"task": {"weight": 0.5}}, {"logits": {"loss": "decoupled_kl", "beta": "8e0", "name": "dkd"}}]
    objective = recipe_of(content(objective={"terms": terms})).objective.build()
    assert objective is not None
    task, logits = objective.terms
    assert isinstance(task, TaskLoss) and task.weight == 0.5
    assert isinstance(logits, Logits) and logits.loss is decoupled_kl
    assert (logits.name, logits.options) == ("dkd", {"beta": 8.0})


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = recipe_of(content(objective={"alpha": 0.9}, seeds=[3, 4]))
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(file) == recipe


def test_changes_from_the_command_line_replace_values(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    terms = [{"task": {}}, {"logits": {"temperature": 4}}]
    file.write_text(yaml.safe_dump(content(objective={"terms": terms})))
    arguments = ["--training.learning_rate=3e-4", "--data.dataset", "/my/folder", "--student.config.depths=[1, 1]"]
    changes = override_arguments([*arguments, "--objective.terms.1.logits.temperature=2", "--teacher.finetune={}"])
    recipe = load_recipe(file, changes)
    assert recipe.training["learning_rate"] == 3e-4
    assert recipe.data.dataset == "/my/folder"
    assert recipe.student.config == {"model_type": "resnet", "depths": [1, 1]}
    assert recipe.objective.terms == [{"task": {}}, {"logits": {"temperature": 2}}]
    assert recipe.teacher.finetune == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.learning_rat=1"], r"training\.learning_rat: .* 'learning_rate'"),
        (["--training.learning_rate"], "a value is missing"),
        (["learning_rate=1"], r"such as --training\.learning_rate=1e-4"),
        (["--training.learning_rate=[1"], "no valid YAML"),
        (["--data.dataset.train=x"], "has no keys of its own"),
    ],
)
def test_a_wrong_change_is_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content()))
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, override_arguments(arguments))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "got an empty file"),
        (b"- 1\n- 2\n", "got list"),
        (b"data: {dataset: digits\n", r"no valid YAML\. Line 2"),
        (b"data: {}\nteacher: {}\ndata: {}\n", "the key 'data' is written twice"),
        (b"\xff\xfe\x00", "is no UTF-8 text"),
    ],
)
def test_a_corrupt_file_is_named_with_the_place(text: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "corrupt.yaml"
    file.write_bytes(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(file)
    assert str(file) in str(caught.value)


def test_a_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'digits'"):
        recipe_path("digit")
    with pytest.raises(RecipeError, match="there is no such file"):
        recipe_path(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="this is a folder"):
        recipe_path(tmp_path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_goes_through_the_parser(name: str) -> None:
    assert load_recipe(name).seeds
    assert shipped_recipes()[name].endswith(".")


def test_a_folder_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("digits").data.dataset == "digits"


def test_how_a_teacher_is_run_reaches_the_student_and_no_other_training() -> None:
    keys = {"dtype": "bfloat16", "attn_implementation": "eager", "batch_size": 4, "device": "cpu"}
    recipe = recipe_of(content(teacher={"config": {"model_type": "vit"}, "finetune": {}, **keys}))
    arguments = {f"teacher_{key}": value for key, value in keys.items()}
    assert stage_settings(recipe, "student", 1).values.items() >= arguments.items()
    for stage in ("teacher", "control", "finetuned"):
        assert not arguments.keys() & stage_settings(recipe, stage, 1).values.keys()
    assert recipe_of(content(training={"channels_last": True})).training == {"channels_last": True}
