"""A student of some of its teacher's layers: all layers give the same function, fewer give exactly those."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hfdistill import student_from_teacher
from hfdistill.errors import HfDistillError
from tests import tiny

COUNT = 4
ARCHITECTURES = (
    *("vit", "deit", "bert", "distilbert", "roberta", "modernbert", "llama"),
    *("Beit", "Dinov2", "Electra", "GPT2", "Qwen2", "DebertaV2"),
)
COMMON = {
    "vocab_size": tiny.VOCABULARY,
    "pad_token_id": tiny.PAD,
    "hidden_size": 16,
    "num_hidden_layers": COUNT,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "image_size": tiny.IMAGE_SIZE,
    "patch_size": 8,
    "num_labels": 3,
}
GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": COUNT, "n_positions": 40}


def network(architecture: str, **settings: object) -> PreTrainedModel:
    """Return a teacher with four layers, from the tests' table or by the name of its Transformers class."""
    if architecture in tiny.ARCHITECTURES:
        return tiny.model(architecture, layers=COUNT).eval()
    config_class = getattr(transformers, f"{architecture}Config")
    common = GPT2 if architecture == "GPT2" else {}
    known = {name: value for name, value in COMMON.items() if hasattr(config_class(), name)}
    config = config_class(**(known | common | settings))
    kind = "Image" if architecture in {"Beit", "Dinov2"} else "Sequence"
    torch.manual_seed(0)
    return getattr(transformers, f"{architecture}For{kind}Classification")(config).eval()


def stack_of(teacher: PreTrainedModel) -> str:
    """Return what the architecture calls the list of its layers; Transformers renames some from version to version."""
    lists = [name for name, module in teacher.named_modules() if isinstance(module, nn.ModuleList)]
    return next(name for name in lists if len(teacher.get_submodule(name)) == COUNT)


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Return the model's logits for a fixed batch."""
    batch = tiny.batch("vit" if model.main_input_name == "pixel_values" else "bert")
    del batch["labels"]
    with torch.no_grad():
        return model(**batch).logits


architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


@architectures
def test_all_layers_give_the_teacher_again(architecture: str) -> None:
    """To the bit; and with other weights, or one layer less, the logits do differ."""
    teacher = network(architecture)
    student = student_from_teacher(teacher, layers=COUNT)
    assert torch.equal(logits(student), logits(teacher))
    assert not torch.equal(logits(student_from_teacher(teacher, layers=COUNT - 1)), logits(teacher))
    assert not {tensor.data_ptr() for tensor in student.parameters()} & {t.data_ptr() for t in teacher.parameters()}
    assert all(parameter.requires_grad for parameter in student.parameters())


@architectures
@pytest.mark.parametrize(("layers", "kept"), [(2, [0, 3]), ([0, 2, 3], [0, 2, 3]), (1, [0])])
def test_the_chosen_layers_and_everything_else_are_the_teachers(
    architecture: str, layers: int | list[int], kept: list[int], tmp_path: Path
) -> None:
    """Layer by layer; the config says so too, and what was saved comes back as the same function."""
    teacher = network(architecture)
    if architecture == "modernbert" and layers != 1:
        # Layers 0 and 3 of ModernBERT are global, the others local; copies must not change sides.
        assert teacher.config.layer_types[3] == "full_attention" != teacher.config.layer_types[2]
    student = student_from_teacher(teacher, layers=layers)
    stack = stack_of(teacher)
    assert len(student.get_submodule(stack)) == student.config.num_hidden_layers == len(kept)
    for place, layer in enumerate(kept):
        ours = student.get_submodule(f"{stack}.{place}").state_dict()
        theirs = teacher.get_submodule(f"{stack}.{layer}").state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    outside = [name for name in teacher.state_dict() if not name.startswith(f"{stack}.")]
    assert outside == [name for name in student.state_dict() if not name.startswith(f"{stack}.")]
    assert all(torch.equal(student.state_dict()[name], teacher.state_dict()[name]) for name in outside)
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(student))


@pytest.mark.parametrize("architecture", ["bert", "vit", "llama"])
def test_fewer_layers_compute_what_the_teacher_without_the_others_would(architecture: str) -> None:
    """The same logits as a copy of the teacher from whose list the other layers were taken by hand."""
    teacher = network(architecture)
    teacher.config.use_cache = False  # a cache has one place for each layer of the config
    shortened = copy.deepcopy(teacher)
    outer, _, name = stack_of(teacher).rpartition(".")
    modules = shortened.get_submodule(stack_of(teacher))
    setattr(shortened.get_submodule(outer), name, nn.ModuleList([modules[0], modules[3]]))
    shortened.config.num_hidden_layers = 2
    assert torch.equal(logits(student_from_teacher(teacher, layers=2)), logits(shortened))


