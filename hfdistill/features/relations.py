"""Terms on how the teacher relates the examples of a batch."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from hfdistill.errors import HfDistillError
from hfdistill.features.gathering import of_other_processes
from hfdistill.features.layers import LAST, Layers
from hfdistill.features.layout import Features
from hfdistill.features.pooling import Pool, pooled_features
from hfdistill.features.regions import Region
from hfdistill.features.terms import HiddenStates, Prefix
from hfdistill.knowledge import Loss, loss_name
from hfdistill.losses import (
    contrastive,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
    similarity_preserving,
)
from hfdistill.schedules import Weight

LEAST_EXAMPLES = {
    relational_distance: 3,
    relational_angle: 3,
    similarity_preserving: 2,
    probabilistic_transfer: 2,
    contrastive: 2,
}


class Relations(HiddenStates):
    """How the teacher relates the examples of a micro-batch to each other.

    A loss on relations over one vector an example: the hidden state of a layer pooled by `pool`: "mean" over its valid
    positions, "first" (a class token) or "last" valid position, or "none": all of it, flattened. Such a loss sees the
    examples of one micro-batch on one process, so that it depends on how a global batch is cut; it needs
    per_device_train_batch_size of 2, or 3 for RKD. With `gathered`, for `contrastive` alone, the teacher's vectors of
    all processes' micro-batches are negatives too, so that 2 processes of 4 examples are as 1 of 8; accumulation adds
    none even then. The other arguments are those of HiddenStates.
    Source: Park et al. (RKD), arXiv 1904.05068; Tung and Mori, arXiv 1907.09682; Passalis and Tefas, arXiv 1803.10837;
    Tian et al. (CRD), arXiv 1910.10699, for `contrastive`.
    """

    def __init__(
        self,
        loss: Loss | str = relational_distance,
        *,
        pool: Pool = "mean",
        gathered: bool = False,
        layers: Layers = LAST,
        weight: Weight | str = 1.0,
        name: str = "relations",
        part: str | None = None,
        prefix: Prefix = "auto",
        region: Region | None = None,
        projector: Literal["linear"] | None = "linear",
        norm: bool = False,
        **options: Any,
    ) -> None:
        if pool not in get_args(Pool):
            raise HfDistillError(f"pool={pool!r}; expected one of {', '.join(map(repr, get_args(Pool)))}.")
        self.pool = pool
        self.gathered = gathered
        super().__init__(
            loss,
            layers=layers,
            weight=weight,
            name=name,
            part=part,
            prefix=prefix,
            region=region,
            projector=projector,
            norm=norm,
            **options,
        )
        if gathered and (self.loss is not contrastive or pool == "none"):
            raise HfDistillError(
                f"gathered=True came for {loss_name(self.loss)} with pool={pool!r}; expected contrastive, in which "
                "other examples are mere negatives, on vectors that are equally long on all processes: 'mean', 'first' "
                "or 'last'."
            )

    @property
    def least_examples(self) -> int:
        """The fewest examples of a micro-batch that the loss can relate."""
        return next((least for loss, least in LEAST_EXAMPLES.items() if loss is self.loss), 2)

    @property
    def over_positions(self) -> bool:
        """An example is a row."""
        return False

    def _aligned(self, student: Features, teacher: Features) -> tuple[Features, Features]:
        """As they are: pooled vectors have no positions to bring in line."""
        return student, teacher

    def _compared(self, ours: Features, theirs: Features, tokens: torch.Tensor | None) -> torch.Tensor:
        pooled = [pooled_features(side, self.pool) for side in (ours, theirs)]
        if self.gathered:
            pooled[1] = torch.cat([pooled[1], of_other_processes(pooled[1])])
        return self._checked(self.loss(pooled[0], pooled[1], **self.options), len(ours.values))

    def _trial_shape(self) -> tuple[int, ...]:
        return (4,)
