"""The fused head gives the values and gradients of the plain losses on logits that it never holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from hfdistill.losses import LOSSES, jensen_shannon
from hfdistill.losses.fused_linear import Columns, Divergence, FusedLoss, Head, Taught, fused_linear

ROWS, CLASSES, WIDTH, TEACHER_WIDTH = 7, 11, 5, 6
LABELS = torch.tensor([3, 0, -100, 10, 7, -100, 1])
COUNTED = torch.tensor([True, True, False, False, True, False, True])  # rows 2 and 5 count nowhere
CASES: list[tuple[str, dict[str, Any]]] = [
    ("forward_kl", {}),
    ("forward_kl", {"temperature": 1.0}),
    ("jensen_shannon", {}),
    ("jensen_shannon", {"beta": 0.3, "temperature": 2.0}),
    ("jensen_shannon", {"beta": 0.0}),
    ("jensen_shannon", {"beta": 1.0}),
    ("reverse_kl", {"temperature": 1.5}),
    ("skew_kl", {}),
    ("skew_kl", {"reverse": True, "temperature": 2.0}),
    ("skew_kl", {"skew": 0.0}),
    ("skew_kl", {"skew": 0.0, "reverse": True}),
]
KL = Divergence("forward_kl", temperature=2.0)


class Heads:
    """Two random heads and what comes into them; the student's have gradients."""

    def __init__(self, dtype: torch.dtype = torch.float64, classes: int = CLASSES, teacher_classes: int = CLASSES):
        generator = torch.Generator().manual_seed(5)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

        self.hidden, self.weight = random(ROWS, WIDTH).requires_grad_(), random(classes, WIDTH).requires_grad_()
        self.bias = random(classes).requires_grad_()
        self.teacher_hidden, self.teacher_weight = random(ROWS, TEACHER_WIDTH), random(teacher_classes, TEACHER_WIDTH)
        self.teacher_bias = random(teacher_classes)

    def taught(self, columns: Columns | None = None, **options: Any) -> Taught:
        return Taught(self.teacher_hidden, Head(self.teacher_weight, self.teacher_bias, **options), columns)

    def head(self, **options: Any) -> Head:
        return Head(self.weight, self.bias, **options)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.hidden, self.weight, self.bias

    def logits(self, scale: float = 1.0, softcap: float | None = None) -> Tensor:
        return shaped(self.hidden @ self.weight.T + self.bias, scale, softcap)

    def teacher_logits(self, scale: float = 1.0, softcap: float | None = None) -> Tensor:
        return shaped(self.teacher_hidden @ self.teacher_weight.T + self.teacher_bias, scale, softcap)


