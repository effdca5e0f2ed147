"""Small local stand-ins for what the recipes name on the Hub: models, tokenizers, pictures, texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
)

from tests import tiny

CLASSES = ["class_0", "class_1", "class_2"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijkl"]


def image_processor(size: int = tiny.IMAGE_SIZE, mean: float = 0.5) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=[mean] * 3, image_std=[0.5] * 3)


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def model_folder(folder: Path, architecture: str, *, layers: int = 2, num_labels: int = 3, seed: int = 0) -> str:
    """A saved tiny model with its processor."""
    model = tiny.model(architecture, layers=layers, num_labels=num_labels, seed=seed)
    if architecture in tiny.TEXT:
        model.config.pad_token_id = 0
    model.save_pretrained(folder)
    (tokenizer() if architecture in tiny.TEXT else image_processor()).save_pretrained(folder)
    return str(folder)


def token_model_folder(folder: Path, task: str) -> str:
    """A saved tiny model with a head over tokens, and its tokenizer."""
    small = {"vocab_size": len(WORDS), "pad_token_id": 0}
    if task == "causal_lm":
        decoder = GPT2Config(n_embd=16, n_layer=9, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3, **small)
        model: PreTrainedModel = GPT2LMHeadModel(decoder)
    elif task == "seq2seq_lm":
        sizes = {"encoder_layers": 2, "decoder_layers": 12, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        ends = {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "forced_eos_token_id": 3}
        model = BartForConditionalGeneration(
            BartConfig(d_model=16, max_position_embeddings=64, **sizes, **heads, **ends, **small)
        )
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "intermediate_size": 32}
        encoder = BertConfig(**sizes, max_position_embeddings=64, **small)
        heads_of = {"masked_lm": BertForMaskedLM, "question_answering": BertForQuestionAnswering}
        model = heads_of.get(task, BertForTokenClassification)(encoder)
    model.save_pretrained(folder)
    made = tokenizer()
    made.mask_token = "[UNK]"
    made.save_pretrained(folder)
    return str(folder)


def sentences(rows: int, words: str, tags: str, seed: int = 0) -> datasets.Dataset:
    """Words of one letter, some of them tagged by what they are."""
    generator = np.random.default_rng(seed)
    found = [generator.choice(list("abcdefghijkl"), generator.integers(3, 9)).tolist() for _ in range(rows)]
    return datasets.Dataset.from_dict(
        {words: found, tags: [["B-X" if word in "abc" else "O" for word in each] for each in found]}
    )


def questions(rows: int, seed: int = 0) -> datasets.Dataset:
    """What follows a letter in a row of letters? Every fourth question is about a letter that is not there."""
    generator = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {"question": [], "context": [], "answers": []}
    for row in range(rows):
        letters = generator.permutation(list("abcdefghijkl"))
        place = int(generator.integers(0, 8))
        there = row % 4 > 0
        columns["context"].append(" ".join(letters[:9]))
        columns["question"].append(letters[place if there else 10])
        found = {"text": [letters[place + 1]], "answer_start": [2 * place + 2]} if there else None
        columns["answers"].append(found or {"text": [], "answer_start": []})
    return datasets.Dataset.from_dict(columns)


def pictures(rows: int, image: str = "image", label: str = "label", seed: int = 0) -> datasets.Dataset:
    """Noise over a grey that tells the class."""
    generator = np.random.default_rng(seed)
    labels = [row % 3 for row in range(rows)]
    pixels = [generator.integers(0, 60, (12, 12, 3)) + 80 * each for each in labels]
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=CLASSES)})
    columns = {image: [Image.fromarray(each.astype(np.uint8)) for each in pixels], label: labels}
    return datasets.Dataset.from_dict(columns, features=features)


def texts(rows: int, columns: list[str], label: str = "label", seed: int = 0) -> datasets.Dataset:
    """Letters, one of which tells the class."""
    generator = np.random.default_rng(seed)
    labels = [row % 3 for row in range(rows)]
    found: dict[str, list[object]] = {
        column: [
            " ".join(["abc"[each], *generator.choice(list("defghijkl"), generator.integers(1, 6))]) for each in labels
        ]
        for column in columns
    }
    features = datasets.Features(
        {column: datasets.Value("string") for column in columns} | {label: datasets.ClassLabel(names=CLASSES)}
    )
    return datasets.Dataset.from_dict(found | {label: labels}, features=features)


def picture_folder(folder: Path) -> str:
    """Pictures by class, as `imagefolder` reads them."""
    for number, row in enumerate(pictures(30)):
        file = folder / CLASSES[row["label"]] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(file)
    return str(folder)


def data_folder(folder: Path, splits: dict[str, datasets.Dataset]) -> str:
    """Parquet files by split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}.parquet")
    return str(folder)
