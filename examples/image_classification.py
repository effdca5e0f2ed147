"""Distil an image classifier into a smaller one.

    python examples/image_classification.py --dataset_name AI-Lab-Makerere/beans --label_column labels \
        --teacher_model_name_or_path merve/beans-vit-224 --model_name_or_path google/mobilenet_v2_0.35_96 \
        --output_dir beans-student

`--dataset_name` is a Hub id or a folder of images (one sub-folder a class, with `train/` and `test/` above them).
Student and teacher may resize and normalise differently: each gets its own view of the same image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoImageProcessor, EvalPrediction, HfArgumentParser

from hfdistill import DistillationConfig, DistillationTrainer


@dataclass
class ScriptArguments:
    """What to distil, and on what."""

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the student."})
    dataset_name: str = field(metadata={"help": "Hub id of a data set, or a folder of images."})
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    eval_split: str = "test"


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of examples whose highest logit is at the label."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Train the student and evaluate it."""
    script, args = HfArgumentParser((ScriptArguments, DistillationConfig)).parse_args_into_dataclasses()
    local = Path(script.dataset_name).is_dir()
    dataset = load_dataset("imagefolder", data_dir=script.dataset_name) if local else load_dataset(script.dataset_name)
    student_processor = AutoImageProcessor.from_pretrained(script.model_name_or_path)
    teacher_processor = AutoImageProcessor.from_pretrained(args.teacher_model_name_or_path)

    def two_views(batch: dict[str, list[Any]]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[script.image_column]]
        return {
            "pixel_values": student_processor(images, return_tensors="pt")["pixel_values"],
            "teacher_pixel_values": teacher_processor(images, return_tensors="pt")["pixel_values"],
            "labels": batch[script.label_column],
        }

    args.remove_unused_columns = False  # the transform needs the raw image
    trainer = DistillationTrainer(
        script.model_name_or_path,
        args,
        train_dataset=dataset[script.train_split].with_transform(two_views),
        eval_dataset=dataset[script.eval_split].with_transform(two_views),
        processing_class=student_processor,
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    print(trainer.evaluate())
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
