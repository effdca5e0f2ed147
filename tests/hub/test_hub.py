"""A student goes to the Hub and comes back; what is left behind stays behind, and what goes wrong is explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from hub.server import HubServer
from report.run_folders import write_run
from safetensors.numpy import load
from transformers import ViTImageProcessorPil

from hfdistill.errors import HfDistillError
from hfdistill.hub import push_folder

# The client starts Transformers and trains: a dozen seconds alone, minutes on a busy machine.
pytestmark = pytest.mark.timeout(300)

RECIPE = """
teacher: {model: tester/teacher, revision: main}
student: {config: {model_type: vit}}
data: {dataset: digits}
objective: {alpha: 0.9, temperature: 4}
seeds: [1, 2]
"""


@dataclass(frozen=True)
class Happened:
    """The server after the client is done, and what the client saw."""

    hub: HubServer
    results: dict[str, Any]
    run: Path


def save(folder: Path, layers: int, seed: int) -> None:
    tiny.model("vit", layers=layers, seed=seed).save_pretrained(folder)
    side = {"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE}
    ViTImageProcessorPil(size=side).save_pretrained(folder)


def finished_run(folder: Path) -> Path:
    write_run(folder, {seed: {"control": 800, "student": 850 + seed} for seed in (1, 2)}, recipe=RECIPE)
    student = folder / "seed-1" / "student"
    save(student, layers=1, seed=1)
    for rubbish in ("training_args.bin", "optimizer.pt", "events.out.tfevents.1"):
        (student / rubbish).write_bytes(b"rubbish")
    (student / "checkpoint-2").mkdir()
    (student / "checkpoint-2" / "model.safetensors").write_bytes(b"rubbish")
    return folder


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Happened]:
    work = tmp_path_factory.mktemp("hub")
    run = finished_run(work / "run")
    save(work / "teacher", layers=2, seed=2)
    (work / "teacher" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Teacher\n")
    with HubServer() as hub:
        hub.publish("tester/teacher", work / "teacher")
        hub.full.add("tester/full")
        hub.run(Path(__file__).with_name("client.py"), run, work, home=work / "home")
        yield Happened(hub, json.loads((work / "results.json").read_text()), run)


def metadata(hub: HubServer, name: str) -> tuple[dict[str, Any], str]:
    """The card's head and its text."""
    _, head, text = hub.files(name)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_student_comes_back_bit_equal(happened: Happened) -> None:
    assert happened.results["publish"]["same"]
    assert happened.results["publish"]["processor"] == tiny.IMAGE_SIZE
    assert happened.results["publish"]["address"] == f"{happened.hub.endpoint}/tester/student"
    assert happened.hub.repositories["tester/student"].private


def test_only_what_loads_the_student_is_there(happened: Happened) -> None:
    files = set(happened.hub.files("tester/student"))
    assert files == {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_a_second_push_leaves_no_weights_that_would_hide_the_new_ones(happened: Happened) -> None:
    assert happened.results["publish"]["branch"].endswith("/tester/student/tree/next/try")
    files = happened.hub.files("tester/student", "next/try")
    assert "model.safetensors.index.json" in files
    assert "model.safetensors" not in files
    assert happened.results["publish"]["sharded"]
    assert "In shards" in happened.hub.repositories["tester/student"].messages


def test_adapters_take_the_place_of_a_whole_model(happened: Happened) -> None:
    assert happened.results["adapters"]["same"]
    files = set(happened.hub.files("tester/adapters"))
    assert {"adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"} < files
    # With a config.json beside them Transformers would look for a whole model.
    assert not files & {"config.json", "model.safetensors"}


def test_the_card_of_a_run(happened: Happened) -> None:
    head, text = metadata(happened.hub, "tester/student")
    assert head["teacher_model"] == "tester/teacher"
    assert "base_model" not in head  # random weights descend from no checkpoint
    assert {"knowledge-distillation", "hfdistill"} <= set(head["tags"])
    assert head["pipeline_tag"] == "image-classification"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.851}]
    for expected in (
        "[tester/teacher](https://huggingface.co/tester/teacher) at revision `main`",
        "Licence of the teacher: apache-2.0",
        "| kd | 0.9 | `forward_kl`: T² KL(p ‖ q), p = softmax(z/T) | temperature = 4.0",
        "seed 1 (also run: 2; the choice did not look at results).",
        "Distillation helped: the student's accuracy is 85.15 %",
        "scikit-learn's handwritten digits",
        "transformers 5.",
        'pipeline("image-classification", model="tester/student")',
        "beside the defaults: `learning_rate` 0.001.",
        "hinton2015distilling",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("token", "(401): the token is missing or not valid. Run `hf auth login`"),
        ("namespace", "(403): the token may not write there"),
        ("name", "expected a name such as you/my-student"),
        ("visibility", "got private=True, but tester/teacher exists and is public"),
        ("storage", "Your storage is full"),
        ("network", "no answer from the Hub at http://127.0.0.1:9"),
    ],
)
def test_what_goes_wrong_is_explained(happened: Happened, case: str, words: str) -> None:
    assert words in happened.results["refusals"][case]
    assert "tester/other" not in happened.hub.repositories
    assert happened.hub.repositories["tester/teacher"].messages == ["published"]


