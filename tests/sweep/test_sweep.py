"""Every class in the auto mappings of our tasks learns from a teacher, but for those that are known not to.

`known_failures.json` lists these with their reasons, and the classes that cannot be built small from their config
alone. The tests compare the lists with reality both ways: a class that works must not be listed either.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from tests.sweep.mappings import classes
from tests.sweep.one_class import CheckError, NotBuiltError, examine

KNOWN = json.loads((Path(__file__).parent / "known_failures.json").read_text(encoding="utf-8"))
LEAST_SHARE = 0.97
# Well-known ones of every task, some with a peculiarity: batch norm, a mixture of experts, a decoder's shift, labels
# that a model writes over (FSMT) or would take for text (T5Gemma 2), an encoder-decoder that reads pictures.
SAMPLE = {
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForQuestionAnswering",
    "CLIPModel",
    "DetrForObjectDetection",
    "DistilBertForTokenClassification",
    "DPTForDepthEstimation",
    "FSMTForConditionalGeneration",
    "GPT2LMHeadModel",
    "LlamaForSequenceClassification",
    "MixtralForCausalLM",
    "ModernBertForMaskedLM",
    "ResNetForImageClassification",
    "SegformerForSemanticSegmentation",
    "T5ForConditionalGeneration",
    "T5Gemma2ForTokenClassification",
    "VideoMAEForVideoClassification",
    "VisionEncoderDecoderModel",
    "ViTForImageClassification",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForSequenceClassification",
    "WhisperForConditionalGeneration",
}
EVERY = [
    pytest.param(auto_class, name, id=name, marks=() if name in SAMPLE else (pytest.mark.slow,))
    for auto_class, name in classes()
]
listed_version = pytest.mark.skipif(
    transformers.__version__ != KNOWN["transformers"],
    reason=f"the lists are of transformers {KNOWN['transformers']}",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("auto_class", "name"), EVERY)
def test_a_student_of_this_class_learns(auto_class: str, name: str) -> None:
    """Loss, gradients, learning, saving and the cut into micro-batches are right, or the list says what is not."""
    listed = KNOWN["failures"].get(name, "").partition(":")[0] or ("build" if name in KNOWN["not built"] else "nothing")
    found, reason = "nothing", f"{name} works now; take it off the list"
    try:
        examine(auto_class, name)
    except NotBuiltError as error:
        found, reason = "build", str(error)
        if transformers.__version__ != KNOWN["transformers"]:
            pytest.skip(f"the lists are of transformers {KNOWN['transformers']}: {reason}")
    except CheckError as error:
        found, _, reason = str(error).partition(":")
    assert found == listed, reason


@listed_version
def test_listed_classes_exist() -> None:
    """A class that Transformers has dropped is taken off the lists."""
    known = {name for _, name in classes()}
    assert sorted({*KNOWN["failures"], *KNOWN["not built"]} - known) == []
    assert not KNOWN["failures"].keys() & KNOWN["not built"].keys()
    assert known >= SAMPLE


@listed_version
def test_nearly_all_classes_pass() -> None:
    """At least 97 % of those that can be built."""
    built = len(classes()) - len(KNOWN["not built"])
    share = 1 - len(KNOWN["failures"]) / built
    assert share >= LEAST_SHARE, f"{len(KNOWN['failures'])} of {built} classes fail"
