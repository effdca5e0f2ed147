"""The table of tasks: one row for each kind of head that can be distilled."""

from __future__ import annotations

from hfdistill.losses import bernoulli_kl, cosine_distance, forward_kl, logit_mse
from hfdistill.tasks.embeddings import PooledTokens
from hfdistill.tasks.frames import Frames, Transcripts, transcript_loss
from hfdistill.tasks.label_losses import binary_cross_entropy, cross_entropy, squared_error
from hfdistill.tasks.layouts import Spans, Tokens
from hfdistill.tasks.pairs import EMBEDDING_FIELDS, ImageTextPairs, pairwise_sigmoid
from hfdistill.tasks.pixels import Depths, Pixels, pixel_cross_entropy, squared_depth_error
from hfdistill.tasks.queries import Queries
from hfdistill.tasks.task import Classes, Task
from hfdistill.tasks.two_heads import TwoHeads

CLASSIFIERS = (
    "AutoModelForImageClassification",
    "AutoModelForSequenceClassification",
    "AutoModelForAudioClassification",
    "AutoModelForVideoClassification",
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("single_label_classification", forward_kl, cross_entropy, auto_classes=CLASSIFIERS),
        Task("multi_label_classification", bernoulli_kl, binary_cross_entropy, integer_labels=False),
        Task("regression", logit_mse, squared_error, integer_labels=False, classes=Classes.VALUES),
        # `task_of` finds it by the model's class, and gives it the losses of the kind of problem.
        Task("two_head_classification", forward_kl, cross_entropy, TwoHeads()),
        Task(
            "token_classification",
            forward_kl,
            cross_entropy,
            Tokens(unlabelled_examples=True),
            auto_classes=("AutoModelForTokenClassification",),
        ),
        Task(
            "question_answering",
            forward_kl,
            cross_entropy,
            Spans(),
            label_names=("start_positions", "end_positions"),
            classes=Classes.PLACES,
            auto_classes=("AutoModelForQuestionAnswering", "AutoModelForDocumentQuestionAnswering"),
        ),
        Task(
            "multiple_choice",
            forward_kl,
            cross_entropy,
            classes=Classes.PLACES,
            auto_classes=("AutoModelForMultipleChoice",),
        ),
        Task(
            "next_sentence_prediction",
            forward_kl,
            cross_entropy,
            classes=Classes.PLACES,
            auto_classes=("AutoModelForNextSentencePrediction",),
        ),
        Task(
            "seq2seq_lm",
            forward_kl,
            cross_entropy,
            Tokens(decoder=True),
            classes=Classes.VOCABULARY,
            auto_classes=("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq"),
        ),
        Task(
            "causal_lm",
            forward_kl,
            cross_entropy,
            Tokens(shift=True),
            classes=Classes.VOCABULARY,
            auto_classes=("AutoModelForCausalLM", "AutoModelForImageTextToText"),
        ),
        Task(
            "masked_lm",
            forward_kl,
            cross_entropy,
            Tokens(),
            classes=Classes.VOCABULARY,
            auto_classes=("AutoModelForMaskedLM",),
        ),
        # The student tells whether the classes of these are a softmax with no-object, or sigmoids (`Queries.bound`).
        Task(
            "object_detection",
            forward_kl,
            None,
            Queries(boxes="pred_boxes"),
            integer_labels=False,
            auto_classes=("AutoModelForObjectDetection",),
            predictions=("logits", "pred_boxes"),
        ),
        Task(
            "universal_segmentation",
            forward_kl,
            None,
            Queries(output="class_queries_logits", masks="masks_queries_logits"),
            label_names=("mask_labels", "class_labels"),
            integer_labels=False,
            auto_classes=("AutoModelForUniversalSegmentation", "AutoModelForInstanceSegmentation"),
            predictions=("class_queries_logits", "masks_queries_logits"),
        ),
        Task(
            "instance_segmentation",
            forward_kl,
            None,
            Queries(boxes="pred_boxes", masks="pred_masks"),
            integer_labels=False,
            predictions=("logits", "pred_boxes", "pred_masks"),
        ),
        Task(
            "image_text",
            forward_kl,
            cross_entropy,
            ImageTextPairs(),
            label_names=(),
            classes=Classes.PLACES,
            auto_classes=("AutoModelForZeroShotImageClassification",),
            predictions=EMBEDDING_FIELDS,
        ),
        Task(
            "image_text_sigmoid",
            bernoulli_kl,
            pairwise_sigmoid,
            ImageTextPairs(),
            label_names=(),
            classes=Classes.PLACES,
            predictions=EMBEDDING_FIELDS,
        ),
        # No auto class: an encoder is a part of many heads, so that the user says when its embeddings are meant.
        Task(
            "sentence_embedding",
            cosine_distance,
            None,
            PooledTokens(),
            label_names=(),
            classes=Classes.COORDINATES,
            labelled=False,
            predictions=("logits",),
            unread=("pooler.",),
        ),
        Task(
            "semantic_segmentation",
            forward_kl,
            pixel_cross_entropy,
            Pixels(),
            auto_classes=("AutoModelForSemanticSegmentation",),
            unread=("auxiliary_head.",),
        ),
        Task(
            "depth_estimation",
            logit_mse,
            squared_depth_error,
            Depths(),
            integer_labels=False,
            classes=Classes.VALUES,
            auto_classes=("AutoModelForDepthEstimation",),
            predictions=("predicted_depth",),
        ),
        Task(
            "ctc",
            forward_kl,
            transcript_loss,
            Transcripts(),
            classes=Classes.VOCABULARY,
            auto_classes=("AutoModelForCTC",),
        ),
        Task(
            "audio_frame_classification",
            forward_kl,
            cross_entropy,
            Frames(),
            auto_classes=("AutoModelForAudioFrameClassification",),
        ),
    )
}
