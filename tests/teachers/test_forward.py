"""How a teacher's forward is run changes what it costs, and not what the student learns."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hfdistill import (
    Attentions,
    DistillationTrainer,
    EmaTeacher,
    EnsembleTeacher,
    HfDistillError,
    Logits,
    Objective,
    OwnBase,
    Peer,
    TaskLoss,
)
from hfdistill.features import HiddenStates, Module
from hfdistill.sight import Seen as SeenInside
from hfdistill.teachers import LiveTeacher, Targets
from hfdistill.teachers.crossing import brought_back
from hfdistill.teachers.portions import Portions
from tests import by_sgd, tiny, tiny_pairs
from tests.tasks import trajectory as of_tokens
from tests.trainer.trajectory import assert_same, examples, models

SINGLE = "single_label_classification"

Seen = dict[str, torch.Tensor]


def trained(
    architecture: str, folder: Path, *, teacher: Any = None, objective: Objective | None = None, **arguments: Any
) -> tuple[DistillationTrainer, Seen]:
    """Three optimizer steps of eight examples by SGD, and all that they leave."""
    student, made = models(architecture, SINGLE)
    trainer = DistillationTrainer(
        student,
        by_sgd.arguments(folder, alpha=0.6, temperature=3.0, **arguments),
        teacher_model=made if teacher is None else teacher,
        objective=objective,
        train_dataset=examples(architecture, SINGLE, unlabelled=objective is None),
    )
    trainer.train()
    return trainer, by_sgd.seen_in(trainer)


def live(trainer: DistillationTrainer) -> LiveTeacher:
    """The teacher of a training."""
    assert isinstance(trainer.teacher, LiveTeacher)
    return trainer.teacher


class Small(nn.Module):
    """A teacher on a device that holds `most` rows at a time; `asked` are the rows of each forward."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model = model
        self.most = most
        self.asked: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.asked.append(len(input_ids))
        if len(input_ids) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


# ---- fewer rows at a time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_targets_of_portions_are_those_of_the_whole_batch(architecture: str) -> None:
    teacher = tiny.model(architecture, seed=2)
    inputs = {key: value for key, value in tiny.batch(architecture, 7).items() if key != "labels"}
    whole = LiveTeacher(teacher)(inputs)
    torch.testing.assert_close(LiveTeacher(teacher, portions=Portions(3))(inputs).logits, whole.logits)


@pytest.mark.parametrize("head", ["bert_spans", "bert_choices", "llama", "t5"])
def test_heads_over_tokens_learn_the_same_from_portions(head: str, tmp_path: Path) -> None:
    _, whole = of_tokens.trained(head, tmp_path)
    trainer, split = of_tokens.trained(head, tmp_path, teacher_batch_size=3)
    assert live(trainer).portions.size == 3
    assert_same(whole, split)


def test_what_a_teacher_shows_of_its_insides_is_put_together(tmp_path: Path) -> None:
    def objective() -> Objective:
        layer = "bert.encoder.layer.0.output"
        return Objective([TaskLoss(0.5), HiddenStates(layers={1: 2}), Module(layer), Attentions("attention_map_kl")])

    _, whole = trained("bert", tmp_path, objective=objective())
    _, split = trained("bert", tmp_path, objective=objective(), teacher_batch_size=3)
    assert_same(whole, split)


def test_members_of_an_ensemble_read_portions_too(tmp_path: Path) -> None:
    def members() -> EnsembleTeacher:
        return EnsembleTeacher([Small(tiny.model("bert", seed=seed), most=3) for seed in (2, 3)])

    given = members()
    _, split = trained("bert", tmp_path, teacher=given, teacher_batch_size=3)
    assert all(max(member.asked) == 3 for member in given.members if isinstance(member, Small))
    _, whole = trained("bert", tmp_path, teacher=EnsembleTeacher([tiny.model("bert", seed=seed) for seed in (2, 3)]))
    assert_same(whole, split)


def test_a_forward_without_memory_is_tried_with_half_of_the_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, whole = trained("bert", tmp_path)
    teacher = Small(models("bert", SINGLE)[1], most=3)
    trainer, split = trained("bert", tmp_path, teacher=teacher)
    assert_same(whole, split)
    assert teacher.asked == [8, 4, 2, 2, 2, 2, *[2] * 8]
    assert live(trainer).portions.size == 2
    assert [record.args[0] for record in caplog.records if "ran out of memory" in record.message] == [4, 2]


