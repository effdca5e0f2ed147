"""Every example runs as its docstring says, on tiny models and data made here."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.pictures import picture_folder, saved_pair

ROOT = Path(__file__).parents[1]
SHORT = ["--max_steps", "2", "--report_to", "none", "--use_cpu", "True", "--per_device_train_batch_size", "4"]


def output(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def script(name: str) -> str:
    return str(ROOT / "examples" / name)


def test_image_classification(tmp_path: Path) -> None:
    images = picture_folder(tmp_path / "images", "train", "test")
    saved_pair(tmp_path)
    command = [sys.executable, script("image_classification.py"), "--dataset_name", str(images)]
    models = ["--model_name_or_path", "student", "--teacher_model_name_or_path", "teacher", "--output_dir", "out"]
    assert "eval_accuracy" in output([*command, *models, *SHORT], tmp_path)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_text_classification(tmp_path: Path) -> None:
    words = ["[UNK]", "[PAD]", "a", "good", "bad", "film"]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(tmp_path / "teacher")
    tiny.model("bert", layers=3, num_labels=2).save_pretrained(tmp_path / "teacher")
    rows = [{"text": f"a {word} film", "label": label} for label, word in enumerate(("bad", "good"))] * 6
    for split in ("train", "validation"):
        Dataset.from_list(rows).to_csv(tmp_path / "reviews" / f"{split}.csv")
    command = [sys.executable, script("text_classification.py"), "--dataset_name", "reviews", "--student_layers", "1"]
    assert "eval_accuracy" in output(
        [*command, "--teacher_model_name_or_path", "teacher", "--output_dir", "out", *SHORT], tmp_path
    )


def test_custom_loss(tmp_path: Path) -> None:
    command = [sys.executable, script("custom_loss.py"), "--output_dir", "out", "--num_train_epochs", "20"]
    steps = ["--learning_rate", "5e-3", "--per_device_train_batch_size", "32", "--save_strategy", "no"]
    out = output([*command, *SHORT[2:6], *steps], tmp_path)
    assert float(re.findall(r"accuracy of the student ([\d.]+)", out)[0]) > 0.7


def test_several_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    out = output([*command, script("several_processes.py"), "--output_dir", "out", *SHORT], tmp_path)
    assert "process 2 of 2" in out
    assert "2 ranks, largest difference between their students 0\n" in out


def test_hyperparameter_search(tmp_path: Path) -> None:
    command = [sys.executable, script("hyperparameter_search.py"), "--output_dir", "out", "--n_trials", "2"]
    for expected in (2, 4):
        out = output([*command, "--storage", "sqlite:///study.db", *SHORT], tmp_path)
        assert re.search(r"best of 2 on validation data: temperature [\d.]+, alpha 0\.\d+, accuracy 0\.\d+", out)
        with sqlite3.connect(tmp_path / "study.db") as study:
            assert study.execute("select count(*) from trials").fetchone() == (expected,)
