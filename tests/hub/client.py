"""What users do with the Hub, one step after another, in a process of its own; writes what happened as JSON.

The environment that points to the server on loopback is read when `huggingface_hub` is imported, so no test can do this
in pytest's own process. Usage: client.py RUN_FOLDER WORK_FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessorPil

from hfdistill import DistillationConfig, DistillationTrainer, HfDistillError
from hfdistill.hub import push_folder

BATCH = tiny.batch("vit")


def logits(model: Any) -> torch.Tensor:
    """The logits of a fixed batch."""
    with torch.no_grad():
        return model.eval()(pixel_values=BATCH["pixel_values"]).logits


def same(folder: Path, name: str, **kwargs: Any) -> bool:
    """Whether the model on the Hub and the one in the folder agree in every bit."""
    there = AutoModelForImageClassification.from_pretrained(name, **kwargs)
    here = AutoModelForImageClassification.from_pretrained(folder)
    return torch.equal(logits(there), logits(here))


def refusal(action: Callable[[], object]) -> str:
    """The message of the one error that a user can mend."""
    try:
        action()
    except HfDistillError as error:
        return str(error)
    return "it worked"


def publish(run: Path, work: Path) -> dict[str, Any]:
    """Push a run, load it back, push it again in shards to a branch."""
    student = run / "seed-1" / "student"
    happened: dict[str, Any] = {"address": push_folder(run, "tester/student", private=True)}
    happened["same"] = same(student, "tester/student")
    happened["processor"] = AutoImageProcessor.from_pretrained("tester/student").size["height"]
    sharded = work / "sharded"
    shutil.copytree(student, sharded)
    (sharded / "model.safetensors").unlink()
    model = AutoModelForImageClassification.from_pretrained(student)
    with torch.no_grad():
        model.classifier.bias.add_(1)
    model.save_pretrained(sharded, max_shard_size="10KB")
    happened["branch"] = push_folder(sharded, "student", revision="next/try", commit_message="In shards")
    happened["sharded"] = same(sharded, "tester/student", revision="next/try")
    return happened


def publish_adapters(run: Path, work: Path) -> dict[str, Any]:
    """Push adapters of the teacher, where a whole model was before, and load them back."""
    folder = work / "adapters"
    base = AutoModelForImageClassification.from_pretrained("tester/teacher")
    settings = LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    student = get_peft_model(base, settings)
    student.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE}).save_pretrained(folder)
    push_folder(run, "tester/adapters")
    push_folder(folder, "tester/adapters")
    there = AutoModelForImageClassification.from_pretrained("tester/adapters")
    return {"same": torch.equal(logits(there), logits(student))}


def refusals(run: Path) -> dict[str, str]:
    """Everything that can be wrong between here and the Hub."""
    found = {
        "token": refusal(lambda: push_folder(run, "tester/other", token="hf_wrong")),
        "namespace": refusal(lambda: push_folder(run, "google/vit")),
        "name": refusal(lambda: push_folder(run, "not a name")),
        "visibility": refusal(lambda: push_folder(run, "tester/teacher", private=True)),
        "storage": refusal(lambda: push_folder(run, "tester/full")),
    }
    endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
    found["network"] = refusal(lambda: push_folder(run, "tester/other"))
    constants.ENDPOINT = endpoint
    return found


def train(work: Path) -> dict[str, Any]:
    """A trainer that pushes every checkpoint, with a teacher from the Hub."""
    pixels = tiny.batch("vit", rows=8)
    rows = [{"pixel_values": pixels["pixel_values"][i], "labels": int(pixels["labels"][i])} for i in range(8)]
    args = DistillationConfig(
        output_dir=str(work / "trained"),
        max_steps=4,
        save_steps=4,  # once: Trainer pushes in the background, and a second save could change the file under way
        per_device_train_batch_size=4,
        push_to_hub=True,
        hub_model_id="tester/trained",
        hub_strategy="every_save",
        hub_private_repo=True,
        hub_always_push=True,
        teacher_model_revision="main",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    processor = ViTImageProcessorPil(size={"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE})
    trainer = DistillationTrainer(
        tiny.model("vit", layers=1),
        args,
        teacher_model="tester/teacher",
        train_dataset=rows,
        processing_class=processor,
    )
    trainer.train()
    trainer.push_to_hub()
    return {"same": same(work / "trained", "tester/trained")}


if __name__ == "__main__":
    run_folder, work_folder = map(Path, sys.argv[1:])
    results = {
        "publish": publish(run_folder, work_folder),
        "adapters": publish_adapters(run_folder, work_folder),
        "refusals": refusals(run_folder),
        "train": train(work_folder),
    }
    (work_folder / "results.json").write_text(json.dumps(results))
