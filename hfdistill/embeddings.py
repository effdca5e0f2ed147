"""Knowledge of dual encoders: where they put each image and each text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.knowledge import Comparison, Loss, StepContext, loss_name
from hfdistill.losses import cosine_distance
from hfdistill.schedules import Weight
from hfdistill.tasks import ImageTextPairs, Task
from hfdistill.tasks.pairs import EMBEDDING_FIELDS, pair_width


class Embeddings(Comparison):
    """Where the teacher puts each image and each text: a distance between the embeddings of the two models.

    One value an image and one a text, over `image_embeds` and `text_embeds`, which CLIP and its kin give at length 1.
    With a loss that looks at each row alone (`cosine_distance`, `hint`) the update does not depend on how a global
    batch is cut. A loss on relations, such as `similarity_preserving`, takes two models of different widths, and
    relates images with images and texts with texts. The arguments are those of every `Comparison`.
    Errors: HfDistillError for another task, and for widths that the loss cannot compare.
    Source: the feature term of Yang et al., "CLIP-KD", arXiv 2307.12732, which is `hint` on the same.
    """

    fields = EMBEDDING_FIELDS

    def __init__(
        self,
        loss: Loss | str = cosine_distance,
        *,
        weight: Weight | str = 1.0,
        name: str = "embeddings",
        **options: Any,
    ) -> None:
        super().__init__(loss, weight=weight, name=name, **options)

    def values(self, context: StepContext) -> torch.Tensor:
        """One value an image, then one a text."""
        if context.targets is None:
            raise HfDistillError(f"{self!r} needs a teacher; pass teacher_model.")
        targets = context.targets.fields
        values = torch.cat([self.loss(context.fields[name], targets[name], **self.options) for name in self.fields])
        if values.shape != (len(context.rows.every),):
            raise HfDistillError(
                f"The loss {loss_name(self.loss)} gave {tuple(values.shape)} values for {len(context.rows.every)} "
                "images and texts; expected one each: reduce over the width only."
            )
        return values

    def check(self, num_classes: int | None, task: Task) -> None:
        """Refuse a task without pairs, and a loss that needs labels."""
        if not isinstance(task.layout, ImageTextPairs):
            raise HfDistillError(
                f"{self!r} came for {task.name}; expected a model of images and texts, such as CLIP. For embeddings of "
                "sentences use task='sentence_embedding' and Logits('cosine_distance')."
            )
        if self.needs_labels:
            raise HfDistillError(
                f"{loss_name(self.loss)} needs labels, and embeddings have none; take cosine_distance."
            )

    def check_models(self, student: nn.Module, teacher: nn.Module, task: Task) -> None:
        """Refuse widths that the loss cannot compare."""
        self._check_widths(pair_width(student), pair_width(teacher), "image_embeds and text_embeds")
