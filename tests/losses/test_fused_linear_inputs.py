"""The fused head's other inputs: the top k of a teacher, narrow dtypes, heads in pieces, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch._dynamo.exc import InternalTorchDynamoError
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.functional import cross_entropy

from hfdistill.losses import (
    _fused_compiled,
    _fused_products,
    forward_kl,
    jensen_shannon,
    logit_mse,
    reverse_kl,
    skew_kl,
    top_k_kl,
)
from hfdistill.losses._fused_blocks import NoScratch, RowBlock, Student
from hfdistill.losses._fused_sweep import sweep
from hfdistill.losses.fused_linear import Columns, Divergence, Head, Taught, TopK, fused_linear

ROWS, CLASSES, WIDTH, TEACHER_WIDTH = 6, 12, 5, 4
LABELS = torch.tensor([3, 0, -100, 11, 7, 1])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def student(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return random(ROWS, WIDTH, dtype=dtype).requires_grad_(), random(
        CLASSES, WIDTH, seed=1, dtype=dtype
    ).requires_grad_()


def teacher(dtype: torch.dtype = torch.float64) -> Taught:
    return Taught(
        random(ROWS, TEACHER_WIDTH, seed=2, dtype=dtype), Head(random(CLASSES, TEACHER_WIDTH, seed=3, dtype=dtype))
    )


@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "alone"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("k", "compared"), [(3, CLASSES), (CLASSES, CLASSES), (3, 9), (9, 9)])
def test_the_top_k_of_a_teacher(k: int, compared: int, temperature: float, labels: Tensor | None) -> None:
    hidden, weight = student()
    kept, indices = (random(ROWS, compared, seed=4) / temperature).softmax(-1).topk(k)
    found = fused_linear(
        hidden,
        Head(weight, scale=2.0),
        labels=labels,
        teacher=TopK(indices.int(), kept.log(), compared),
        divergence=Divergence("top_k_kl", temperature),
        divergence_weight=0.3,
        chunk_bytes=2 * CLASSES * 8,
    )
    logits = 2.0 * hidden @ weight.T
    values = top_k_kl(logits[:, :compared], kept, indices=indices, temperature=temperature)
    total = 0.3 * values.sum() + (0.0 if labels is None else cross_entropy(logits, LABELS, reduction="sum"))
    torch.testing.assert_close(found.divergence, values.detach())
    for ours, plain in zip(
        torch.autograd.grad(found.total, (hidden, weight)), torch.autograd.grad(total, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(
    ("indices", "kept"),
    [
        ([3, 5, 0, 0], [0.5, 0.2, 0.0, 0.0]),  # a short row, filled up
        ([0, 3, 0, 5], [0.0, 0.5, 0.2, 0.1]),  # the filler stands before the class it repeats
        ([3, 5, 1, 2], [0.7, 0.3, 0.05, 0.01]),  # more than 1, by rounding
    ],
)
def test_kept_rows_that_are_not_plain(indices: list[int], kept: list[float]) -> None:
    hidden, weight = student()
    places, shares = torch.tensor([indices] * ROWS), torch.tensor([kept] * ROWS, dtype=torch.float64)
    found = fused_linear(hidden, Head(weight), teacher=TopK(places, shares.log()), divergence=Divergence("top_k_kl"))
    values = top_k_kl(hidden @ weight.T, shares, indices=places)
    torch.testing.assert_close(found.divergence, values.detach())
    (ours,), (plain,) = torch.autograd.grad(found.total, weight), torch.autograd.grad(values.sum(), weight)
    torch.testing.assert_close(ours, plain)


def test_a_rest_next_to_nothing_still_teaches():
    # The student's rest has a probability of e^-200, which float32 does not hold.
    weight = torch.tensor([[200.0], [0.0], [0.0]], requires_grad=True)
    kept, hidden, indices = torch.tensor([[0.9]]), torch.ones(1, 1), torch.tensor([[0]])
    found = fused_linear(hidden, Head(weight), teacher=TopK(indices, kept.log()), divergence=Divergence("top_k_kl"))
    torch.testing.assert_close(found.divergence, top_k_kl(hidden @ weight.detach().T, kept, indices=indices))
    found.total.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.1], [-0.05], [-0.05]]))


@pytest.mark.parametrize("wide_gradient", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_summed_in_float32(native: bool, wide_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused_products, "TILE_BYTES", 1)  # several pieces of a head
    monkeypatch.setattr("hfdistill.losses._fused_chunks.multiplied_natively", lambda dtype, device: native)
    rows, classes, narrow = 64, 200, torch.bfloat16
    hidden = random(rows, WIDTH, dtype=narrow).requires_grad_()
    weight = random(classes, WIDTH, seed=1, dtype=narrow).requires_grad_()
    taught = Taught(random(rows, 3, seed=2, dtype=narrow), Head(random(classes, 3, seed=3, dtype=narrow)))
    wide_hidden, wide_weight = (each.detach().double().requires_grad_() for each in (hidden, weight))
    found = fused_linear(
        hidden,
        Head(weight),
        teacher=taught,
        divergence=Divergence(),
        divergence_weight=1 / rows,
        chunk_bytes=1,
        wide_gradient=wide_gradient,
    )
    teacher_logits = taught.hidden.double() @ taught.head.weight.double().T
    values = forward_kl(wide_hidden @ wide_weight.T, teacher_logits, temperature=1.0)
    assert found.divergence is not None and found.divergence.dtype == torch.float32
    torch.testing.assert_close(found.divergence.double(), values.detach(), rtol=0.02 if native else 1e-5, atol=1e-5)
    found.total.backward()
    values.mean().backward()
    for ours, plain in ((hidden, wide_hidden), (weight, wide_weight)):
        assert ours.grad is not None and plain.grad is not None and ours.grad.dtype == narrow
        error = (ours.grad.double() - plain.grad).norm() / plain.grad.norm()
        assert error < {(False, True): 0.0025, (True, True): 0.0045}.get((native, wide_gradient), 0.008)


def test_autocast_multiplies_in_its_dtype():
    hidden, weight = student(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_linear(hidden.bfloat16(), Head(weight), labels=LABELS)
    found.total.backward()
    assert found.total.dtype == torch.float32
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    expected = cross_entropy(hidden @ weight.T, LABELS, reduction="sum")
    torch.testing.assert_close(found.total, expected, rtol=0.01, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # inductor's own imports, torch 2.13
@pytest.mark.parametrize("loss", [forward_kl, jensen_shannon, top_k_kl])
def test_a_compiled_sweep_gives_the_same(loss: Any, caplog: pytest.LogCaptureFixture) -> None:
    hidden, weight = student()
    arguments: dict[str, Any] = {"labels": LABELS, "teacher": teacher(), "divergence": Divergence(loss.__name__, 2.0)}
    if loss is top_k_kl:
        arguments["teacher"] = TopK(torch.arange(3).expand(ROWS, 3), torch.full((ROWS, 3), 0.2).log())
    plain = fused_linear(hidden, Head(weight, softcap=5.0), **arguments)
    compiled = fused_linear(hidden, Head(weight, softcap=5.0), **arguments, compiled=True)
    torch.testing.assert_close(compiled.total, plain.total)
    for ours, expected in zip(
        torch.autograd.grad(compiled.total, (hidden, weight)),
        torch.autograd.grad(plain.total, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)
    assert not any("not compiled" in record.message for record in caplog.records)


def test_without_a_compiler_it_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails, fails before anything is written."""

    def failing(function: Any, **options: Any) -> Any:
        assert options == {"fullgraph": True}

        def run(*arguments: Any) -> Any:
            raise InternalTorchDynamoError("no compiler here\nand more")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    _fused_compiled.compiled_sweep.cache_clear()
    try:
        hidden, weight = student()
        arguments: dict[str, Any] = {"labels": LABELS, "teacher": teacher(), "divergence": Divergence("forward_kl")}
        plain = fused_linear(hidden, Head(weight), **arguments)
        for _ in range(2):
            assert torch.equal(fused_linear(hidden, Head(weight), **arguments, compiled=True).total, plain.total)
    finally:
        _fused_compiled.compiled_sweep.cache_clear()
    assert [record.message for record in caplog.records] == [
        "The fused head is not compiled from here on: no compiler here"
    ]


