"""Students that have fewer layers in their encoder, their decoder, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)

from hfdistill import HfDistillError, student_from_teacher

SIZES: dict[str, Any] = {
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "vocab_size": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


def network(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "bart":
        return BartForConditionalGeneration(BartConfig(**SIZES, forced_eos_token_id=None)).eval()
    if name == "t5":
        sizes = {"d_model": 16, "num_heads": 2, "d_kv": 8, "d_ff": 16, "num_layers": 3, "num_decoder_layers": 3}
        return T5ForConditionalGeneration(T5Config(vocab_size=20, **sizes)).eval()
    sound = {"num_mel_bins": 4, "max_source_positions": 5, "max_target_positions": 8, "begin_suppress_tokens": None}
    head = WhisperForConditionalGeneration if name == "whisper" else WhisperForAudioClassification
    return head(WhisperConfig(**SIZES, **sound)).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    heard = {"input_ids": torch.randint(3, 20, (2, 6), generator=generator)}
    if model.main_input_name == "input_features":
        heard = {"input_features": torch.randn(2, 4, 10, generator=generator)}
    with torch.no_grad():
        return model(**heard, decoder_input_ids=torch.tensor([[2, 5, 6], [2, 7, 8]])).logits


@pytest.mark.parametrize("name", ["bart", "t5", "whisper"])
def test_all_layers_give_the_teacher_again_and_fewer_do_not(name: str) -> None:
    teacher = network(name)
    assert torch.equal(logits(student_from_teacher(teacher, layers=3)), logits(teacher))
    for fewer in ({"layers": 2}, {"decoder_layers": 2}):
        assert not torch.equal(logits(student_from_teacher(teacher, **fewer)), logits(teacher))


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [("bart", "model.encoder.layers", "model.decoder.layers"), ("t5", "encoder.block", "decoder.block")],
)
def test_the_first_and_last_layers_of_the_decoder_and_the_whole_encoder(
    name: str, encoder: str, decoder: str, tmp_path: Path
) -> None:
    teacher = network(name)
    student = student_from_teacher(teacher, decoder_layers=2)
    own, given = student.state_dict(), teacher.state_dict()
    for key, tensor in own.items():
        source = key.replace(f"{decoder}.1.", f"{decoder}.2.")
        assert torch.equal(tensor, given[source]), key
    assert sum(key.startswith(f"{encoder}.2.") for key in own) > 0
    student.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), logits(student))


def test_how_a_teacher_writes_is_handed_on() -> None:
    teacher = network("whisper")
    teacher.generation_config.suppress_tokens = [7]
    student = student_from_teacher(teacher, decoder_layers=[0, 2])
    assert student.generation_config.suppress_tokens == [7]
    assert student.generation_config is not teacher.generation_config


def test_a_head_on_the_encoder_of_such_a_model_has_layers_of_its_own() -> None:
    student = student_from_teacher(network("classifier"), layers=1)
    assert len(student.encoder.layers) == 1


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(HfDistillError, match=r"Neither layers .* nor decoder_layers came"):
        student_from_teacher(network("bart"))
    with pytest.raises(HfDistillError, match="layers=4, but the teacher has 3 layers"):
        student_from_teacher(network("bart"), decoder_layers=4)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertForMaskedLM(BertConfig(vocab_size=20, **sizes))
    with pytest.raises(HfDistillError, match="BertForMaskedLM, which has one stack of layers; expected layers alone"):
        student_from_teacher(bert, decoder_layers=1)
