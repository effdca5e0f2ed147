"""Pictures and two image classifiers in folders, as the examples and README load them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from transformers import ViTImageProcessor

from tests import tiny


def picture_folder(folder: Path, *splits: str) -> Path:
    """Return ``folder`` with four plain pictures of each of three classes in each split."""
    for split in splits:
        for place, name in enumerate(("class_0", "class_1", "class_2")):
            of_class = folder / split / name
            of_class.mkdir(parents=True)
            for shade in range(4):
                Image.new("RGB", (20, 20), (80 * place, 20 * shade, 90)).save(of_class / f"{shade}.png")
    return folder


def saved_pair(folder: Path) -> tuple[Path, Path]:
    """Return the folders ``student`` and ``teacher``: tiny models, each with a processor of its own."""
    for name, architecture, mean in (("student", "resnet", 0.5), ("teacher", "vit", 0.2)):
        tiny.model(architecture).save_pretrained(folder / name)
        size = {"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE}
        ViTImageProcessor(size=size, image_mean=[mean] * 3).save_pretrained(folder / name)
    return folder / "student", folder / "teacher"
