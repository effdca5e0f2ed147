"""`compute_metrics` for Trainer where each example has many labels: tags, tokens, transcripts, pixels, objects.

Trainer gathers what `preprocess_logits_for_metrics` returns. Give it the function beside the metrics here, so that no
logits over a whole vocabulary or over all pixels are kept: decisions of a tagger or of each frame, three sums of a
text, three counts of each class of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import EvalPrediction, ProcessorMixin

from hfdistill.errors import HfDistillError, nearest
from hfdistill.metrics_dense import IGNORED, mean_iou, region_counts
from hfdistill.metrics_detection import mean_average_precision, object_rows
from hfdistill.metrics_generation import ROUGE, TRANSCRIPT_COUNTS, error_rates, rouge_scores, transcript_errors
from hfdistill.metrics_text import entity_counts, perplexity, share
from hfdistill.tasks import TASKS, UNLABELLED
from hfdistill.tasks.matching import corners
from hfdistill.tasks.pixels import resized

LANGUAGE_TASKS = ("causal_lm", "masked_lm", "seq2seq_lm")
SUMS = ("loss_sum", "tokens", "correct")

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]
Preprocess = Callable[[Any, Any], Tensor]


def decisions(logits: Any, labels: Any) -> Tensor:
    """The class with the largest logit: a `preprocess_logits_for_metrics` for taggers and for `ctc_metrics`."""
    decided: Tensor = _first(logits).argmax(-1)
    return decided


def token_classification_metrics(names: Sequence[str]) -> ComputeMetrics:
    """A `compute_metrics` for Trainer: precision, recall and F1 of entities, and the share of right tags.

    `names` are the tags in the order of the classes, such as O, B-PER, I-PER. Tokens labelled -100 do not count. Takes
    `decisions` as well as logits.
    """

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        predictions, labels = np.asarray(_first(evaluated.predictions)), np.asarray(evaluated.label_ids)
        classes = predictions.argmax(-1) if predictions.ndim == labels.ndim + 1 else predictions
        if classes.shape != labels.shape:
            raise HfDistillError(
                f"got predictions of shape {predictions.shape} for labels of shape {labels.shape}, expected a class or "
                "logits for each token; give the student a head for token classification"
            )
        known = labels != UNLABELLED
        largest = int(max(classes[known].max(), labels[known].max())) if known.any() else -1
        if largest >= len(names):
            raise HfDistillError(f"got class {largest} and {len(names)} names, expected a name for each class")
        counts = np.array(
            [
                entity_counts([names[place] for place in given[own]], [names[place] for place in gold[own]])
                for given, gold, own in zip(classes, labels, known, strict=True)
            ]
        )
        right, predicted, gold = counts.sum(axis=0).tolist()
        return {
            "precision": share(right, predicted),
            "recall": share(right, gold),
            "f1": share(2 * right, predicted + gold),
            "accuracy": share(int((classes == labels)[known].sum()), int(known.sum())),
        }

    return compute_metrics


def language_model_sums(task: str) -> Preprocess:
    """A `preprocess_logits_for_metrics` for `language_model_metrics`: summed loss, tokens, right tokens of each text.

    `task` is causal_lm (a token's logits are about the next one), masked_lm or seq2seq_lm.
    """
    if task not in LANGUAGE_TASKS:
        known = ", ".join(LANGUAGE_TASKS)
        raise HfDistillError(f"got the task {task!r}, expected one of {known}{nearest(task, LANGUAGE_TASKS)}")
    row = TASKS[task]

    def preprocess_logits_for_metrics(logits: Any, labels: Any) -> Tensor:
        logits, labels = _first(logits), _first(labels)
        rows = row.rows({"labels": labels})
        assert rows.labelled.index is not None and rows.labels is not None, "tokens are picked, and they have labels"
        loss = row.label_values(logits, rows, 0.0, None)
        right = (rows.labelled(logits.argmax(-1)).squeeze(-1) == rows.labels).to(loss.dtype)
        each = torch.stack([loss, torch.ones_like(loss), right], dim=1)
        sums = torch.zeros(len(labels), len(SUMS), dtype=loss.dtype, device=loss.device)
        return sums.index_add(0, rows.labelled.index // labels.shape[1], each)

    return preprocess_logits_for_metrics


def language_model_metrics() -> ComputeMetrics:
    """A `compute_metrics` for Trainer: perplexity and the share of tokens that were the likeliest.

    It reads what `language_model_sums` leaves, so give that as `preprocess_logits_for_metrics`. The mean loss itself is
    in `eval_loss/task`.
    """

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        sums = np.asarray(evaluated.predictions, dtype=np.float64)
        if sums.ndim != 2 or sums.shape[1] != len(SUMS):
            raise HfDistillError(
                f"got predictions of shape {sums.shape}, expected (texts, {len(SUMS)}); give Trainer "
                "preprocess_logits_for_metrics=language_model_sums(task) beside these metrics"
            )
        loss, tokens, correct = sums.sum(axis=0).tolist()
        if not tokens:
            raise HfDistillError(f"got {len(sums)} texts and no token with a label; evaluate on texts with labels")
        return {"perplexity": perplexity(loss / tokens), "accuracy": correct / tokens}

    return compute_metrics


def generation_metrics(tokenizer: Any, *, stemmer: bool = False) -> ComputeMetrics:
    """A `compute_metrics` for texts that a model has written: ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, each 0 to 1.

    Takes token ids `(texts, tokens)`, padded with -100 or the tokenizer's padding, as `model.generate` and
    Seq2SeqTrainer's `predict_with_generate` give them. Logits are refused: each of these has seen the true tokens
    before it, so that their ROUGE would flatter. After a `DistillationTrainer` has trained:
    `generation_metrics(tokenizer)(EvalPrediction(student.generate(**inputs).cpu().numpy(), labels))`.
    """

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        written, wanted = _ids(evaluated, "student.generate(**inputs)")
        texts = [_decoded(tokenizer, ids, skip_special_tokens=True) for ids in (written, wanted)]
        scores = [rouge_scores(*pair, stemmer=stemmer) for pair in zip(*texts, strict=True)]
        return {name: float(np.mean([each[name] for each in scores])) for name in ROUGE}

    return compute_metrics


def speech_metrics(tokenizer: Any, *, normalized: bool = False) -> ComputeMetrics:
    """A `compute_metrics` for transcripts that a model has written, such as Whisper's: word and character error rate.

    Takes token ids, as `generation_metrics` does. With `normalized` case and punctuation do not count.
    """

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        written, wanted = _ids(evaluated, "student.generate(**inputs)")
        texts = [_decoded(tokenizer, ids, skip_special_tokens=True) for ids in (written, wanted)]
        return _error_rates(texts[0], texts[1], normalized)

    return compute_metrics


def ctc_metrics(processor: Any, *, normalized: bool = False) -> ComputeMetrics:
    """A `compute_metrics` for CTC: word and character error rate of the likeliest token of each frame.

    `processor` is the model's processor or its tokenizer. Takes `decisions` as well as logits. Frames of padding are
    read like the others, which a trained model leaves blank. With `normalized` case and punctuation do not count.
    """
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        frames, labels = np.asarray(_first(evaluated.predictions)), np.asarray(_first(evaluated.label_ids))
        if frames.ndim == 3:  # Trainer fills up shorter batches with -100
            frames = np.where((frames == UNLABELLED).all(axis=-1), UNLABELLED, frames.argmax(axis=-1))
        heard = _decoded(tokenizer, frames)
        # Equal letters in a row are one letter in frames, and two in a transcript.
        return _error_rates(heard, _decoded(tokenizer, labels, group_tokens=False), normalized)

    return compute_metrics


def segmentation_counts(classes: int, ignored: int = IGNORED) -> Preprocess:
    """A `preprocess_logits_for_metrics` for `segmentation_metrics`: of each picture and class, three counts of pixels.

    They are `(pictures, 3, classes)`: intersection and union of the predicted and the true region, and the true region.
    Logits `(pictures, classes, height, width)` are brought to the size of the label map first. A head with one logit
    says yes or no: give it two classes.
    """

    def preprocess_logits_for_metrics(logits: Any, labels: Any) -> Tensor:
        logits, labels = _first(logits), _first(labels)
        logits = resized(logits.float(), labels.shape[-2:])
        decided = (logits > 0).squeeze(1).long() if logits.shape[1] == 1 else logits.argmax(1)
        counts = []
        for given, truth in zip(decided.cpu().numpy(), labels.cpu().numpy(), strict=True):
            region = np.bincount(truth[(truth >= 0) & (truth != ignored)], minlength=classes)
            counts.append(np.stack([*region_counts(given, truth, classes, ignored), region]))
        return torch.from_numpy(np.stack(counts)).to(logits.device)

    return preprocess_logits_for_metrics


def segmentation_metrics(classes: int) -> ComputeMetrics:
    """A `compute_metrics` for Trainer: mean IoU over the classes that occur, and the share of right pixels.

    It reads what `segmentation_counts` leaves, so give that as `preprocess_logits_for_metrics`.
    """

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        counts = np.asarray(evaluated.predictions)
        if counts.ndim != 3 or counts.shape[1:] != (3, classes):
            raise HfDistillError(
                f"got predictions of shape {counts.shape}, expected (pictures, 3, {classes}); give Trainer "
                f"preprocess_logits_for_metrics=segmentation_counts({classes}) beside these metrics"
            )
        intersection, union, region = counts.sum(axis=0)
        if not region.sum():
            raise HfDistillError(f"got {len(counts)} pictures and no pixel with a label; evaluate on labelled ones")
        return {
            "mean_iou": float(mean_iou(intersection, union)),
            "pixel_accuracy": float(intersection.sum() / region.sum()),
        }

    return compute_metrics


def detection_metrics(image_processor: Any) -> ComputeMetrics:
    """A `compute_metrics` for DETR and its kin: COCO's map, map_50 and map_75.

    `image_processor` is the model's: its `post_process_object_detection` knows how the logits are to be read. Boxes are
    compared as shares of their picture, which leaves every overlap as it is in pixels.
    """

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        logits, boxes = (torch.as_tensor(each) for each in evaluated.predictions[:2])
        outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
        seen = image_processor.post_process_object_detection(outputs, threshold=0.0)
        found = [[each[name].numpy() for name in ("labels", "scores", "boxes")] for each in seen]
        classes, there = (np.asarray(each) for each in evaluated.label_ids[:2])
        gold = []
        for kinds, places in zip(classes, corners(torch.as_tensor(there)).numpy(), strict=True):
            real = kinds != UNLABELLED  # a picture with fewer objects is filled up
            gold.append((kinds[real], np.zeros(int(real.sum())), places[real]))
        return mean_average_precision(object_rows([tuple(each) for each in found]), object_rows(gold), len(gold))

    return compute_metrics


def _ids(evaluated: EvalPrediction, remedy: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Token ids of the written and of the wanted texts."""
    written, wanted = np.asarray(_first(evaluated.predictions)), np.asarray(_first(evaluated.label_ids))
    if written.ndim != 2 or not np.issubdtype(written.dtype, np.integer) or len(written) != len(wanted):
        raise HfDistillError(
            f"got predictions of shape {written.shape} and type {written.dtype} for {len(wanted)} texts, expected the "
            f"token ids of a written text for each; give what {remedy} returns"
        )
    return written, wanted


def _decoded(tokenizer: Any, ids: NDArray[Any], **options: Any) -> list[str]:
    """Texts from token ids, in which -100 stands for padding."""
    texts: list[str] = tokenizer.batch_decode(np.where(ids == UNLABELLED, tokenizer.pad_token_id, ids), **options)
    return texts


def _error_rates(heard: Sequence[str], wanted: Sequence[str], normalized: bool) -> dict[str, float]:
    found = [transcript_errors(*pair, normalized=normalized) for pair in zip(heard, wanted, strict=True)]
    return error_rates({name: sum(each[name] for each in found) for name in TRANSCRIPT_COUNTS})


def _first(given: Any) -> Any:
    """The first of several outputs."""
    return given[0] if isinstance(given, (tuple, list)) else given