def shaped(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def assert_same(loss: FusedLoss, leaves: tuple[Tensor, ...], divergence: Tensor | None, label: Tensor | None) -> None:
    """Total, values and gradients against 0.3 of the divergences and 0.5 of the cross-entropies."""
    parts = [weight * values.sum() for weight, values in ((0.3, divergence), (0.5, label)) if values is not None]
    total = sum(parts[1:], parts[0])
    torch.testing.assert_close(loss.total, total)
    for values, expected in ((loss.divergence, divergence), (loss.label, label)):
        assert (values is None) == (expected is None)
        if values is not None and expected is not None:
            assert not values.requires_grad
            torch.testing.assert_close(values, expected.detach())
    for found, expected in zip(
        torch.autograd.grad(loss.total, leaves), torch.autograd.grad(total, leaves), strict=True
    ):
        torch.testing.assert_close(found, expected)


WEIGHTS: dict[str, Any] = {"label_weight": 0.5, "divergence_weight": 0.3}


def plain_labels(logits: Tensor, smoothing: float = 0.0) -> Tensor:
    return cross_entropy(logits, LABELS, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_values_and_gradients_are_those_of_the_plain_losses(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    heads, loss = Heads(dtype), LOSSES[name]
    found = fused_linear(
        heads.hidden,
        heads.head(),
        labels=LABELS,
        teacher=heads.taught(),
        divergence=Divergence.of(loss, options),
        rows=COUNTED,
        **WEIGHTS,
    )
    logits = heads.logits()
    assert_same(found, heads.leaves, loss(logits, heads.teacher_logits(), **options) * COUNTED, plain_labels(logits))


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("curve", "smoothing"), [({"scale": 0.25}, 0.0), ({"softcap": 2.0}, 0.1), ({"scale": 3.0, "softcap": 4.0}, 0.0)]
)
def test_scale_softcap_and_smoothing(name: str, temperature: float, curve: dict[str, float], smoothing: float) -> None:
    heads = Heads()
    found = fused_linear(
        heads.hidden,
        heads.head(**curve),
        labels=LABELS,
        label_smoothing=smoothing,
        teacher=heads.taught(scale=0.5, softcap=3.0),
        divergence=Divergence(name, temperature),
        **WEIGHTS,
    )
    logits, taught = heads.logits(**curve), heads.teacher_logits(0.5, 3.0)
    divergence = LOSSES[name](logits, taught, temperature=temperature)
    assert_same(found, heads.leaves, divergence, plain_labels(logits, smoothing))


def test_a_value_by_hand():
    # Logits (ln 3, 0) and (0, 0): p_s = (3/4, 1/4), p_t = (1/2, 1/2); label 1.
    hidden, weight = torch.ones(1, 1), torch.tensor([[3.0], [1.0]]).log().requires_grad_()
    teacher = Taught(torch.ones(1, 1), Head(torch.zeros(2, 1)))
    found = fused_linear(
        hidden, Head(weight), labels=torch.tensor([1]), teacher=teacher, divergence=Divergence("forward_kl")
    )
    kl = 0.5 * torch.log(torch.tensor(2 / 3)) + 0.5 * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(found.divergence, kl.reshape(1))
    torch.testing.assert_close(found.label, torch.tensor([4.0]).log())
    found.total.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.25 + 0.75], [-0.25 - 0.75]]))


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 2 * CLASSES * 8, 10**9])
def test_chunks_do_not_change_the_result(chunk_bytes: int) -> None:
    heads = Heads()
    found = fused_linear(
        heads.hidden,
        heads.head(),
        labels=LABELS,
        teacher=heads.taught(),
        divergence=KL,
        chunk_bytes=chunk_bytes,
        **WEIGHTS,
    )
    logits = heads.logits()
    divergence = LOSSES["forward_kl"](logits, heads.teacher_logits(), temperature=2.0)
    assert_same(found, heads.leaves, divergence, plain_labels(logits))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("places", "teacher_classes"),
    [
        (list(range(8)), 8),  # the student's head is padded
        (list(range(8)), 13),  # so is the teacher's
        ([0, 1, 2, 3, 4, 5, -1, -1, -1], 6),  # the teacher's is shorter
        ([0, -1, 2, 3, 4, 5, 6, -1], 8),
        ([4, 3, 2, 1, 0, 7, 6, 5], 9),  # another order
        ([4, 3, -1, 1, 0, 7, 6, -1, 2], 9),
    ],
)
def test_vocabularies_that_differ(places: list[int], teacher_classes: int, temperature: float) -> None:
    heads = Heads(teacher_classes=teacher_classes)
    taught = heads.teacher_logits()[:, torch.tensor(places).clamp(min=0)]
    taught = taught.masked_fill(torch.tensor(places) < 0, -torch.inf)
    for name in ("forward_kl", "jensen_shannon"):
        found = fused_linear(
            heads.hidden,
            heads.head(),
            labels=LABELS,
            teacher=heads.taught(Columns(places)),
            divergence=Divergence(name, temperature),
            **WEIGHTS,
        )
        logits = heads.logits()
        divergence = LOSSES[name](logits[:, : len(places)], taught, temperature=temperature)
        assert_same(found, heads.leaves, divergence, plain_labels(logits))


