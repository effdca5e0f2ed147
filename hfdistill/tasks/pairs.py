"""Images and their texts: what dual encoders such as CLIP and SigLIP say of a batch of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hfdistill.errors import HfDistillError
from hfdistill.rows import BatchRows, Rows
from hfdistill.tasks.label_losses import wide
from hfdistill.tasks.layouts import first_tensor, output_field

if TYPE_CHECKING:
    from hfdistill.tasks.task import Task

EMBEDDING_FIELDS = ("image_embeds", "text_embeds")
# The similarity of a counterpart that does not exist; finite, since a sigmoid has no such thing as -inf in its loss.
IMPOSSIBLE = -1e4


@dataclass(frozen=True)
class ImageTextPairs:
    """Two distributions a pair: of its image over the texts of the batch, and of its text over the images.

    Rows are the images, then the texts. The label of a row is its own counterpart, so that no column of labels is
    needed; all others of the micro-batch are negatives. Hence here, as with batch normalisation, an update depends by
    definition on how a global batch is cut into micro-batches and processes: each of them is a problem of its own, and
    a larger `per_device_train_batch_size` is a harder one. A term on the embeddings alone does not depend on it.
    """

    labels_match: ClassVar[bool] = True

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """Two a pair."""
        texts = first_tensor(inputs, "input_ids", "inputs_embeds")
        images = first_tensor(inputs, "pixel_values")
        if len(texts) != len(images):
            raise HfDistillError(
                f"{len(images)} images and {len(texts)} texts came for {task.name}; expected pairs, one text an image. "
                "Repeat an image for each of its texts, or pick one of them an epoch."
            )
        every = Rows(2 * len(texts))
        return BatchRows(every, every, torch.arange(len(texts), device=texts.device).repeat(2))

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """`logits_per_image` over `logits_per_text`: `(2 * pairs, pairs)`, but two columns for a single pair."""
        images, texts = output_field(outputs, "logits_per_image"), output_field(outputs, "logits_per_text")
        if images.dim() != 2 or images.shape != texts.mT.shape or len(images) != len(texts):
            raise HfDistillError(
                f"A model gave logits_per_image of shape {tuple(images.shape)} and logits_per_text of shape "
                f"{tuple(texts.shape)}; expected (pairs, pairs) of both, one text an image."
            )
        both = torch.cat([images, texts])
        # A pair alone has nothing to be told from: an impossible second counterpart makes every loss of it 0.
        return functional.pad(both, (0, 1), value=IMPOSSIBLE) if both.shape[1] == 1 else both

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """The same as the divergence's."""
        return rows.every(logits)


def pairwise_sigmoid(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """SigLIP's loss: binary cross-entropy of a row with each counterpart, 1 for its own, summed, in nats.

    Shapes: logits `(rows, counterparts)`, labels `(rows,)` -> `(rows,)`; label smoothing does not apply. The mean over
    the rows of both directions is the published one.
    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343.
    """
    logits = wide(logits)
    own = labels.unsqueeze(1) == torch.arange(logits.shape[-1], device=logits.device)
    return functional.binary_cross_entropy_with_logits(logits, own.to(logits.dtype), reduction="none").sum(-1)


def scores_by_sigmoid(model: nn.Module) -> bool:
    """Whether a dual encoder scores each pair by itself (SigLIP), which takes a bias, and not by softmax (CLIP)."""
    return any(name == "logit_bias" for name, _ in model.named_parameters())


def text_options(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """How a tokenizer brings texts to one length for a dual encoder, by its arguments' names."""
    if not isinstance(model, PreTrainedModel):
        return {"padding": True, "truncation": True}
    longest = model.config.get_text_config().to_dict().get("max_position_embeddings", tokenizer.model_max_length)
    # SigLIP reads a text at its last place and has learnt it padded to the full length.
    padding = "max_length" if scores_by_sigmoid(model) else "longest"
    return {"padding": padding, "truncation": True, "max_length": min(tokenizer.model_max_length, longest)}


def pair_width(model: nn.Module) -> int | None:
    """The width of a dual encoder's image_embeds and text_embeds; None where no config tells."""
    if not isinstance(model, PreTrainedModel):
        return None
    settings = model.config.to_dict()
    text = settings.get("text_config") or {}
    found = [settings.get("projection_dim"), settings.get("image_text_hidden_size")]
    return next((width for width in (*found, text.get("projection_size"), text.get("hidden_size")) if width), None)
