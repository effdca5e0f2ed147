"""Short sounds made of tones, tiny models that hear them, and a tiny Whisper with the tokens of a real one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

RATE = 8000
CLASSES = ["low", "middle", "high"]
LETTERS = "abc"

CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": [16, 16],
    "conv_kernel": [10, 8],
    "conv_stride": [10, 16],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "mask_time_prob": 0.0,
    "classifier_proj_size": 8,
    "ctc_loss_reduction": "mean",
}
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
WAV2VEC2: dict[str, Any] = {"model_type": "wav2vec2", **SIZES, **CONVOLUTIONS}
SPECTROGRAM: dict[str, Any] = {
    "model_type": "audio-spectrogram-transformer",
    **SIZES,
    "num_mel_bins": 32,
    "max_length": 32,
}
SPEECH_TO_TEXT: dict[str, Any] = {
    "model_type": "speech_to_text",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "input_feat_per_channel": 20,
    "num_conv_layers": 1,
    "conv_kernel_sizes": [5],
    "conv_channels": 16,
    "max_target_positions": 40,
    "vocab_size": 384,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def tone(height: float, samples: int, seed: int = 0) -> NDArray[np.float64]:
    """A tone of so many Hz with a little noise."""
    noise = np.random.default_rng(seed).standard_normal(samples)
    return 0.3 * np.sin(2 * np.pi * height * np.arange(samples) / RATE) + 0.01 * noise


def stored(samples: NDArray[Any], rate: int = RATE) -> dict[str, Any]:
    """A WAV file in memory, as a column of recordings holds it."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return {"bytes": file.getvalue(), "path": None}


def recordings(waves: list[Any], **columns: list[Any]) -> datasets.Dataset:
    """A data set with recordings in a column `audio`."""
    made = datasets.Dataset.from_dict({"audio": waves, **columns})
    return made.cast_column("audio", datasets.Audio(decode=False))


def classes(rows: int, seed: int = 0) -> datasets.Dataset:
    """Tones whose height is their class, a fifth to two fifths of a second long."""
    generator = np.random.default_rng(seed)
    labels = [row % 3 for row in range(rows)]
    waves = [
        stored(tone(300 + 500 * each, int(generator.integers(1600, 3200)), row)) for row, each in enumerate(labels)
    ]
    return recordings(waves, label=labels).cast_column("label", datasets.ClassLabel(names=CLASSES))


def transcribed(rows: int, seed: int = 0, column: str = "text") -> datasets.Dataset:
    """One or two words of three letters, a tone for each letter."""
    generator = np.random.default_rng(seed)
    texts = [
        " ".join("".join(generator.choice(list(LETTERS), 2)) for _ in range(generator.integers(1, 3)))
        for _ in range(rows)
    ]
    waves = [
        np.concatenate([tone(300 + 500 * (LETTERS + " ").index(letter), 640) * (letter != " ") for letter in text])
        for text in texts
    ]
    return recordings([stored(wave) for wave in waves], **{column: texts})


def wav2vec2_folder(folder: Path, layers: int = 1, *, head: bool = False) -> str:
    """A tiny Wav2Vec2, with a CTC head or without any, and its processor for the three letters."""
    settings = {name: value for name, value in WAV2VEC2.items() if name != "model_type"}
    settings |= {"num_hidden_layers": layers, "vocab_size": 6, "mask_time_length": 1, "pad_token_id": 0}
    config = Wav2Vec2Config(**settings)
    (Wav2Vec2ForCTC if head else Wav2Vec2Model)(config).save_pretrained(folder)
    file = folder / "letters.json"
    file.write_text(json.dumps({token: place for place, token in enumerate(["<pad>", "<unk>", "|", *LETTERS])}))
    tokenizer = Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return str(folder)


def whisper_folder(folder: Path, layers: int = 1) -> str:
    """A tiny Whisper of bytes, with the languages and tasks of a real one, and its processor."""
    ends = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{language}|>" for language in LANGUAGES)]
    ends += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    places = {token: place for place, token in enumerate([*sorted(ByteLevel.alphabet()), *ends])}
    tokenizer = WhisperTokenizer(vocab=places, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ends[1:]})
    end, start = (places[token] for token in ends[:2])
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = WhisperConfig(
        **heads,
        d_model=16,
        encoder_layers=layers,
        decoder_layers=layers,
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=40,
        vocab_size=len(places),
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    settings = model.generation_config
    settings._from_model_config = False
    settings.is_multilingual = True
    settings.lang_to_id = {f"<|{language}|>": places[f"<|{language}|>"] for language in LANGUAGES}
    settings.task_to_id = {task: places[f"<|{task}|>"] for task in ("transcribe", "translate")}
    settings.no_timestamps_token_id = places["<|notimestamps|>"]
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=1), tokenizer).save_pretrained(folder)
    return str(folder)
