"""Heads over vocabularies: padded to other sizes, in another order, with tokens that one side lacks, and different."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hfdistill import DistillationTrainer, HfDistillError, Logits, Objective, TaskLoss
from hfdistill.tasks import TASKS
from hfdistill.vocabulary import AlignedLogits, TranslatedIds, Vocabulary, VocabularyAlignment, aligned_vocabularies
from tests.tasks import token_models
from tests.trainer.test_trainer import config

WORDS = [f"w{place}" for place in range(20)]


def tokenizer(words: list[str], added: tuple[str, ...] = (), lower: bool = False) -> PreTrainedTokenizerFast:
    """Words by their place in the list, after [UNK] and [PAD]; `added` come last."""
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if not lower else pre_tokenizers.Whitespace()
    ready = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")
    if added:
        ready.add_tokens(list(added), special_tokens=True)
    return ready


FAMILY = ["[UNK]", "[PAD]", *WORDS]


def with_vocabulary(model: PreTrainedModel, size: int, noise: float = 5.0) -> PreTrainedModel:
    """A copy of a Llama whose embeddings and head have rows for so many tokens, new ones at random."""
    other = copy.deepcopy(model)
    kept = min(size, model.config.vocab_size)
    generator = torch.Generator().manual_seed(11)
    for module in (other.model.embed_tokens, other.lm_head):
        rows = noise * torch.randn(size, module.weight.shape[1], generator=generator)
        rows[:kept] = module.weight.detach()[:kept]
        module.weight = torch.nn.Parameter(rows)
    other.lm_head.out_features = other.model.embed_tokens.num_embeddings = other.config.vocab_size = size
    return other


def batch() -> dict[str, torch.Tensor]:
    rows = [
        {key: value.clamp(max=len(FAMILY) - 1) for key, value in row.items()}
        for row in token_models.examples("llama", 4)
    ]
    return token_models.padded(rows)


def trainer(
    student: PreTrainedModel, teacher: PreTrainedModel, folder: Path, objective: Objective | None = None, **kwargs: Any
) -> DistillationTrainer:
    return DistillationTrainer(student, config(folder), teacher_model=teacher, objective=objective, **kwargs)


def kd(made: DistillationTrainer, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The value of the one term that the trainer has."""
    total = made.compute_loss(made.model, dict(inputs))
    assert isinstance(total, torch.Tensor)
    return total


