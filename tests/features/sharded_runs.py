"""Short trainings of a student whose parameters are in pieces, as a script for several processes under torchrun.

The first argument is the strategy ("fsdp", "zero2", "zero3"), the second a folder for what was seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file

from hfdistill import (
    DistillationConfig,
    DistillationTrainer,
    EmaTeacher,
    HfDistillError,
    Logits,
    Objective,
    Peer,
    TaskLoss,
)
from hfdistill.cache.manifest import weight_hash
from hfdistill.features import Adversarial, HiddenStates, Module
from hfdistill.shards import whole_state
from hfdistill.sight import unwrapped
from hfdistill.teachers import LiveTeacher
from hfdistill.temperatures import LearnedTemperature
from tests.features.runs import models, trained
from tests.trainer.trajectory import examples

BOTH_PROCESSES: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SAVED: dict[str, Any] = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}


def objective() -> Objective:
    """All that learns beside a student: projectors, one with a norm, a temperature and a discriminator."""
    return Objective(
        [
            TaskLoss(0.5),
            Logits("forward_kl", weight=0.5, temperature=LearnedTemperature(start=4.0, epochs=1)),
            HiddenStates("hint", norm=True),
            Module("bert.encoder.layer.0.output", weight=0.3),
            Adversarial(hidden=8, weight=0.1),
        ]
    )


def plain() -> Objective:
    """Labels and logits alone."""
    return Objective([TaskLoss(0.5), Logits("forward_kl", weight=0.5, temperature=2.0)])


def shard_on_cpu() -> None:
    """Have Accelerate take FSDP on a CPU too, where it falls back to DistributedDataParallel without a word.

    Seen in 1.15; the rest of the way is that of a GPU, and gloo does what NCCL does there.
    """
    usual = AcceleratorState.__init__

    def sharded(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        usual(self, *arguments, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = sharded  # type: ignore[method-assign]


def fsdp(*units: str, **settings: Any) -> dict[str, Any]:
    """The arguments that shard a student by FSDP2, layer by layer; `units` are further classes to shard by."""
    config = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer", *units], **settings}
    return {"fsdp": True, "fsdp_config": config}


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    """The arguments that shard a student by DeepSpeed."""
    names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    config: dict[str, Any] = dict.fromkeys(names, "auto")
    optimizer = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return {"deepspeed": config | optimizer | {"zero_optimization": {"stage": stage, **settings}}}


def left_by(trainer: DistillationTrainer, seen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a training has left, its parameters whole, and an evaluation after it."""
    held = {f"parameter {name}": tensor for name, tensor in whole_state(trainer.model).items()}
    held |= {f"projector {name}": tensor for name, tensor in whole_state(trainer.features.projectors.modules).items()}
    found = {name: held.get(name, value) for name, value in seen.items()}
    for row in trainer.state.log_history:
        found |= {f"step {row['step']} {key}": torch.tensor(row[key]) for key in row if key.startswith("temperature")}
    # Both cuts of the 24 examples come out even: what fills up a last batch would count twice.
    trainer.args.per_device_eval_batch_size = 6
    measured = trainer.evaluate(trainer.train_dataset)
    return found | {f"evaluated {key}": torch.tensor(value) for key, value in measured.items() if "loss" in key}


def refusal(folder: Path, strategy: dict[str, Any], version: int = 2, **changes: Any) -> str:
    """The words that a training is refused with; a teacher's folder is loaded when the arguments are there already."""
    student, teacher = models("bert")
    settings = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "max_steps": 1, "disable_tqdm": True}
    own = {key: changes.pop(key) for key in ("teacher_dtype",) if key in changes}
    arguments = DistillationConfig(**settings, **strategy, **own)
    given = {"teacher_model": teacher, "objective": plain()} | changes
    if isinstance(given["teacher_model"], str):
        given["teacher_model"] = type(teacher).from_pretrained(given["teacher_model"])
    rows = examples("bert", "single_label_classification", unlabelled=False)
    try:
        trainer = DistillationTrainer(student, arguments, train_dataset=rows, **given)
        if version == 1:
            # Its plugin cannot be made without a GPU.
            trainer.accelerator.state.fsdp_plugin.fsdp_version = version
        trainer.train()
    except HfDistillError as error:
        return str(error)
    return "not refused"


def placed(folder: Path) -> str:
    """The devices that a teacher is brought to under FSDP, where Accelerate by itself brings it nowhere."""
    student, teacher = models("bert")
    devices: list[str] = []
    teacher.to = lambda device: devices.append(str(device)) or teacher  # type: ignore[method-assign, func-returns-value]
    arguments = DistillationConfig(output_dir=str(folder), report_to="none", use_cpu=True, **fsdp())
    DistillationTrainer(student, arguments, teacher_model=teacher, objective=plain())
    return ", ".join(devices)


