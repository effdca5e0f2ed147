"""A batch for any tiny model, from its task, its config and what its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hfdistill.tasks import Task
from hfdistill.tasks.frames import FRAME_FOR_FRAME, frame_lengths
from tests.sweep.exceptions import FRAME, NEEDS_PICTURE, PICTURE, TEXT_LENGTH
from tests.sweep.tiny_configs import IMAGE, LABELS

# Tensors with a row for each example, or lists with an entry for each.
Batch = dict[str, Any]
ROWS = 4
LENGTH = 12
ANSWER = 6
CHOICES = 2
# Special tokens lie below and above these.
FIRST_TOKEN, LAST_TOKEN = 8, 48
WAVE = 2400


class Maker:
    """Draws the tensors of one batch; equal seeds give equal batches."""

    def __init__(self, model: PreTrainedModel, task: Task, auto_class: str, seed: int = 0) -> None:
        self.model = model
        self.config = model.config
        parameters = inspect.signature(model.forward).parameters
        self.names = set(parameters)
        required = "pixel_values" in parameters and parameters["pixel_values"].default is inspect.Parameter.empty
        self.needs_picture = required or model.config.model_type in NEEDS_PICTURE
        self.main = model.main_input_name
        self.task = task
        self.auto_class = auto_class
        self.generator = torch.Generator().manual_seed(seed)
        self.length = TEXT_LENGTH.get(model.config.model_type, LENGTH)

    def batch(self) -> Batch:
        """Inputs and labels."""
        inputs = self.inputs()
        return inputs | self.labels(inputs)

    # ---- inputs --------------------------------------------------------------------------------------------------

    def inputs(self) -> Batch:
        """What both models read."""
        if "ZeroShot" in self.auto_class:
            return self.texts() | (self.videos() if "pixel_values_videos" in self.names else self.pictures())
        seen = ("ImageClassification", "Segmentation", "Depth", "ObjectDetection")
        if any(word in self.auto_class for word in seen) and "pixel_values" in self.names:
            return self.pictures()
        if any(word in self.auto_class for word in seen) and "pixel_values_videos" in self.names:
            return self.videos()
        if "Video" in self.auto_class:
            return self.videos()
        heard = self.main in {"input_features", "input_values"} and "decoder_input_ids" in self.names
        spoken = "Speech" in self.auto_class and "input_ids" not in self.names
        if "Audio" in self.auto_class or "CTC" in self.auto_class or heard or spoken:
            return self.sounds()
        if "decoder_input_ids" in self.names and "input_ids" not in self.names:
            return self.pictures()
        return self.texts()

    def texts(self) -> Batch:
        """Texts of different lengths, padded on the right."""
        choices = (CHOICES,) if self.task.name == "multiple_choice" else ()
        shape = (ROWS, *choices, self.length)
        # Transformers' answers may lie on padding, ours may not: without any, the two losses are one.
        shortest = self.length if self.task.name == "question_answering" else self.length // 2
        lengths = self.numbers(shortest, self.length + 1, (*shape[:-1], 1))
        attended = torch.arange(self.length).expand(shape) < lengths
        tokens = self.numbers(FIRST_TOKEN, LAST_TOKEN, shape)
        end = one_of(setting(self.config, "eos_token_id"))
        if isinstance(end, int):
            tokens = tokens.scatter(-1, lengths - 1, end)
        queries, image = setting(self.config, "num_query_tokens"), setting(self.config, "image_token_index")
        if self.needs_picture and queries and image:
            tokens[:, :queries] = image
        pad = one_of(setting(self.config, "pad_token_id"))
        inputs = {"input_ids": tokens.masked_fill(~attended, pad if isinstance(pad, int) else 0)}
        if "input_ids" not in self.names:
            inputs = {self.main: inputs["input_ids"]}
        if "attention_mask" in self.names:
            inputs["attention_mask"] = attended.long()
        return inputs | self.beside_text(shape)

    def beside_text(self, shape: tuple[int, ...]) -> Batch:
        """What some readers of text ask for besides: boxes of words, a picture, regions of one."""
        extra: Batch = {}
        if "bbox" in self.names:
            corners = self.numbers(0, 20, (*shape, 4)).sort(dim=-1).values
            extra["bbox"] = corners / 20 if self.config.model_type == "udop" else corners
        if "global_attention_mask" in self.names:
            extra["global_attention_mask"] = torch.zeros(shape, dtype=torch.long)
            extra["global_attention_mask"][..., 0] = 1
        if "visual_feats" in self.names:
            regions = self.numbers(0, 2, (ROWS, 5, self.config.visual_feat_dim)).float()
            places = torch.rand(ROWS, 5, self.config.visual_pos_dim, generator=self.generator)
            extra |= {"visual_feats": regions, "visual_pos": places}
        document = "DocumentQuestion" in self.auto_class and "pixel_values" in self.names
        if "qformer_input_ids" in self.names:
            extra["qformer_input_ids"] = self.numbers(FIRST_TOKEN, LAST_TOKEN, shape)
        if document or ("ImageTextToText" in self.auto_class and self.needs_picture):
            extra |= self.pictures()
        return extra

    def pictures(self) -> Batch:
        """Pictures of the size that the config names."""
        channels = setting(self.config, "num_channels", "in_channels", "in_chans") or 3
        side = PICTURE.get(self.config.model_type)
        height, width = (side, side) if side else size(self.config)
        if "task_inputs" in self.names:
            named = {"task_inputs": self.numbers(FIRST_TOKEN, LAST_TOKEN, (ROWS, self.config.task_seq_len))}
            return {"pixel_values": self.normal(ROWS, first(channels), height, width)} | named
        if self.main == "flattened_patches":
            patches = self.normal(ROWS, LENGTH, 2 + setting(self.config, "patch_embed_hidden_size"))
            patches[..., :2] = self.numbers(0, 4, (ROWS, LENGTH, 2)).float()
            return {self.main: patches}
        if "spatial_shapes" in self.names:
            return self.patches(first(channels))
        name = "pixel_values" if "pixel_values" in self.names else self.main
        if name == "input_ids":  # ImageGPT reads colours as tokens
            return {name: self.numbers(0, int(self.config.vocab_size), (ROWS, self.length))}
        return {name: self.normal(ROWS, first(channels), height, width)}

    def patches(self, channels: int) -> Batch:
        """Pictures cut into patches, each with its own height and width in patches."""
        side = setting(self.config, "patch_size")
        shapes = torch.tensor([[2, 2], [2, 1], [1, 2], [2, 2]])
        mask = torch.arange(4) < shapes.prod(-1, keepdim=True)
        return {
            "pixel_values": self.normal(ROWS, 4, channels * side * side),
            "pixel_attention_mask": mask.long(),
            "spatial_shapes": shapes,
        }

    def videos(self) -> Batch:
        """Clips, frames before channels."""
        frames = setting(self.config, "num_frames", "frames_per_clip") or 4
        name = "pixel_values_videos" if "pixel_values_videos" in self.names else "pixel_values"
        return {name: self.normal(ROWS, first(frames), 3, *size(self.config))}

    def sounds(self) -> Batch:
        """A wave, or the spectrogram that the config describes."""
        name = self.main if self.main in self.names and self.main != "inputs" else "input_values"
        mels = FRAME.get(self.config.model_type) or setting(
            self.config, "feature_projection_input_dim", "num_mel_bins", "input_feat_per_channel"
        )
        if name == "input_values" and not isinstance(setting(self.config, "max_length"), int):
            return {name: self.normal(ROWS, WAVE)}
        if name == "input_values":
            sound = {name: self.normal(ROWS, setting(self.config, "max_length"), mels)}
        elif setting(self.config, "max_source_positions") and setting(self.config, "num_mel_bins"):
            sound = {name: self.normal(ROWS, mels, 2 * setting(self.config, "max_source_positions"))}
        else:
            sound = {name: self.normal(ROWS, 4 * LENGTH, mels or setting(self.config, "hidden_size"))}
        return sound

    # ---- labels --------------------------------------------------------------------------------------------------

    def labels(self, inputs: Batch) -> Batch:
        """Labels as the task has them."""
        makers: dict[str, Callable[[Batch], Batch]] = {
            "question_answering": self.spans,
            "token_classification": self.tags,
            "masked_lm": self.gaps,
            "causal_lm": self.followers,
            "seq2seq_lm": self.answers,
            "semantic_segmentation": self.maps,
            "depth_estimation": self.depths,
            "object_detection": self.objects,
            "universal_segmentation": self.masks,
            "instance_segmentation": self.masked_objects,
            "ctc": self.transcripts,
            "audio_frame_classification": self.frames,
            "image_text": lambda inputs: {},
            "image_text_sigmoid": lambda inputs: {},
        }
        if self.task.name in makers:
            return makers[self.task.name](inputs)
        classes = CHOICES if self.task.classes.name == "PLACES" else LABELS
        return {"labels": self.numbers(0, classes, (ROWS,))}

    def spans(self, inputs: Batch) -> Batch:
        """Where an answer starts and ends, on no padding."""
        return {name: self.numbers(0, self.length // 2, (ROWS,)) for name in self.task.label_names}

    def tags(self, inputs: Batch) -> Batch:
        """A class for each token that is no padding."""
        tokens = inputs.get("input_ids", next(iter(inputs.values())))
        classes = self.numbers(0, LABELS, tuple(tokens.shape[:2]))
        return {"labels": self.unpadded(inputs, classes)}

    def gaps(self, inputs: Batch) -> Batch:
        """Three tokens of each text."""
        tokens = inputs.get("input_ids", next(iter(inputs.values())))
        chosen = torch.arange(tokens.shape[1]).expand_as(tokens) % 2 == 1
        return {
            "labels": self.unpadded(inputs, self.numbers(FIRST_TOKEN, LAST_TOKEN, tokens.shape)).where(chosen, -100)
        }

    def followers(self, inputs: Batch) -> Batch:
        """The text itself."""
        return {"labels": self.unpadded(inputs, inputs["input_ids"])}

    def answers(self, inputs: Batch) -> Batch:
        """Texts of another length than the input's, the last tokens of some padded."""
        tokens = self.numbers(FIRST_TOKEN, LAST_TOKEN, (ROWS, ANSWER))
        lengths = self.numbers(ANSWER // 2, ANSWER + 1, (ROWS, 1))
        return {"labels": tokens.where(torch.arange(ANSWER) < lengths, -100)}

    def maps(self, inputs: Batch) -> Batch:
        """A class for each pixel, but for some."""
        labels = self.numbers(0, LABELS, (ROWS, *next(iter(inputs.values())).shape[-2:]))
        labels[:, :5] = 255
        return {"labels": labels}

    def depths(self, inputs: Batch) -> Batch:
        """A depth for each pixel."""
        shape = (ROWS, *next(iter(inputs.values())).shape[-2:])
        return {"labels": torch.rand(shape, generator=self.generator).add(0.5)}

    def objects(self, inputs: Batch) -> Batch:
        """An object in each picture."""
        boxes = 0.2 + 0.3 * torch.rand(ROWS, 1, 4, generator=self.generator)
        classes = self.numbers(0, LABELS, (ROWS, 1))
        return {"labels": [{"class_labels": classes[place], "boxes": boxes[place]} for place in range(ROWS)]}

    def masks(self, inputs: Batch) -> Batch:
        """Two objects in each picture, as masks."""
        masks = self.numbers(0, 2, (ROWS, 2, *next(iter(inputs.values())).shape[-2:])).float()
        return {"mask_labels": list(masks), "class_labels": list(self.numbers(0, LABELS, (ROWS, 2)))}

    def masked_objects(self, inputs: Batch) -> Batch:
        """An object in each picture, as a box and a mask."""
        masks = self.numbers(0, 2, (ROWS, 1, *next(iter(inputs.values())).shape[-2:])).float()
        labels = self.objects(inputs)["labels"]
        return {"labels": [each | {"masks": mask} for each, mask in zip(labels, masks, strict=True)]}

    def transcripts(self, inputs: Batch) -> Batch:
        """A few tokens for each sound."""
        last = min(LAST_TOKEN, setting(self.config, "vocab_size"))
        return {"labels": self.numbers(FIRST_TOKEN, last, (ROWS, 3))}

    def frames(self, inputs: Batch) -> Batch:
        """A class for each frame."""
        sounds = next(iter(inputs.values()))
        frames = int(frame_lengths(self.model)(torch.tensor(sounds.shape[1])))
        if self.model.config.model_type in FRAME_FOR_FRAME:
            return {"labels": self.numbers(0, 2, (ROWS, frames, setting(self.config, "num_speakers"))).float()}
        return {"labels": self.numbers(0, LABELS, (ROWS, frames))}

    def unpadded(self, inputs: Batch, labels: torch.Tensor) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        return labels if mask is None else labels.where(mask.bool(), -100)

    # ---- numbers -------------------------------------------------------------------------------------------------

    def numbers(self, low: int, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(low, high, tuple(shape), generator=self.generator)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)


def setting(config: PreTrainedConfig, *names: str) -> Any:
    """The first of some settings that a config has, or one of its nested configs."""
    nested = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    for part in (config, *nested):
        for name in names:
            kept = part.attribute_map.get(name, name)
            if vars(part).get(kept) is not None:
                return vars(part)[kept]
    return None


def size(config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width of a picture."""
    found = setting(config, "image_size", "img_size", "crop_size", "train_size", "input_size")
    if isinstance(found, (list, tuple)):
        return (found[0], found[-1])
    return (found, found) if isinstance(found, int) else (IMAGE, IMAGE)


def first(value: Any) -> int:
    """A number, or the first of several."""
    return int(value[0] if isinstance(value, (list, tuple)) else value)


def one_of(value: Any) -> Any:
    """A token, or the first of several."""
    return value[0] if isinstance(value, (list, tuple)) else value


def cut(batch: Batch, row: int) -> Batch:
    """One row of a batch, as a batch."""
    return {name: value[row : row + 1] for name, value in batch.items()}