def test_a_single_row_that_is_too_much_stops(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained("bert", tmp_path, teacher=Small(models("bert", SINGLE)[1], most=0))


def test_pairs_are_compared_with_all_others_of_their_batch(tmp_path: Path) -> None:
    def trainer(**arguments: Any) -> DistillationTrainer:
        return DistillationTrainer(
            tiny_pairs.model("clip"),
            by_sgd.arguments(tmp_path, **arguments),
            teacher_model=tiny_pairs.model("clip", seed=2),
            train_dataset=tiny_pairs.pairs(8),
        )

    with pytest.raises(HfDistillError, match=r"teacher_batch_size=4 .* image_text, .* all texts of the batch"):
        trainer(teacher_batch_size=4)
    assert not live(trainer()).portions.halves


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 3, 8])}, r"'cu_seq_lens_q' of shape \(3,\) .* 4 examples"),
        ({"sizes": [1, 2]}, r"'sizes' with 2 entries"),
    ],
)
def test_inputs_without_a_row_for_each_example_are_refused(inputs: dict[str, Any], message: str) -> None:
    rows = {"input_ids": torch.zeros(4, 2, dtype=torch.long), **inputs}
    teacher = LiveTeacher(Small(nn.Identity(), 4), portions=Portions(2))
    with pytest.raises(HfDistillError, match=message):
        teacher(rows)


def test_outputs_without_a_row_for_each_example_are_refused() -> None:
    class Mean(nn.Module):
        def forward(self, features: torch.Tensor) -> Any:
            return SimpleNamespace(logits=features.mean(0, keepdim=True))

    with pytest.raises(HfDistillError, match=r"gives 'logits' of shape \(1, 3\) for 2 examples"):
        LiveTeacher(Mean(), portions=Portions(2))({"features": torch.zeros(4, 3)})


def test_attention_scores_are_of_a_whole_batch(tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match="a term compares attention scores"):
        trained("bert", tmp_path, objective=Objective([Attentions("attention_score_mse")]), teacher_batch_size=3)


# ---- a dtype and an attention of its own -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["vit", "bert", "resnet", "llama"])
def test_a_bfloat16_copy_teaches_almost_the_same(architecture: str, tmp_path: Path) -> None:
    _, exact = trained(architecture, tmp_path)
    given = models(architecture, SINGLE)[1]
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    trainer, rounded = trained(architecture, tmp_path, teacher=given, teacher_dtype="bfloat16")
    assert {each.dtype for each in live(trainer).model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())
    assert {each.dtype for each in given.parameters()} == {torch.float32}
    assert any(not torch.equal(value, exact[name]) for name, value in rounded.items())
    for name, value in rounded.items():
        # Eight bits of a mantissa in the teacher's logits, and no more than that in anything they reach.
        torch.testing.assert_close(value, exact[name], rtol=0.03, atol=0.03)


def test_losses_see_float32_whatever_the_teacher_computes_in(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    def distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        seen.append(student.dtype)
        return (student - teacher.float()).square().mean(-1)

    terms = Objective([Logits(distance), HiddenStates("hint"), Attentions("attention_map_kl")])
    trainer, _ = trained("bert", tmp_path, objective=terms, teacher_dtype="bfloat16")
    assert set(seen) == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_a_teacher_keeps_its_dtype_beside_a_student_in_mixed_precision(tmp_path: Path) -> None:
    """Accelerate would run it in bfloat16 with the student."""
    inputs = {key: value for key, value in tiny.batch("bert", 4).items() if key != "labels"}
    exact = LiveTeacher(models("bert", SINGLE)[1])(inputs).logits
    own, _ = trained("bert", tmp_path, bf16=True, teacher_dtype="float32")
    assert torch.equal(live(own)(inputs).logits, exact)
    mixed, _ = trained("bert", tmp_path, bf16=True)
    assert not torch.equal(live(mixed)(inputs).logits, exact)


def test_a_copy_shares_what_needs_no_other_dtype(tmp_path: Path) -> None:
    """And what is not saved with a model, the frequencies of its rotary embeddings, stays in float32."""
    given = tiny.model("llama", seed=2)
    trainer, _ = trained("llama", tmp_path, teacher=given, teacher_attn_implementation="eager")
    copy: Any = live(trainer).model
    assert all(one is other for one, other in zip(given.parameters(), copy.parameters(), strict=True))
    assert (given.config._attn_implementation, copy.config._attn_implementation) == ("sdpa", "eager")
    rounded, _ = trained("llama", tmp_path, teacher=given, teacher_dtype="bfloat16")
    buffers = dict(live(rounded).model.named_buffers())
    assert {buffers[name].dtype for name in buffers if "inv_freq" in name} == {torch.float32}


def test_an_attention_of_its_own_teaches_the_same(tmp_path: Path) -> None:
    _, sdpa = trained("bert", tmp_path)
    _, eager = trained("bert", tmp_path, teacher_attn_implementation="eager")
    assert_same(sdpa, eager)


def test_a_teacher_by_name_is_loaded_so(tmp_path: Path) -> None:
    folder = str(tmp_path / "teacher")
    models("bert", SINGLE)[1].save_pretrained(folder)
    asked: dict[str, Any] = {"teacher_dtype": "bfloat16", "teacher_attn_implementation": "eager"}
    trainer, named = trained("bert", tmp_path, teacher=folder, **asked)
    config: Any = live(trainer).model.config
    assert (config._attn_implementation, config.dtype) == ("eager", torch.bfloat16)
    _, given = trained("bert", tmp_path, **asked)
    assert_same(given, named)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_dtype": "bf16"}, r"teacher_dtype is 'bf16'; did you mean 'bfloat16'"),
        ({"teacher_dtype": "float16"}, r"float16.* for a CPU"),
        ({"teacher_batch_size": 0}, r"teacher_batch_size is 0; expected at least 1"),
        ({"teacher_device": "gpu"}, r"teacher_device is 'gpu'; expected a device such as cpu or cuda:1"),
        ({"teacher_device": "cuda:77"}, r"'cuda:77' came, and there are \d+ CUDA devices"),
        ({"teacher_device": "cpu", "teacher_sharded": True}, r"teacher_device came beside teacher_sharded"),
        ({"teacher_attn_implementation": "nonsense"}, r"BertFor\w+ cannot be run with it. Specified `attn_impl"),
        ({"channels_last": True}, r"BertFor\w+ and BertFor\w+ has no convolution"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=message):
        trained("bert", tmp_path, **arguments)


def test_two_words_for_one_thing_are_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "teacher")
    models("bert", SINGLE)[1].save_pretrained(folder)
    both: dict[str, Any] = {"teacher_model_init_kwargs": {"dtype": "float32"}, "teacher_dtype": "bfloat16"}
    with pytest.raises(HfDistillError, match=r"teacher_dtype='bfloat16' .* dtype 'float32'; expected one of them"):
        trained("bert", tmp_path, teacher=folder, **both)