@pytest.mark.parametrize(
    ("count", "layers", "kept"),
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),  # DistilBERT
        (12, 4, [0, 4, 7, 11]),
        (12, 2, [0, 11]),
        (6, 3, [0, 3, 5]),
        (12, 1, [0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_layers_are_spread_from_the_first_to_the_last(count: int, layers: int, kept: list[int]) -> None:
    """Twelve to six gives the layers that DistilBERT was made of."""
    from hfdistill.students.layers import chosen_layers

    assert chosen_layers(layers, count) == kept


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "layers=0, but the teacher has 4 layers; expected 1 to 4"),
        (5, "layers=5, but the teacher has 4 layers; expected 1 to 4"),
        ([], "expected at least one index from 0 to 3"),
        ([0, 4], r"layers=\[0, 4\].* from 0 to 3"),
        ([-1], r"layers=\[-1\].* from 0 to 3"),
        ([0.5], r"layers=\[0\.5\].* from 0 to 3"),
        ([0, 1, 1], r"each layer at most once and in the teacher's order: \[0, 1\]"),
        ([2, 0], r"in the teacher's order: \[0, 2\]"),
    ],
)
def test_layers_that_the_teacher_lacks_are_refused(layers: int | list[int], message: str) -> None:
    """Too few, too many, twice, out of order: each with what is expected."""
    with pytest.raises(HfDistillError, match=message):
        student_from_teacher(network("bert"), layers=layers)


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("resnet", {}, "stages of different shapes"),
        ("convnext", {}, "stages of different shapes"),
        ("mobilenet_v2", {}, "no num_hidden_layers"),
        ("Albert", {"embedding_size": 16}, "no list of its modules has one entry for each of the 4 layers"),
    ],
)
def test_models_without_a_stack_of_like_layers_are_refused(
    architecture: str, settings: dict[str, object], reason: str
) -> None:
    """The message says why, what would do, and what to do instead."""
    with pytest.raises(HfDistillError, match=rf"cannot be cut by layers: .*{reason}.*expected .*Give a smaller model"):
        student_from_teacher(network(architecture, **settings), layers=1)


def test_a_wrapped_or_foreign_teacher_is_refused() -> None:
    """A PEFT wrapper or a plain module has no config to cut."""
    with pytest.raises(HfDistillError, match=r"The teacher is a Linear; .*merge_and_unload"):
        student_from_teacher(nn.Linear(2, 2), layers=1)  # type: ignore[type-var]


def test_a_first_layer_that_differs_from_the_others_must_stay_first() -> None:
    """ModernBERT's layer 0 has no norm before its attention, so no other can take its place."""
    with pytest.raises(HfDistillError, match=r"attn_norm.*keep them: layers=\[0, \.\.\.\]"):
        student_from_teacher(network("modernbert"), layers=[1, 2])


def test_a_layer_that_would_compute_something_else_at_its_new_place_is_refused() -> None:
    """GPT-2 can scale attention by the layer's number; the tensors fit, the function would not."""
    teacher = network("GPT2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(HfDistillError, match=r"cannot become layer 1 .*attn\.(layer_idx|scaling) would change"):
        student_from_teacher(teacher, layers=2)


def test_dtype_and_attention_of_the_teacher_are_kept() -> None:
    """A bf16 teacher with eager attention gives such a student, and a norm that was kept in float32 stays so."""
    teacher = network("bert").to(torch.bfloat16)
    teacher.set_attn_implementation("eager")
    teacher.classifier.float()
    student = student_from_teacher(teacher, layers=2)
    assert student.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    assert student.classifier.weight.dtype == torch.float32
    assert student.config._attn_implementation == "eager"


def test_a_teacher_may_be_a_folder_of_any_architecture(tmp_path: Path) -> None:
    """Loaded as what it was saved as: here a bare encoder, which no auto class for classifiers would take."""
    encoder = network("bert").bert
    encoder.save_pretrained(tmp_path)
    student = student_from_teacher(str(tmp_path), layers=[0, 3])
    assert type(student) is type(encoder)
    expected = encoder.encoder.layer[3].output.dense.weight
    assert torch.equal(student.encoder.layer[1].output.dense.weight, expected)


def test_a_folder_without_a_model_or_with_an_unknown_one_is_refused(tmp_path: Path) -> None:
    """No traceback from deep inside: the name, the reason, what was expected."""
    with pytest.raises(HfDistillError, match=r"missing' could not be loaded: .*Expected a Hub id"):
        student_from_teacher(str(tmp_path / "missing"), layers=1)
    config = network("bert").config
    config.architectures = ["NobodysModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(HfDistillError, match="architecture NobodysModel, which Transformers does not have"):
        student_from_teacher(str(tmp_path), layers=1)


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    """Weights that are missing from the files would be copied into the student as noise."""
    model = network("bert")
    model.save_pretrained(tmp_path, state_dict=model.bert.state_dict(prefix="bert."))
    with pytest.raises(HfDistillError, match=r"classifier.*freshly initialised"):
        student_from_teacher(str(tmp_path), layers=1)