def test_labels_alone_and_teacher_alone():
    heads = Heads()
    assert_same(
        fused_linear(heads.hidden, heads.head(), labels=LABELS, label_weight=0.5),
        heads.leaves,
        None,
        plain_labels(heads.logits()),
    )
    found = fused_linear(
        heads.hidden, heads.head(), teacher=heads.taught(), divergence=KL, divergence_weight=torch.tensor(0.3)
    )
    divergence = LOSSES["forward_kl"](heads.logits(), heads.teacher_logits(), temperature=2.0)
    assert_same(found, heads.leaves, divergence, None)


@pytest.mark.parametrize("rows", [COUNTED, COUNTED.nonzero().squeeze(-1)], ids=["mask", "indices"])
def test_rows_that_count_nowhere_are_never_projected(rows: Tensor) -> None:
    heads = Heads()
    nowhere = torch.tensor([2, 5])
    with torch.no_grad():
        heads.hidden[nowhere] = torch.nan
        heads.teacher_hidden[nowhere] = torch.nan
    found = fused_linear(
        heads.hidden, heads.head(), labels=LABELS, teacher=heads.taught(), divergence=KL, rows=rows, **WEIGHTS
    )
    assert found.total.isfinite()
    assert found.divergence is not None
    assert not found.divergence[nowhere].any()
    found.total.backward()
    assert heads.hidden.grad is not None
    assert not heads.hidden.grad[nowhere].any()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in heads.leaves)


def test_no_row_counts():
    heads = Heads()
    found = fused_linear(heads.hidden, heads.head(), labels=torch.full((ROWS,), -100))
    assert found.total == 0
    found.total.backward()
    assert not any(leaf.grad.any() for leaf in heads.leaves)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made, and not a view."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        made = found if isinstance(found, (tuple, list)) else [found]
        for each, kind in zip(made, function._schema.returns, strict=True):
            if isinstance(each, Tensor) and kind.alias_info is None:
                self.elements = max(self.elements, each.numel())
        return found


@pytest.mark.parametrize(("name", "options"), CASES)
def test_no_tensor_of_rows_by_classes(name: str, options: dict[str, Any]) -> None:
    rows, classes = 64, 50
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(classes, 4, requires_grad=True)
    with Largest() as seen:
        fused_linear(
            hidden,
            Head(weight, softcap=5.0),
            labels=torch.arange(rows) % classes,
            teacher=Taught(torch.randn(rows, 3), Head(torch.randn(classes, 3))),
            divergence=Divergence.of(LOSSES[name], options),
            chunk_bytes=8 * 2 * classes * 4,
        ).total.backward()
    assert seen.elements <= 8 * classes


def test_a_tied_weight_gets_both_gradients():
    torch.manual_seed(0)
    weight, ids = torch.randn(CLASSES, WIDTH, dtype=torch.float64, requires_grad=True), torch.arange(ROWS)
    found = fused_linear(weight[ids].tanh(), Head(weight), labels=LABELS, label_weight=0.5)
    assert_same(found, (weight,), None, plain_labels(weight[ids].tanh() @ weight.T))


def test_a_frozen_head_gets_no_gradient():
    heads = Heads()
    weight = heads.weight.detach()
    with Largest() as seen:
        found = fused_linear(heads.hidden, Head(weight), labels=LABELS, label_weight=0.5, chunk_bytes=1)
    assert seen.elements < weight.numel()
    assert_same(found, (heads.hidden,), None, plain_labels(heads.hidden @ weight.T))