def test_a_broken_upload_publishes_nothing(happened: Happened) -> None:
    assert set(happened.hub.files("tester/full")) == {".gitattributes"}


def test_the_trainer_pushes_every_save_and_the_end(happened: Happened) -> None:
    assert happened.results["train"]["same"]
    messages = happened.hub.repositories["tester/trained"].messages
    assert messages == ["initial commit", "Training in progress, step 4", "End of training"]
    files = happened.hub.files("tester/trained")
    assert not [name for name in files if name.startswith(("optimizer", "checkpoint"))]
    head, text = metadata(happened.hub, "tester/trained")
    assert head["teacher_model"] == "tester/teacher"
    assert "knowledge-distillation" in head["tags"]
    assert "Licence of the teacher: apache-2.0" in text
    assert text.count("## Distillation") == 1


def test_the_teacher_is_not_published(happened: Happened) -> None:
    teacher = load(happened.hub.files("tester/teacher")["model.safetensors"])
    for name in ("tester/student", "tester/trained"):
        student = load(happened.hub.files(name)["model.safetensors"])
        # The teacher has a second layer; and no tensor of it is under another name.
        assert not [key for key in student if "layer.1." in key or "teacher" in key]
        weights = {tensor.tobytes() for key, tensor in teacher.items() if tensor.ndim > 1}
        assert not weights & {tensor.tobytes() for tensor in student.values()}


def test_the_server_knew_every_question(happened: Happened) -> None:
    assert [question for question in happened.hub.unknown if "tester/" in question] == []


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "without config.json"),
        ("model.safetensors", "without weights"),
        ("preprocessor_config.json", "nobody could prepare inputs"),
    ],
)
def test_an_incomplete_student_is_refused(tmp_path: Path, missing: str, words: str) -> None:
    run = finished_run(tmp_path)
    (run / "seed-1" / "student" / missing).unlink()
    with pytest.raises(HfDistillError, match=words):
        push_folder(run, "tester/student")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    (run / "seed-1" / "student" / "model.safetensors").write_bytes(b"half of it")
    with pytest.raises(HfDistillError, match="cannot be read"):
        push_folder(run, "tester/student")
    save(tmp_path / "plain", layers=1, seed=1)
    with pytest.raises(HfDistillError, match=r"without README\.md"):
        push_folder(tmp_path / "plain", "tester/student")
    with pytest.raises(HfDistillError, match="without a finished student"):
        push_folder(write_run(tmp_path / "begun", {1: {"control": 800}}), "tester/student")


def test_offline_mode(tmp_path: Path) -> None:
    save(tmp_path, layers=1, seed=1)
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(HfDistillError, match="HF_HUB_OFFLINE=1"):
        push_folder(tmp_path, "tester/student")
