"""Tiny models with a head over tokens, spans or choices, and batches for them; all depends on the seed alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

VOCABULARY = 32
PAD, START, END = 0, 1, 2
LONGEST = 9
TAGS = 4
FRAMES, MELS = 8, 4

Batch = dict[str, torch.Tensor]


def _bert(layers: int) -> PreTrainedConfig:
    return BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=PAD, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=TAGS,
    )  # fmt: skip


def _two_labels(layers: int) -> PreTrainedConfig:
    config = _bert(layers)
    config.num_labels = 2
    return config


def _llama(layers: int) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
    )  # fmt: skip


def _gpt2(layers: int) -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=layers, n_head=2, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
    )  # fmt: skip


def _t5(layers: int) -> PreTrainedConfig:
    return T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=layers, num_decoder_layers=layers, num_heads=2,
        dropout_rate=0.0, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
    )  # fmt: skip


def _bart_like(kind: Callable[..., PreTrainedConfig]) -> Callable[[int], PreTrainedConfig]:
    def build(layers: int) -> PreTrainedConfig:
        return kind(
            vocab_size=VOCABULARY, d_model=16, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, dropout=0.0,
            attention_dropout=0.0, activation_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
            pad_token_id=PAD, bos_token_id=START, eos_token_id=END, decoder_start_token_id=END, forced_eos_token_id=END,
        )  # fmt: skip

    return build


def _whisper(layers: int) -> PreTrainedConfig:
    return WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=MELS, d_model=16, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_source_positions=FRAMES // 2, max_target_positions=64, dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, pad_token_id=PAD, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[int], PreTrainedConfig], type[PreTrainedModel], str]] = {
    "bert_tags": (_bert, BertForTokenClassification, "token_classification"),
    "bert_spans": (_two_labels, BertForQuestionAnswering, "question_answering"),
    "bert_choices": (_bert, BertForMultipleChoice, "multiple_choice"),
    "bert_masked": (_bert, BertForMaskedLM, "masked_lm"),
    "llama": (_llama, LlamaForCausalLM, "causal_lm"),
    "gpt2": (_gpt2, GPT2LMHeadModel, "causal_lm"),
    "t5": (_t5, T5ForConditionalGeneration, "seq2seq_lm"),
    "bart": (_bart_like(BartConfig), BartForConditionalGeneration, "seq2seq_lm"),
    "m2m100": (_bart_like(M2M100Config), M2M100ForConditionalGeneration, "seq2seq_lm"),
    "whisper": (_whisper, WhisperForConditionalGeneration, "seq2seq_lm"),
}


def model(name: str, *, layers: int = 1, seed: int = 0, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """A tiny model whose logits differ well beyond rounding from those of another seed."""
    build, kind, _ = MODELS[name]
    config = build(layers)
    config.vocab_size = vocabulary
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    return network.train()


@dataclass(frozen=True)
class Words:
    """Draws sequences of different lengths from one generator."""

    generator: torch.Generator

    def length(self, least: int = 3) -> int:
        """How long the next sequence is."""
        return int(torch.randint(least, LONGEST + 1, (), generator=self.generator))

    def ids(self, *shape: int) -> torch.Tensor:
        """Tokens that are nothing special."""
        return torch.randint(3, VOCABULARY, shape, generator=self.generator)

    def below(self, end: int, *shape: int) -> torch.Tensor:
        """Numbers from 0."""
        return torch.randint(end, shape, generator=self.generator)


def examples(name: str, count: int, seed: int = 7) -> list[Batch]:
    """Single examples without padding, in the form that the model's usual collator puts together."""
    words = Words(torch.Generator().manual_seed(seed))
    return [EXAMPLES[MODELS[name][2]](words, name) for _ in range(count)]


def _tags(words: Words, name: str) -> Batch:
    length = words.length()
    labels = words.below(TAGS, length)
    labels[0] = -100  # [CLS]
    return {"input_ids": words.ids(length), "labels": labels}


def _spans(words: Words, name: str) -> Batch:
    length = words.length()
    return {
        "input_ids": words.ids(length),
        "start_positions": words.below(length),
        "end_positions": words.below(length),
    }


def _choices(words: Words, name: str) -> Batch:
    return {"input_ids": words.ids(3, words.length()), "labels": words.below(3)}


def _masked(words: Words, name: str) -> Batch:
    ids = words.ids(words.length())
    hidden = words.below(3, len(ids)) == 0
    return {"input_ids": ids.masked_fill(hidden, END), "labels": ids.masked_fill(~hidden, -100)}


def _causal(words: Words, name: str) -> Batch:
    ids = words.ids(words.length())
    labels = ids.clone()
    labels[: int(words.below(3))] = -100  # a prompt
    return {"input_ids": ids, "labels": labels}


def _seq2seq(words: Words, name: str) -> Batch:
    labels = torch.cat([words.ids(words.length() - 1), torch.tensor([END])])
    if name == "whisper":
        return {"input_features": torch.randn(MELS, FRAMES, generator=words.generator), "labels": labels}
    return {"input_ids": words.ids(words.length()), "labels": labels}


EXAMPLES: dict[str, Callable[[Words, str], Batch]] = {
    "token_classification": _tags,
    "question_answering": _spans,
    "multiple_choice": _choices,
    "masked_lm": _masked,
    "causal_lm": _causal,
    "seq2seq_lm": _seq2seq,
}


def padded(rows: list[Batch], *, left: bool = False, further: int = 0) -> Batch:
    """A batch padded on one side to its longest example, and by `further` places more; with attention_mask."""
    rows = [row | {"attention_mask": torch.ones_like(row["input_ids"])} if "input_ids" in row else row for row in rows]
    batch: Batch = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if key == "input_features" or values[0].dim() == 0:
            batch[key] = torch.stack(values)
            continue
        longest = max(value.shape[-1] for value in values) + further
        fill = -100 if key == "labels" else PAD
        edges = [(longest - value.shape[-1], 0) if left else (0, longest - value.shape[-1]) for value in values]
        batch[key] = torch.stack(
            [torch.nn.functional.pad(value, edge, value=fill) for value, edge in zip(values, edges, strict=True)]
        )
    return batch