LOSSES = ["forward_kl", "reverse_kl", "jensen_shannon", "logit_mse", "dist", "decoupled_kl"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sizes", [(24, 30), (30, 24)], ids=str)
def test_padded_heads_of_one_family(loss: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    """The 22 tokens of the family are compared, the padding rows of either head are not: a copy is at distance 0."""
    base = token_models.model("llama", seed=1, vocabulary=len(FAMILY))
    student, same = with_vocabulary(base, sizes[0]), with_vocabulary(base, sizes[1])
    words = {"processing_class": tokenizer(FAMILY), "teacher_processing_class": tokenizer(FAMILY)}
    alone = Objective([Logits(loss)])
    made = trainer(student, same, tmp_path, alone, **words)
    assert made.task.compared == len(FAMILY)
    # `dist` normalises, which leaves a rounding error.
    assert kd(made, batch()).abs() <= (1e-6 if loss in ("dist", "jensen_shannon") else 0)

    teacher = token_models.model("llama", seed=2, vocabulary=len(FAMILY))
    value = kd(trainer(student, with_vocabulary(teacher, sizes[1]), tmp_path, alone, **words), batch())
    plain = kd(trainer(base, teacher, tmp_path, alone), batch())
    torch.testing.assert_close(value, plain)
    (gradient,) = torch.autograd.grad(value, student.lm_head.weight)
    assert gradient[: len(FAMILY)].any()
    assert not gradient[len(FAMILY) :].any()


def test_equal_heads_are_left_alone(tmp_path: Path) -> None:
    student, teacher = token_models.model("llama", seed=1), token_models.model("llama", seed=2)
    words = {"processing_class": tokenizer(FAMILY), "teacher_processing_class": tokenizer(FAMILY)}
    made = trainer(student, teacher, tmp_path, **words)
    assert made.tokens == VocabularyAlignment()
    assert made.views.translate is None


def test_the_task_loss_sees_the_whole_head(tmp_path: Path) -> None:
    """Only the divergence leaves out padding: the loss against labels is the head's own."""
    student = with_vocabulary(token_models.model("llama", seed=1, vocabulary=len(FAMILY)), 24)
    teacher = with_vocabulary(student, 30)
    words = {"processing_class": tokenizer(FAMILY), "teacher_processing_class": tokenizer(FAMILY)}
    made = trainer(student, teacher, tmp_path, Objective([TaskLoss(), Logits(weight=0.5)]), **words)
    torch.testing.assert_close(made.compute_loss(made.model, batch()), student(**batch()).loss)


def test_the_same_tokens_in_another_order(tmp_path: Path) -> None:
    """The teacher reads its own ids, and its logits are put in the student's order."""
    student = token_models.model("llama", seed=1, vocabulary=len(FAMILY))
    teacher = token_models.model("llama", seed=2, vocabulary=len(FAMILY))
    order = [0, 1, *range(len(FAMILY) - 1, 1, -1)]
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.model.embed_tokens.weight.copy_(teacher.model.embed_tokens.weight[order])
        other.lm_head.weight.copy_(teacher.lm_head.weight[order])
    words = {"processing_class": tokenizer(FAMILY), "teacher_processing_class": tokenizer([FAMILY[i] for i in order])}
    expected = kd(trainer(student, teacher, tmp_path), batch())
    torch.testing.assert_close(kd(trainer(student, other, tmp_path, **words), batch()), expected)


def test_tokens_that_the_teacher_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They have probability 0 for it, it reads [UNK] in their place, and losses that are then infinite are refused."""
    student = token_models.model("llama", seed=1, vocabulary=len(FAMILY) + 2)
    teacher = token_models.model("llama", seed=2, vocabulary=len(FAMILY))
    ours, theirs = tokenizer(FAMILY, ("<new>", "<call>")), tokenizer(FAMILY)
    words = {"processing_class": ours, "teacher_processing_class": theirs}
    made = trainer(student, teacher, tmp_path, Objective([Logits(temperature=1.0)]), **words)
    assert "the teacher lacks 2 tokens ('<new>', '<call>')" in caplog.text
    inputs = batch()
    inputs["input_ids"][0, 1] = inputs["labels"][0, 1] = len(FAMILY)
    read = inputs["input_ids"].masked_fill(inputs["input_ids"] >= len(FAMILY), 0)
    with torch.no_grad():
        theirs_by_hand = teacher.eval()(read, inputs["attention_mask"]).logits[:, :-1].log_softmax(-1)
        ours_by_hand = student(inputs["input_ids"], inputs["attention_mask"]).logits[:, :-1].log_softmax(-1)
    apart = functional.kl_div(ours_by_hand[..., : len(FAMILY)], theirs_by_hand, log_target=True, reduction="none")
    counted = inputs["labels"][:, 1:] != -100
    torch.testing.assert_close(kd(made, inputs), apart.sum(-1)[counted].mean())
    with pytest.raises(HfDistillError, match=r"infinite for a token that the teacher lacks.*<new>.*skew_kl"):
        trainer(student, teacher, tmp_path, Objective([Logits("reverse_kl")]), **words)


def test_tokens_that_the_student_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student = token_models.model("llama", seed=1, vocabulary=len(FAMILY))
    teacher = token_models.model("llama", seed=2, vocabulary=len(FAMILY) + 1)
    words = {"processing_class": tokenizer(FAMILY), "teacher_processing_class": tokenizer(FAMILY, ("<new>",))}
    value = kd(trainer(student, teacher, tmp_path, **words), batch())
    assert "the student lacks 1 tokens ('<new>')" in caplog.text
    cut = with_vocabulary(teacher, len(FAMILY))
    torch.testing.assert_close(value, kd(trainer(student, cut, tmp_path), batch()))


def alignment(
    ours: PreTrainedTokenizerFast | None, theirs: PreTrainedTokenizerFast | None, sizes: tuple[int, int], **task: str
) -> VocabularyAlignment:
    kind = TASKS[task.get("task", "causal_lm")]
    return aligned_vocabularies(Vocabulary(ours, sizes[0]), Vocabulary(theirs, sizes[1]), kind)


def test_reserved_tokens_may_have_new_names() -> None:
    """As between releases of one family: by its string each is a token that only one side knows."""
    ours, theirs = tokenizer(FAMILY, ("<a>", "<b>")), tokenizer(FAMILY, ("<a>", "<c>"))
    found = alignment(ours, theirs, (24, 24))
    assert found.columns == (*range(23), -1)
    assert found.ids is not None
    assert found.ids[23] == 0  # [UNK], and not <c>
    assert "lacks 1 tokens ('<b>')" in found.notice
    assert "renormalised" in found.notice


def test_rows_between_that_no_tokenizer_knows() -> None:
    """A hole in both vocabularies is the same padding row; one that the teacher has a token for is not."""
    words = {word: place if place < 10 else place + 2 for place, word in enumerate(FAMILY)}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    holed = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")
    assert alignment(holed, holed, (24, 24)) == VocabularyAlignment()
    assert alignment(holed, holed, (24, 30)).columns == tuple(range(24))


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "token_classification", "question_answering"])
def test_different_tokenizers_are_refused(task: str) -> None:
    other = tokenizer(["[UNK]", "[PAD]", *(f"v{place}" for place in range(18)), *WORDS[18:]])
    words = r"agree on 4 of 22 token ids \(id 2 is 'w0' against 'v0'\)"
    remedy = "text that the teacher has generated" if task.endswith("lm") else "a teacher with the student's tokenizer"
    with pytest.raises(HfDistillError, match=f"{words}.*{remedy}"):
        alignment(tokenizer(FAMILY), other, (22, 22), task=task)


def test_one_vocabulary_cut_in_two_ways_is_refused() -> None:
    """A byte-pair vocabulary can begin as another one does, and its longer pieces take the mass of the shorter."""
    with pytest.raises(HfDistillError, match="cut text differently"):
        alignment(tokenizer(FAMILY), tokenizer(FAMILY, lower=True), (22, 22))


def test_without_tokenizers() -> None:
    assert "matched by their ids" in alignment(None, None, (22, 22)).notice
    assert alignment(None, None, (22, 22)).columns is None
    assert alignment(None, None, (22, 22), task="token_classification").notice == ""
    for ours, theirs, who in [(None, None, "student and the teacher"), (tokenizer(FAMILY), None, "teacher")]:
        with pytest.raises(HfDistillError, match=f"22 tokens .* 24, and no tokenizer of the {who} is known"):
            alignment(ours, theirs, (22, 24))


def test_a_tokenizer_beside_a_named_teacher(tmp_path: Path) -> None:
    base = token_models.model("llama", seed=1, vocabulary=len(FAMILY))
    with_vocabulary(base, 24).save_pretrained(tmp_path / "teacher")
    with pytest.raises(HfDistillError, match="no tokenizer of the teacher is known"):
        trainer(base, str(tmp_path / "teacher"), tmp_path, processing_class=tokenizer(FAMILY))
    tokenizer(FAMILY).save_pretrained(tmp_path / "teacher")
    made = trainer(base, str(tmp_path / "teacher"), tmp_path, processing_class=tokenizer(FAMILY))
    assert made.task.compared == len(FAMILY)


def test_tags_of_a_teacher_with_other_tokens_are_refused(tmp_path: Path) -> None:
    student, teacher = token_models.model("bert_tags", seed=1), token_models.model("bert_tags", seed=2)
    other = tokenizer(["[UNK]", "[PAD]", *(word.upper() for word in WORDS)])
    words = {"processing_class": tokenizer(FAMILY), "teacher_processing_class": other}
    with pytest.raises(HfDistillError, match="labels of token_classification are those of one tokenizer's tokens"):
        trainer(student, teacher, tmp_path, **words)
    padded = token_models.model("bert_tags", seed=2, vocabulary=40)
    made = trainer(student, padded, tmp_path, processing_class=other, teacher_processing_class=other)
    assert not made._reads_raw_columns
    assert made.task.compared is None


def test_nothing_is_copied_that_need_not_be() -> None:
    logits = torch.randn(2, 3, 30)
    read = AlignedLogits(lambda outputs, inputs: outputs, tuple(range(22)))
    assert read(logits, {}).data_ptr() == logits.data_ptr()
    assert read(logits, {}).shape == (2, 3, 22)
    lacking = AlignedLogits(lambda outputs, inputs: outputs, (0, -1, 2))
    cut = lacking(logits, {})
    assert cut.data_ptr() == logits.data_ptr()
    assert torch.isneginf(cut[..., 1]).all()
    wider = AlignedLogits(lambda outputs, inputs: outputs, (0, -1, 2, *range(3, 30), -1))(torch.randn(2, 3, 30), {})
    assert wider.shape == (2, 3, 31)
    assert torch.isneginf(wider).sum() == 2 * 3 * 2


def test_ids_are_translated_and_marks_are_not() -> None:
    """An encoder-decoder makes its decoder's inputs of the labels, whose -100 stand for no token."""
    translated = TranslatedIds((2, 0, 1), ("input_ids", "labels"))
    scores = torch.rand(2)
    batch = {"input_ids": torch.tensor([[0, 1, 2]]), "labels": torch.tensor([[-100, 0, 2]]), "scores": scores}
    found = translated(batch)
    assert found["input_ids"].tolist() == [[2, 0, 1]]
    assert found["labels"].tolist() == [[-100, 2, 1]]
    assert found["scores"] is scores