def saved_models(folder: Path) -> tuple[str, str]:
    """The folders of student and teacher, as names to load them by."""
    names = []
    for role, model in zip(("student", "teacher"), models("bert"), strict=True):
        names.append(str(folder / role))
        # It writes on the first process alone.
        model.save_pretrained(names[-1])
    PartialState().wait_for_everyone()
    return names[0], names[1]


class Launch:
    """The processes of this launch, and the folder for what the first of them has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, name: str, trainer: DistillationTrainer, seen: dict[str, torch.Tensor]) -> None:
        """Write what a training has left, and how."""
        whole = left_by(trainer, seen)
        whole["processes"] = torch.tensor(trainer.accelerator.num_processes)
        whole["sharded"] = torch.tensor(
            trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        )
        if trainer.is_world_process_zero():
            save_file({key: value.contiguous() for key, value in whole.items()}, self.folder / f"{name}.safetensors")

    def train(self, name: str, terms: Objective, **arguments: Any) -> DistillationTrainer:
        """Train once and write what came of it."""
        trainer, seen = trained("bert", self.folder / name, terms, **BOTH_PROCESSES, **arguments)
        self.keep(name, trainer, seen)
        return trainer

    def train_and_resume(self, name: str, **arguments: Any) -> None:
        """Train three steps by Adam, and the last of them again from a checkpoint."""
        self.train(name, objective(), **SAVED, **arguments)
        checkpoint = str(self.folder / name / "checkpoint-2")
        self.train(f"{name}-resumed", objective(), **SAVED, **arguments, resume_from_checkpoint=checkpoint)


def refused_by_all(folder: Path, strategy: dict[str, Any]) -> dict[str, str]:
    """The words of what no sharding allows."""
    automatic = Objective([TaskLoss(), Logits(weight="auto")])
    return {
        "average": refusal(folder, strategy, teacher_model=EmaTeacher()),
        "auto": refusal(folder, strategy, objective=automatic),
        "peer": refusal(folder, strategy, teacher_model=Peer(models("bert")[0])),
    }


def by_fsdp(launch: Launch) -> dict[str, str]:
    """All that FSDP2 is asked for; returns what was said of it."""
    rest = launch.folder / "rest"
    trainer = launch.train("features", objective(), save_strategy="steps", save_steps=3, **fsdp())
    trainer.save_model(str(launch.folder / "export"))
    launch.train("plain", plain(), **fsdp(reshard_after_forward=False))
    for kind in ("FULL", "SHARDED"):
        # Here projectors are pieces of their own, apart from what the student does not wrap.
        launch.train_and_resume(kind.lower(), **fsdp("Projector", state_dict_type=f"{kind}_STATE_DICT"))
    # With it older Transformers load weights on the first process alone, of the teacher too.
    student, teacher = saved_models(rest)[0], models("bert")[1]
    if not PartialState().is_main_process:
        teacher.apply(lambda module: [parameter.data.zero_() for parameter in module.parameters(recurse=False)])
    launch.train("named", objective(), pair=(student, teacher), **fsdp(cpu_ram_efficient_loading=True))
    said = refused_by_all(rest, fsdp())
    said["version 1"] = refusal(rest, fsdp(), version=1, objective=objective())
    return said | {"placed": placed(rest)}


def by_deepspeed(launch: Launch, stage: int) -> dict[str, str]:
    """The same of DeepSpeed's ZeRO-2 or ZeRO-3."""
    rest = launch.folder / "rest"
    gathers = {"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {}
    trainer = launch.train("features", objective(), save_strategy="steps", save_steps=3, **zero(stage, **gathers))
    trainer.save_model(str(launch.folder / "export"))
    launch.train("plain", plain(), **zero(stage))
    launch.train_and_resume("full", **zero(stage))
    # Under ZeRO-3 from_pretrained now gives a student in pieces.
    names = saved_models(rest)
    launch.train("named", objective(), pair=names, **zero(stage))
    # And a teacher in pieces, by name or loaded by its user, or one that FSDP2 cuts.
    sharded = launch.train("sharded", objective(), pair=names, teacher_sharded=True, **zero(stage))
    cut = launch.train("cut", plain(), teacher_sharded=True, **zero(stage))
    said = refused_by_all(rest, zero(stage))
    for name, trainer in (("sharded", sharded), ("cut", cut)):
        assert isinstance(trainer.teacher, LiveTeacher)
        assert not trainer.teacher.portions.halves
        said[name] = type(trainer.teacher.model).__name__
        said[f"{name} hash"] = weight_hash(unwrapped(trainer.teacher.model))
    said["pieces"] = refusal(rest, zero(stage), teacher_model=names[1])
    said["dtype"] = refusal(rest, zero(stage), teacher_model=names[1], teacher_dtype="bfloat16")
    return said


def main(strategy: str, folder: Path) -> None:
    """Train on the processes of this launch."""
    torch.set_num_threads(1)
    shard_on_cpu()
    launch = Launch(folder)
    said = by_fsdp(launch) if strategy == "fsdp" else by_deepspeed(launch, int(strategy[-1]))
    if PartialState().is_main_process:
        (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
