"""The fused head's approximate gradient: near the exact one where few classes matter, the exact one elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hfdistill.losses.fused_linear import Divergence, FusedLoss, Head, Taught, TopK, fused_linear

ROWS, CLASSES, WIDTH = 24, 400, 16
FREQUENT = 30
"""All rows have their likely classes among the first."""
THRESHOLD = 2.0**-14


class Peaked:
    """Two heads that agree on what is likely; the last rows count nowhere."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        hidden, weight = random(ROWS, WIDTH), random(CLASSES, WIDTH)
        hidden[:, 0] = 5.0
        weight[:, 0] = -2.0
        weight[:FREQUENT, 0] = 0.5
        self.teacher = Taught(
            (hidden + 0.3 * random(ROWS, WIDTH)).to(dtype), Head((weight + 0.1 * random(CLASSES, WIDTH)).to(dtype))
        )
        self.hidden, self.weight = (tensor.to(dtype).requires_grad_() for tensor in (hidden, weight))
        self.bias = (0.1 * random(CLASSES)).to(dtype).requires_grad_()
        self.labels = torch.randint(FREQUENT, (ROWS,), generator=generator)
        self.labels[-4:] = -100
        self.counted = self.labels != -100

    def loss(self, threshold: float | None, name: str = "forward_kl", **options: Any) -> FusedLoss:
        curve = {key: options.pop(key) for key in ("scale", "softcap", "added") if key in options}
        given: dict[str, Any] = {
            "labels": self.labels,
            "label_weight": 0.3,
            "teacher": self.teacher,
            "divergence": Divergence(name, options.pop("temperature", 1.0)),
            "divergence_weight": 0.7,
            "rows": self.counted,
            "chunk_bytes": 10 * 2 * CLASSES * self.weight.element_size(),
            **options,
        }
        head = Head(self.weight, self.bias, **curve)
        return fused_linear(self.hidden, head, gradient_threshold=threshold, **given)

    def both(self, threshold: float, *more: Tensor, **options: Any) -> list[tuple[Tensor, Tensor]]:
        """Approximate and exact gradients, of hidden states, weight, bias, and what is more."""
        near, exact = self.loss(threshold, **options), self.loss(None, **options)
        for mine, expected in ((near.total, exact.total), (near.label, exact.label)):
            assert mine is not None and expected is not None
            assert mine.equal(expected)
        leaves = (self.hidden, self.weight, self.bias, *more)
        gradients = (torch.autograd.grad(loss.total, leaves) for loss in (near, exact))
        return list(zip(*gradients, strict=True))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("forward_kl", {}),
        ("forward_kl", {"temperature": 1.3}),
        ("reverse_kl", {}),
        ("jensen_shannon", {"scale": 1.5}),
        ("forward_kl", {"softcap": 20.0}),
        ("forward_kl", {"chunk_bytes": 10**9}),
        ("forward_kl", {"label_smoothing": 0.001}),
    ],
)
def test_few_classes_matter(name: str, options: dict[str, Any]) -> None:
    """Values and the bias's gradient are exact, the others near; a row that counts nowhere has none."""
    peaked = Peaked()
    hidden, weight, bias = peaked.both(THRESHOLD, name=name, **options)
    for found, exact in (hidden, weight):
        assert 0 < error(found, exact) <= 4e-3
        assert not found.equal(exact)
    assert bias[0].equal(bias[1])
    assert not hidden[0][-4:].any()


@pytest.mark.parametrize("softcap", [None, 20.0])
def test_sums_over_classes_are_exact(softcap: float | None) -> None:
    """Each row's dropped mass reaches its hidden state, however much is dropped; so do the weight's sums."""
    peaked = Peaked()
    with torch.no_grad():
        peaked.weight[:, 1] = 1.0
    hidden, weight, _ = peaked.both(2.0**-6, softcap=softcap)
    assert error(*hidden) > 1e-3
    torch.testing.assert_close(hidden[0][:, 1], hidden[1][:, 1])
    torch.testing.assert_close(weight[0].sum(0), weight[1].sum(0))


