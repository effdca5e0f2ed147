"""Quantised teachers, and students with adapters on a quantised base: as far as the libraries are installed."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPTQConfig, PreTrainedModel, PreTrainedTokenizerFast

from hfdistill import DistillationConfig, HfDistillError, OwnBase
from tests import tiny
from tests.trainer.adapter_runs import batch, loaded, lora, run, saved

INT8_OF_TORCHAO = {
    "quant_method": "torchao",
    "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
}
INT8_OF_BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_8bit": True}
NF4_OF_BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
# The setting that leaves modules whole.
WHOLE = {"torchao": "modules_to_not_convert", "bitsandbytes": "llm_int8_skip_modules"}


def installed(library: str) -> bool:
    """Whether the library is there; asked without importing it."""
    try:
        version(library)
    except PackageNotFoundError:
        return False
    return True


def needs(library: str, config: dict[str, Any], name: str) -> Any:
    """A case that is skipped where its library is missing."""
    skip = pytest.mark.skipif(not installed(library), reason=f"{library} is not installed")
    return pytest.param(config, id=name, marks=skip)


each_kind = pytest.mark.parametrize(
    "config",
    [
        needs("torchao", INT8_OF_TORCHAO, "torchao int8"),
        needs("bitsandbytes", INT8_OF_BITSANDBYTES, "bitsandbytes int8"),
        needs("bitsandbytes", NF4_OF_BITSANDBYTES, "bitsandbytes nf4"),
    ],
)


def quantised(model: torch.nn.Module) -> list[str]:
    """The names of the weights that are no plain tensors."""
    return [name for name, value in model.named_parameters() if type(value) is not torch.nn.Parameter]


@each_kind
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_teacher_by_name_is_quantised_while_it_is_loaded(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(kind, tmp_path / "teacher", layers=2, seed=2)
    with torch.no_grad():
        whole = loaded(kind, folder).eval()(**batch(kind)).logits
    # As a recipe or the command line gives them.
    arguments = {"teacher_model_init_kwargs": json.dumps({"quantization_config": config})}
    trainer = run(kind, tmp_path, teacher=str(folder), max_steps=1, **arguments)
    teacher = trainer.teacher.model
    assert isinstance(teacher, PreTrainedModel) and quantised(teacher)
    trainer.train()
    logits = trainer.teacher(batch(kind)).logits
    assert 0 < (logits - whole).abs().mean() < 0.5 * whole.std()
    assert trainer.state.log_history[0]["loss/kd"] > 0
    # A second student of the same teacher, as in several seeds: moving it has taken the marks of loading away.
    run(kind, tmp_path, teacher=teacher, max_steps=1).train()


@each_kind
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_adapters_on_a_quantised_base(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(kind, tmp_path / "base", layers=2)
    if kind == "bert":
        config = {**config, WHOLE[config["quant_method"]]: ["classifier"]}
    arguments: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 0.05}
    often = {"save_strategy": "steps", "save_steps": 1}
    student = loaded(kind, folder, quantization_config=dict(config))
    trainer = run(kind, tmp_path, lora(kind), student=student, teacher=OwnBase(), **arguments, **often)
    trainer.train()
    base = trainer.model.get_base_model()
    assert quantised(base) and not any(dict(base.named_parameters())[name].requires_grad for name in quantised(base))
    steps = [row for row in trainer.state.log_history if "loss" in row]
    # bitsandbytes multiplies in int8 with other roundings where a gradient is asked for.
    assert steps[0]["loss/kd"] == pytest.approx(0, abs=1e-3 if "load_in_8bit" in config else 0)
    assert steps[-1]["loss/kd"] > 1.5e-3
    assert all(row["grad_norm"] > 0 for row in steps)
    held = tmp_path / "out" / "checkpoint-3"
    assert not (held / "model.safetensors").exists()
    back = peft.PeftModel.from_pretrained(loaded(kind, folder, quantization_config=dict(config)), held)
    with torch.no_grad():
        expected, found = trainer.model.eval()(**batch(kind)).logits, back.eval()(**batch(kind)).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # By name, and with another seed, which nothing must be left of.
    named = {"model_init_kwargs": json.dumps({"quantization_config": config}), "seed": 7, "data_seed": 42}
    again = run(kind, tmp_path, lora(kind), student=str(folder), teacher=OwnBase(), **arguments, **named)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    now, then = (peft.get_peft_model_state_dict(each.model) for each in (again, trainer))
    for name, value in then.items():
        torch.testing.assert_close(now[name], value, rtol=0, atol=0)


@pytest.mark.skipif(not installed("bitsandbytes"), reason="bitsandbytes is not installed")
def test_a_quantised_base_is_prepared_for_training(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "base")
    student = loaded("llama", folder, quantization_config=dict(NF4_OF_BITSANDBYTES), dtype=torch.bfloat16)
    assert student.model.norm.weight.dtype == torch.bfloat16
    model = run("llama", tmp_path, lora("llama"), student=student, teacher=OwnBase()).model
    assert model.get_base_model().model.norm.weight.dtype == torch.float32
    assert not model.get_base_model().model.norm.weight.requires_grad


@pytest.mark.skipif(not installed("gptqmodel"), reason="gptqmodel is not installed")
@pytest.mark.filterwarnings("ignore")  # of which this library raises many
def test_a_teacher_quantised_by_gptq(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "whole", hidden_size=64, intermediate_size=64, head_dim=32)
    words = Tokenizer(WordLevel({str(token): token for token in range(tiny.VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", pad_token="1")
    texts = [" ".join(str(4 + row * place % 60) for place in range(40)) for row in range(1, 9)]
    config = GPTQConfig(bits=4, group_size=32, dataset=texts, tokenizer=tokenizer)
    model = loaded("llama", folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float16)
    model.save_pretrained(tmp_path / "gptq")
    # The folder itself says how it is quantised.
    trainer = run("llama", tmp_path, teacher=str(tmp_path / "gptq"), max_steps=1)
    trainer.train()
    with torch.no_grad():
        whole = loaded("llama", folder).eval()(**batch("llama")).logits
    assert 0 < (trainer.teacher(batch("llama")).logits - whole).abs().mean() < 0.5 * whole.std()


@each_kind
def test_a_quantised_head_cannot_learn(config: dict[str, Any], tmp_path: Path) -> None:
    student = loaded("bert", saved("bert", tmp_path / "base"), quantization_config=dict(config))
    with pytest.raises(HfDistillError, match=r"head 'classifier' is quantised.*modules_to_not_convert"):
        run("bert", tmp_path, lora("bert"), student=student)


def test_a_config_is_read_from_the_command_line(tmp_path: Path) -> None:
    text = json.dumps({"quantization_config": NF4_OF_BITSANDBYTES})
    arguments = DistillationConfig(output_dir=str(tmp_path), teacher_model_init_kwargs=text)
    assert arguments.teacher_model_init_kwargs == {"quantization_config": NF4_OF_BITSANDBYTES}
    assert json.loads(arguments.to_json_string())["teacher_model_init_kwargs"] == arguments.teacher_model_init_kwargs


@pytest.mark.skipif(installed("bitsandbytes"), reason="bitsandbytes is installed")
def test_a_missing_library_is_named(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path / "teacher", layers=2, seed=2)
    arguments = {"teacher_model_init_kwargs": {"quantization_config": INT8_OF_BITSANDBYTES}}
    with pytest.raises(HfDistillError, match=r"requires bitsandbytes.* install that first"):
        run("bert", tmp_path, teacher=str(folder), **arguments)