@pytest.mark.parametrize(
    "given", [EmaTeacher(), OwnBase(), Peer(nn.Linear(2, 2))], ids=lambda given: type(given).__name__
)
def test_a_teacher_that_runs_as_the_student_has_no_forward_of_its_own(given: Any, tmp_path: Path) -> None:
    with pytest.raises(HfDistillError, match=f"teacher_dtype came beside {type(given).__name__}"):
        trained("bert", tmp_path, teacher=given, teacher_dtype="bfloat16")


# ---- elsewhere ---------------------------------------------------------------------------------------------------


def test_an_offloaded_teacher_stays_where_it_is(tmp_path: Path) -> None:
    """Each of its parts comes from the disk when it is needed."""
    folder = str(tmp_path / "teacher")
    models("bert", SINGLE)[1].save_pretrained(folder)
    _, here = trained("bert", tmp_path)
    parts, whole = {"bert": "disk", "classifier": "cpu"}, {"": "disk"}
    # Accelerate 1.7 loads no model that is on the disk as a whole; 1.15 does.
    new = tuple(int(part) for part in version("accelerate").split(".")[:2]) >= (1, 15)
    for places in (whole, parts) if new else (parts,):
        options = {"device_map": places, "offload_folder": str(tmp_path / "offloaded")}
        trainer, there = trained("bert", tmp_path, teacher=folder, teacher_model_init_kwargs=options)
        assert {parameter.device.type for parameter in live(trainer).model.bert.parameters()} == {"meta"}
        assert_same(here, there)
    offloaded = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    with pytest.raises(HfDistillError, match=r"quantised or offloaded .* teacher_dtype='bfloat16'"):
        trained("bert", tmp_path, teacher=offloaded, teacher_dtype="bfloat16")
    with pytest.raises(HfDistillError, match=r"teacher_device came for a teacher .* device_map"):
        trained("bert", tmp_path, teacher=offloaded, teacher_device="cpu")


def test_inputs_go_to_the_teachers_device_and_targets_come_back() -> None:
    """Of a device without values, which stands for any other."""

    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2, dtype=torch.bfloat16, device="meta")
            self.seen: list[tuple[str, torch.dtype]] = []

        def forward(self, features: torch.Tensor, places: torch.Tensor) -> Any:
            self.seen += [(each.device.type, each.dtype) for each in (features, places)]
            return SimpleNamespace(logits=torch.zeros(4, 2))

    model = Elsewhere()
    inputs = {"features": torch.zeros(4, 3), "places": torch.zeros(4, dtype=torch.long)}
    LiveTeacher(model)(inputs)
    assert model.seen == [("meta", torch.bfloat16), ("meta", torch.long)]
    assert inputs["features"].dtype == torch.float32
    shown = SeenInside({}, {"hidden_states": (torch.ones(4, 3),), "logits": None}, {"layer": torch.ones(4, 3)})
    targets = Targets(torch.ones(4, 2), {"pred_boxes": torch.ones(4, 1, 4)}, shown)
    back = brought_back(targets, inputs, torch.device("meta"))
    assert back.seen is not None and back.seen.inputs is inputs
    everything = [back.logits, *back.fields.values(), *back.seen.outputs["hidden_states"], *back.seen.modules.values()]
    assert [each.device.type for each in everything] == ["meta"] * 4


def test_a_device_may_be_named(tmp_path: Path) -> None:
    _, plain = trained("vit", tmp_path)
    _, named = trained("vit", tmp_path, teacher_device="cpu")
    assert_same(plain, named)