def test_a_gradient_by_hand():
    # One row with x = 1 and p = (3/4, 1/8, 1/16, 1/16), label 0, all of weight 4: g = (-1, 1/2, 1/4, 1/4).
    shares = torch.tensor([3 / 4, 1 / 8, 1 / 16, 1 / 16])
    rare = 8  # classes of next to no probability, so that a quarter of them is two
    weight = torch.cat([shares.log(), torch.full((rare - 4,), -200.0)]).unsqueeze(1).requires_grad_()
    hidden = torch.ones(1, 1, requires_grad=True)
    loss = fused_linear(hidden, Head(weight), labels=torch.tensor([0]), label_weight=4.0, gradient_threshold=0.1)
    loss.total.backward()
    # Kept: -1 and 1/2, above 0.4. The rest of one row is its own projection: nothing is lost.
    expected = torch.tensor([-1, 1 / 2, 1 / 4, 1 / 4, *([0.0] * (rare - 4))])
    torch.testing.assert_close(weight.grad, expected.unsqueeze(1))
    torch.testing.assert_close(hidden.grad, (expected @ weight.detach()).unsqueeze(1))


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon"])
def test_exact_where_many_classes_matter(name: str) -> None:
    """To the last bit."""
    for found, exact in Peaked().both(1e-12, name=name):
        assert found.equal(exact)


def test_some_chunks_are_exact():
    peaked = Peaked()
    with torch.no_grad():
        peaked.hidden[10:20, 0] = 0.0  # nothing is likely there
    hidden, weight, _ = peaked.both(THRESHOLD)
    assert hidden[0][10:20].equal(hidden[1][10:20])
    assert not hidden[0][:10].equal(hidden[1][:10])
    assert error(*hidden) <= 4e-3
    assert error(*weight) <= 4e-3


def test_products_beside_the_weight_have_exact_gradients():
    peaked = Peaked()
    down, up = (0.1 * torch.randn(*shape, dtype=torch.float64) for shape in ((2, WIDTH), (CLASSES, 2)))
    down.requires_grad_()
    up.requires_grad_()
    peaked.weight.requires_grad_(False)
    near, exact = (peaked.loss(share, added=((lambda x: x @ down.t(), up),)) for share in (THRESHOLD, None))
    leaves = (up, down, peaked.hidden)
    found, expected = (torch.autograd.grad(loss.total, leaves) for loss in (near, exact))
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])
    assert 0 < error(found[2], expected[2]) <= 4e-3


def test_the_top_k_of_a_teacher():
    peaked = Peaked()
    logits = peaked.teacher.hidden @ peaked.teacher.head.weight.T
    kept, indices = logits.log_softmax(-1).topk(20)
    hidden, weight, _ = peaked.both(THRESHOLD, name="top_k_kl", teacher=TopK(indices, kept))
    assert 0 < error(*hidden) <= 4e-3
    assert 0 < error(*weight) <= 4e-3


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_bfloat16(native: bool, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near as rounding to it."""
    monkeypatch.setattr("hfdistill.losses._fused_chunks.multiplied_natively", lambda dtype, device: native)
    peaked = Peaked(torch.bfloat16)
    near, exact = (peaked.loss(share, wide_gradient=wide) for share in (THRESHOLD, None))
    found, expected = (torch.autograd.grad(loss.total, (peaked.hidden, peaked.weight)) for loss in (near, exact))
    for mine, whole in zip(found, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert error(mine.double(), whole.double()) <= 0.01


def test_what_is_not_a_number_is_not_dropped():
    peaked = Peaked()
    with torch.no_grad():
        peaked.hidden[3, 2] = torch.nan
    loss = peaked.loss(THRESHOLD)
    (gradient,) = torch.autograd.grad(loss.total, peaked.hidden)
    assert gradient[3].isnan().all()


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0, float("nan")])
def test_shares_that_make_no_sense_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"gradient_threshold got .*expected a share above 0"):
        Peaked().loss(threshold)
