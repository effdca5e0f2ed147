"""Distil a fine-tuned text classifier into a student made from a few of its own layers.

    python examples/text_classification.py --dataset_name stanfordnlp/sst2 --text_column sentence \
        --teacher_model_name_or_path textattack/bert-base-uncased-SST-2 --student_layers 4 --output_dir sst2-student

`--dataset_name` is a Hub id, or a folder with `train.csv` and `validation.csv` (or .json, .parquet).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
)

from hfdistill import DistillationConfig, DistillationTrainer, student_from_teacher


@dataclass
class ScriptArguments:
    """What to distil, and on what."""

    dataset_name: str = field(metadata={"help": "Hub id of a data set, or a folder with one file a split."})
    student_layers: int = field(default=2, metadata={"help": "Layers of the teacher that the student starts from."})
    text_column: str = "text"
    label_column: str = "label"
    train_split: str = "train"
    eval_split: str = "validation"
    max_length: int = 128


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of examples whose highest logit is at the label."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Build the student, train and evaluate it."""
    script, args = HfArgumentParser((ScriptArguments, DistillationConfig)).parse_args_into_dataclasses()
    dataset = load_dataset(script.dataset_name)
    tokenizer = AutoTokenizer.from_pretrained(args.teacher_model_name_or_path)
    teacher = AutoModelForSequenceClassification.from_pretrained(args.teacher_model_name_or_path)
    student = student_from_teacher(teacher, layers=script.student_layers)

    def tokens(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(batch[script.text_column], truncation=True, max_length=script.max_length)
        return {**encoded, "labels": batch[script.label_column]}

    dataset = dataset.map(tokens, batched=True)
    trainer = DistillationTrainer(
        student,
        args,
        teacher_model=teacher,
        train_dataset=dataset[script.train_split],
        eval_dataset=dataset[script.eval_split],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