def test_a_sweep_of_16_bits_writes_its_gradients_back() -> None:
    hidden, weight = student(torch.float32)
    products = (hidden @ weight.T).detach().bfloat16()
    rows = RowBlock(LABELS.clamp(min=0).unsqueeze(1), 0.0, torch.ones(ROWS, 1), None)
    head = Student(Head(weight).curve, None, len(weight))
    wide = products.float()
    expected = sweep(head, wide, rows, NoScratch())
    found = _fused_compiled.swept(head, products, rows, None, None, None)
    assert torch.equal(found[0], expected[0])  # type: ignore[arg-type]
    assert torch.equal(products, wide.bfloat16())


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_heads_in_pieces(one_process: None) -> None:
    hidden, weight = student()
    mesh = init_device_mesh("cpu", (1,))
    taught = teacher()
    pieces = Taught(taught.hidden, Head(distribute_tensor(taught.head.weight, mesh, [Shard(0)])))
    expected = fused_linear(hidden, Head(weight), teacher=taught, divergence=Divergence())
    found = fused_linear(hidden, Head(weight), teacher=pieces, divergence=Divergence())
    torch.testing.assert_close(found.total, expected.total)
    cut = distribute_tensor(weight.detach(), mesh, [Shard(0)]).requires_grad_()
    with pytest.raises(NotImplementedError, match=r"trainable DTensor .*full_tensor"):
        fused_linear(hidden, Head(cut), labels=LABELS)
    with torch.no_grad():
        torch.testing.assert_close(
            fused_linear(hidden, Head(cut), labels=LABELS).total,
            fused_linear(hidden, Head(weight), labels=LABELS).total,
        )


