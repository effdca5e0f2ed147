"""What a detector sees on a split: its surest boxes of each image, beside the objects that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PrinterCallback

from hfdistill.contract import aligned_classes, class_names
from hfdistill.data import LabelSpace, whole_batch
from hfdistill.data.objects import DiskObjects, Found, MemoryObjects
from hfdistill.detection_sheet import detection_sheet
from hfdistill.knowledge import TaskLoss
from hfdistill.objective import Objective
from hfdistill.stages.exam import Exam
from hfdistill.tasks import Queries
from hfdistill.tasks.layouts import output_field
from hfdistill.tasks.matching import corners, probabilities
from hfdistill.trainer import DistillationTrainer

MOST = 100
"""Boxes that are kept of an image, as in COCO's evaluation."""


@dataclass(frozen=True)
class Detections:
    """Rows of image, class, score and corners in pixels; of objects with "is a crowd" in place of the score."""

    detections: Tensor
    gold: Tensor
    images: int

    def tensors(self) -> dict[str, Tensor]:
        """What is written to the stage's folder."""
        return {"detections": self.detections, "gold": self.gold, "examples": torch.tensor([float(self.images)])}

    def metrics(self, space: LabelSpace) -> dict[str, float]:
        """COCO's mean average precisions."""
        return detection_sheet({name: tensor.numpy() for name, tensor in self.tensors().items()}).metrics()


def detections(exam: Exam) -> Detections:
    """Go through a split batch by batch, without its labels."""
    examples = exam.own_examples()
    source = examples.source
    assert isinstance(source, (DiskObjects, MemoryObjects)), "the images of this kind"
    columns = aligned_classes(list(exam.space.names), class_names(exam.model)).tensor()
    trainer = DistillationTrainer(
        exam.model,
        exam.config,
        objective=Objective([TaskLoss()]),
        eval_dataset=examples,
        data_collator=whole_batch,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model.to(exam.config.device)
    trainer.model.eval()
    layout = trainer.task.layout
    assert isinstance(layout, Queries) and layout.boxes is not None, "a detector"
    parts: list[Tensor] = []
    size = int(exam.config.eval_batch_size)
    for start in exam.bar(range(0, len(examples), size), "Measuring"):
        places = range(start, min(start + size, len(examples)))
        batch = examples.__getitems__(places)
        sizes = torch.stack([each["orig_size"].flip(0) for each in batch.pop("labels")])
        inputs = trainer._prepare_inputs(batch)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            outputs = trainer.model(**trainer.views.student(inputs))
        logits = layout.logits(outputs, inputs)
        boxes = layout.kept(output_field(outputs, layout.boxes), outputs)
        for place, rows in zip(places, surest(logits, boxes, sizes, layout.no_object, columns), strict=True):
            parts.append(torch.cat([torch.full((len(rows), 1), float(place), dtype=torch.float64), rows], dim=1))
    return Detections(torch.cat(parts), gold_rows(source.found), len(examples))


def surest(logits: Tensor, boxes: Tensor, sizes: Tensor, no_object: bool, columns: Tensor | None) -> list[Tensor]:
    """Of each image up to `MOST` rows (n, 6): class, score and corners in pixels, of images of `sizes` (width, height).

    A query is of its most likely class where the classes exclude each other, and may else be of several, as in each
    family's own post-processing. `columns` are the places of our classes.
    """
    shares = probabilities(logits, no_object).double().cpu()
    shares = shares[..., :-1] if no_object else shares
    if columns is not None:
        shares = shares[..., columns]
    classes = shares.shape[-1]
    if no_object:
        scores, found = shares.max(-1)
        chosen = scores.topk(min(MOST, scores.shape[1]), dim=1)
        queries, labels = chosen.indices, found.gather(1, chosen.indices)
    else:
        chosen = shares.flatten(1).topk(min(MOST, shares[0].numel()), dim=1)
        queries, labels = chosen.indices // classes, chosen.indices % classes
    places = corners(boxes.double().cpu()) * torch.cat([sizes, sizes], dim=1)[:, None]
    taken = places.gather(1, queries[..., None].expand(-1, -1, 4))
    rows = torch.cat([labels.double()[..., None], chosen.values[..., None], taken], dim=-1)
    return list(rows)


def gold_rows(found: Sequence[Found]) -> Tensor:
    """The objects of a split, crowds among them."""
    rows = [
        np.concatenate(
            [
                np.full((len(each.classes), 1), float(image)),
                each.classes[:, None],
                each.crowds[:, None],
                each.boxes,
            ],
            axis=1,
        )
        for image, each in enumerate(found)
    ]
    return torch.from_numpy(np.concatenate(rows).astype(np.float64))