def test_low_rank_adapters_are_exact():
    heads = Heads()
    weight = heads.weight.detach()
    down, up = torch.randn(2, WIDTH, dtype=torch.float64), torch.randn(CLASSES, 2, dtype=torch.float64)
    leaves = (heads.hidden, down.requires_grad_(), up.requires_grad_())

    def expected() -> Tensor:
        return plain_labels(heads.hidden @ (weight + 0.7 * up @ down).T)

    added = Head(weight, added=((lambda x: 0.7 * x @ down.T, up),))
    assert_same(fused_linear(heads.hidden, added, labels=LABELS, label_weight=0.5), leaves, None, expected())
    merged = fused_linear(heads.hidden, Head(weight + 0.7 * up @ down), labels=LABELS, label_weight=0.5)
    assert_same(merged, leaves, None, expected())


def test_without_gradients_nothing_is_made_for_them():
    heads = Heads()
    arguments: dict[str, Any] = {"labels": LABELS, "teacher": heads.taught(), "divergence": KL}
    expected = fused_linear(heads.hidden, heads.head(), **arguments)
    with torch.no_grad(), Largest() as seen:
        found = fused_linear(heads.hidden, heads.head(), **arguments, chunk_bytes=1)
    assert not found.total.requires_grad
    assert seen.elements < heads.weight.numel()
    torch.testing.assert_close(found.total, expected.total.detach())
    torch.testing.assert_close(found.divergence, expected.divergence)


def test_backward_multiplies_and_runs_once():
    heads = Heads()
    total = fused_linear(heads.hidden, heads.head(), labels=LABELS).total
    (twice,) = torch.autograd.grad(2 * total, heads.weight, retain_graph=True)
    (once,) = torch.autograd.grad(plain_labels(heads.logits()).sum(), heads.weight)
    torch.testing.assert_close(twice, 2 * once)
    with pytest.raises(RuntimeError, match="second backward"):
        total.backward()
    with pytest.raises(RuntimeError, match="create_graph"):
        fused_linear(heads.hidden, heads.head(), labels=LABELS).total.backward(create_graph=True)


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "reverse_kl"])
def test_extreme_logits_stay_finite(name: str) -> None:
    heads = Heads(torch.float32)
    found = fused_linear(
        heads.hidden,
        heads.head(scale=1e4),
        labels=LABELS,
        teacher=heads.taught(scale=1e4),
        divergence=Divergence(name),
    )
    found.total.backward()
    assert found.total.isfinite()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in heads.leaves)


def test_classes_that_a_bias_rules_out():
    heads = Heads()
    with torch.no_grad():
        heads.bias[[4, 6]] = -torch.inf
        heads.teacher_bias[[4, 6]] = -torch.inf
    found = fused_linear(
        heads.hidden, heads.head(), labels=LABELS, teacher=heads.taught(), divergence=Divergence("jensen_shannon")
    )
    divergence = jensen_shannon(heads.logits(), heads.teacher_logits())
    torch.testing.assert_close(found.divergence, divergence.detach())
    found.total.backward()
    assert heads.weight.grad is not None
    assert not heads.weight.grad[[4, 6]].any()


def test_nothing_waits_for_a_device():
    # On `meta` tensors, which have no values, every read of a value raises.
    with torch.device("meta"):
        hidden, weight = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(CLASSES, WIDTH, requires_grad=True)
        found = fused_linear(
            hidden,
            Head(weight),
            labels=torch.zeros(ROWS, dtype=torch.long),
            label_weight=torch.ones(()) / 3,
            teacher=Taught(torch.randn(ROWS, 3), Head(torch.randn(CLASSES, 3))),
            divergence=KL,
        )
        found.total.backward()


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def test_several_threads_give_the_same():
    heads = Heads()
    with threads(2):
        found = fused_linear(
            heads.hidden, heads.head(), labels=LABELS, teacher=heads.taught(), divergence=KL, **WEIGHTS
        )
    logits = heads.logits()
    divergence = LOSSES["forward_kl"](logits, heads.teacher_logits(), temperature=2.0)
    assert_same(found, heads.leaves, divergence, plain_labels(logits))
