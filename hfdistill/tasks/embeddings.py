"""Sentence embeddings: one vector a text, pooled from the last hidden states of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from hfdistill.errors import HfDistillError
from hfdistill.rows import BatchRows, Rows
from hfdistill.tasks.label_losses import wide
from hfdistill.tasks.layouts import first_tensor, output_field

if TYPE_CHECKING:
    from hfdistill.tasks.task import Task


class Pooling(Enum):
    """How the hidden states of a text become one vector."""

    MEAN = "mean over the attended tokens"
    FIRST = "first attended token, such as [CLS]"
    LAST = "last attended token, for decoders"


@dataclass(frozen=True)
class PooledTokens:
    """One vector an example in place of logits: `last_hidden_state` `(examples, tokens, width)`, pooled.

    The attention mask says which tokens count; all do without one. Student and teacher are pooled the same way. There
    are no labels: `(examples, width)` is compared with the teacher's.
    """

    pooling: Pooling = Pooling.MEAN
    labels_match: ClassVar[bool] = False

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """An example each, none of them labelled."""
        texts = first_tensor(inputs, "input_ids", "inputs_embeds")
        nothing = torch.zeros(len(texts), dtype=torch.bool, device=texts.device)
        return BatchRows(Rows(len(texts)), Rows(len(texts), nothing), None)

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The embeddings, in float32 or wider."""
        hidden = output_field(outputs, "last_hidden_state")
        mask = inputs.get("attention_mask")
        if not isinstance(mask, torch.Tensor):
            mask = torch.ones(hidden.shape[:2], device=hidden.device)
        if hidden.dim() != 3 or mask.shape != hidden.shape[:2]:
            raise HfDistillError(
                f"Hidden states of shape {tuple(hidden.shape)} and an attention mask of {tuple(mask.shape)} came; "
                "expected (examples, tokens, width) and (examples, tokens) to pool a text's tokens."
            )
        return pooled(wide(hidden), mask != 0, self.pooling)

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """None: raises HfDistillError."""
        raise HfDistillError("Labels came for embeddings, which are compared with a teacher's only.")


def pooled(hidden: torch.Tensor, attended: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector a text, `(examples, width)`; a text without any token gives 0 or what stands at its first place."""
    places = torch.arange(attended.shape[1], device=attended.device)
    if pooling is Pooling.FIRST:
        chosen = attended.int().argmax(1)
    elif pooling is Pooling.LAST:
        chosen = (attended * places).argmax(1)
    else:
        weights = attended.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return hidden.gather(1, chosen.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])).squeeze(1)


def encoder_width(model: nn.Module) -> int | None:
    """The width of an encoder's last hidden states; None where no config tells."""
    if not isinstance(model, PreTrainedModel):
        return None
    config = model.config
    if config.model_type == "reformer":  # its two streams stand side by side
        return 2 * int(config.to_dict()["hidden_size"])
    width: int | None = config.to_dict().get(config.attribute_map.get("hidden_size", "hidden_size"))
    return width
