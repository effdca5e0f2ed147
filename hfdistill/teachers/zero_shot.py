"""A teacher that was never trained on the classes: CLIP, SigLIP and their kin, asked by the classes' names."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import BatchEncoding, PreTrainedTokenizerBase

from hfdistill.errors import HfDistillError
from hfdistill.tasks import Classes, Examples, Task, architecture_task
from hfdistill.tasks.label_losses import wide
from hfdistill.tasks.pairs import scores_by_sigmoid, text_options

NO_NAME = re.compile(r"LABEL_\d+", re.IGNORECASE)
TEXTS_AT_ONCE = 256


class ZeroShotTeacher(nn.Module):
    """An image classifier made of a model of images and texts, for a student with a closed set of classes.

    A class is the embedding of its name: put into each of `templates` (one `{}` each), embedded at length 1, averaged,
    brought to length 1 again. The logits of an image are `logit_scale * cosine` to each class, plus SigLIP's bias, in
    nats. `model` is a CLIP, SigLIP or other architecture of AutoModelForZeroShotImageClassification, `processor` its
    processor or its tokenizer alone. `classes` are names, or a mapping from the student's names to the words for a
    template; by default the trainer tells the names of the student's `config.id2label`. Underscores become spaces.

    The names are embedded once; then the modules that read text are let go. They are freed as soon as nobody else holds
    `model`, whose other modules this teacher shares.
    Errors: HfDistillError for another model, templates without `{}`, names such as LABEL_0, and a task other than
    choosing among classes.
    Source: Radford et al. (CLIP), arXiv 2103.00020, for the average over templates.
    """

    class_embeddings: torch.Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        classes: Sequence[str] | Mapping[str, str] | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
    ) -> None:
        super().__init__()
        check_model(model)
        self.model = model
        self.tokenizer, self.image_processor = tokenizer_and_image_processor(processor)
        self.templates = checked_templates(templates)
        self.classes: tuple[str, ...] | None = None
        self.register_buffer("class_embeddings", torch.zeros(0), persistent=False)
        if classes is not None:
            self._learn(classes)

    @property
    def name(self) -> str | None:
        """The Hub id or folder that the model came from, if any."""
        return self.model.config._name_or_path or None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    @property
    def reads_free_sizes(self) -> bool:
        """Whether each image comes with the size that it has in patches (SigLIP 2 of free sizes)."""
        model: Any = self.model
        return "spatial_shapes" in inspect.signature(model.get_image_features).parameters

    def bind(self, student_classes: Sequence[str] | None, task: Task, device: torch.device) -> None:
        """Take the student's names for classes, where none were given, and refuse a task that this cannot teach."""
        if not isinstance(task.layout, Examples) or task.classes is not Classes.NAMED:
            raise HfDistillError(
                f"A ZeroShotTeacher came for {task.name}; expected a student that chooses among classes."
            )
        if not task.integer_labels and not scores_by_sigmoid(self.model):
            raise HfDistillError(
                f"A {type(self.model).__name__} came as ZeroShotTeacher for {task.name}; its softmax gives one class "
                "an image. Expected a model that scores each class by itself, such as SigLIP."
            )
        if self.classes is None:
            if student_classes is None:
                raise HfDistillError(
                    "The student has no config with class names, and a ZeroShotTeacher asks by names; pass "
                    "ZeroShotTeacher(..., classes=[...]) in the student's order."
                )
            self.to(device)
            self._learn(student_classes)

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Logits `(images, classes)` in the order of `classes`; the other arguments are SigLIP 2's of free sizes."""
        if self.classes is None:
            raise HfDistillError("The ZeroShotTeacher has no classes yet; pass classes=, or bind it to a student.")
        sizes = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        given = {name: value for name, value in sizes.items() if value is not None}
        # Every architecture has the two methods (`check_model`), and no common class declares them.
        model: Any = self.model
        images = embedding(model.get_image_features(pixel_values=pixel_values, **given))
        with torch.autocast(images.device.type, enabled=False):
            scale, bias = scale_and_bias(self.model)
            return ImageClassifierOutput(logits=images @ self.class_embeddings.T * scale + bias)

    def _learn(self, classes: Sequence[str] | Mapping[str, str]) -> None:
        """Embed the names, and let go of what reads text."""
        words = dict(classes) if isinstance(classes, Mapping) else {name: name for name in classes}
        names = list(words) if isinstance(classes, Mapping) else list(classes)
        if isinstance(classes, str) or not names or all(NO_NAME.fullmatch(words[name]) for name in names):
            raise HfDistillError(
                f"{classes!r} came as names of classes; expected words that a text encoder understands. Set the "
                "student's id2label and label2id, or pass ZeroShotTeacher(..., classes={'LABEL_0': 'cat', ...})."
            )
        self.class_embeddings = self._embedded([words[name].replace("_", " ") for name in names])
        self.classes = tuple(names)
        self.model = without_text(self.model)

    @torch.no_grad()
    def _embedded(self, words: Sequence[str]) -> torch.Tensor:
        """One embedding a word, `(words, width)`, the mean over the templates."""
        model: Any = self.model.train(False)
        accepted = inspect.signature(model.get_text_features).parameters
        total = torch.zeros(())
        for template in self.templates:
            texts = [template.replace("{}", word) for word in words]
            parts = []
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                tokens = self._tokens(texts[start : start + TEXTS_AT_ONCE])
                own = {key: value.to(self.model.device) for key, value in tokens.items() if key in accepted}
                parts.append(embedding(model.get_text_features(**own)))
            total = torch.cat(parts) + total.to(parts[0].device)
        return normalize(total, dim=-1)

    def _tokens(self, texts: list[str]) -> BatchEncoding:
        options = text_options(self.model, self.tokenizer)
        tokens: BatchEncoding = self.tokenizer(texts, return_tensors="pt", **options)
        return tokens


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that does not embed images and texts into one space."""
    known = isinstance(model, PreTrainedModel) and architecture_task(type(model).__name__) == "image_text"
    methods = {"get_image_features", "get_text_features"} <= set(dir(type(model)))
    if not known or not methods:
        raise HfDistillError(
            f"A {type(model).__name__} came for ZeroShotTeacher; expected a model of images and texts, such as "
            "CLIPModel or SiglipModel (AutoModelForZeroShotImageClassification)."
        )
    scale_and_bias(model)


def scale_and_bias(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """What a cosine is multiplied with to make a logit, and what is added."""
    own = dict(model.named_parameters(recurse=False))
    if "logit_scale" in own:
        scale = wide(own["logit_scale"]).exp()
    elif "temperature" in own:  # ALIGN, TIPS
        scale = 1 / wide(own["temperature"])
    else:
        raise HfDistillError(
            f"A {type(model).__name__} came for ZeroShotTeacher; expected one with a logit_scale, such as CLIPModel."
        )
    return scale, wide(own["logit_bias"]) if "logit_bias" in own else torch.zeros_like(scale)


def tokenizer_and_image_processor(processor: Any) -> tuple[PreTrainedTokenizerBase, BaseImageProcessor | None]:
    """The parts of a processor; a tokenizer alone has no second."""
    if isinstance(processor, PreTrainedTokenizerBase):
        return processor, None
    if not isinstance(processor, ProcessorMixin):
        raise HfDistillError(
            f"A processor of type {type(processor).__name__} came; expected the model's processor (AutoProcessor) or "
            "its tokenizer."
        )
    parts: Any = processor
    return parts.tokenizer, parts.image_processor


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, each with one place for a name."""
    if isinstance(templates, str) or not templates or any(each.count("{}") != 1 for each in templates):
        raise HfDistillError(
            f"templates={templates!r} came; expected texts with one {{}} each, such as ['a photo of a {{}}.']."
        )
    return tuple(templates)


def embedding(features: Any) -> torch.Tensor:
    """Embeddings at length 1, in float32 or wider, from what get_image_features and get_text_features give."""
    # Transformers before 5.0 gave the tensor itself.
    return normalize(wide(features if isinstance(features, torch.Tensor) else features.pooler_output), dim=-1)


def without_text(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, not a copy of its tensors, without the modules that read text."""
    rest = copy.copy(model)
    modules = {name: module for name, module in model.named_children() if not name.startswith("text_")}
    vars(rest)["_modules"] = modules
    return rest