def test_divergences_are_read_from_losses():
    assert Divergence.of(forward_kl, {}) == Divergence("forward_kl", 2.0)
    assert Divergence.of(jensen_shannon, {"beta": 0.1}) == Divergence("jensen_shannon", 1.0, beta=0.1)
    assert Divergence.of(skew_kl, {"reverse": True}) == Divergence("skew_kl", 1.0, reverse=True)
    assert Divergence.of(forward_kl, {"standardized": True}) is None
    assert Divergence.of(forward_kl, {"temperature": torch.ones(3)}) is None
    assert Divergence.of(logit_mse, {}) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": random(2, 3, WIDTH)}, r"hidden states \(2, 3, 5\)"),
        ({"hidden": random(ROWS, WIDTH + 1)}, r"head \(12, 5\)"),
        ({"labels": None, "teacher": None, "divergence": None}, "neither labels nor a teacher"),
        ({"labels": LABELS.float()}, "integer class indices"),
        ({"labels": LABELS[:3]}, r"labels got shape \(3,\)"),
        ({"divergence": None}, "both or neither"),
        ({"divergence": Divergence("dist")}, "'dist', expected one of forward_kl"),
        ({"divergence": Divergence(temperature=0.0)}, "temperature got 0"),
        ({"divergence": Divergence("jensen_shannon", beta=2.0)}, "beta got 2"),
        ({"divergence": Divergence("skew_kl", skew=1.0)}, "skew got 1"),
        ({"divergence": Divergence("top_k_kl")}, "use forward_kl"),
        ({"teacher": Taught(random(2, 4), Head(random(CLASSES, 4)))}, "6 rows of the student and 2"),
        ({"teacher": Taught(random(ROWS, 4), Head(random(9, 4)))}, "12 classes of the student and 9"),
        ({"teacher": Taught(random(ROWS, 4), Head(random(9, 4)), Columns([0, 9]))}, "class 9, and its head has 9"),
        ({"teacher": Taught(random(ROWS, 4), Head(random(20, 4)), Columns(range(20)))}, "20 classes to compare"),
        (
            {
                "teacher": Taught(random(ROWS, 4), Head(random(9, 4)), Columns([0, 1, -1])),
                "divergence": Divergence("reverse_kl"),
            },
            "1 classes that the teacher lacks",
        ),
        ({"teacher": TopK(torch.zeros(ROWS, 2), torch.zeros(ROWS, 3))}, "top-k indices"),
        (
            {"teacher": TopK(torch.zeros(ROWS, 2), torch.zeros(ROWS, 2)), "divergence": Divergence("reverse_kl")},
            "use top_k_kl",
        ),
    ],
)
def test_refusals(changed: dict[str, Any], message: str) -> None:
    hidden, weight = student()
    arguments: dict[str, Any] = {
        "hidden": hidden,
        "labels": LABELS,
        "teacher": teacher(),
        "divergence": Divergence(),
        **changed,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        fused_linear(arguments.pop("hidden"), Head(weight), **arguments)


def test_reverse_kl_by_jensen_shannon_is_refused_too():
    taught = Taught(random(ROWS, 4), Head(random(9, 4)), Columns([0, 1, -1]))
    hidden, weight = student()
    with pytest.raises(ValueError, match="infinite"):
        fused_linear(hidden, Head(weight), teacher=taught, divergence=Divergence("jensen_shannon", beta=1.0))
    assert reverse_kl(torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])).isinf().all()
