"""Costs between two sets of queries and the cheapest assignment, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hfdistill.tasks import matching


def boxes(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([0.5, 0.5, 0.4, 0.2], [0.5, 0.5, 0.4, 0.2], 1.0),
        ([0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0], 0.5),  # half of it, and the hull is the union
        ([0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0], 0.0),  # side by side
        ([0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], -0.5),  # two quarters of their hull, corner to corner
    ],
)
def test_generalised_iou(one: list[float], other: list[float], expected: float) -> None:
    assert matching.generalised_iou(torch.tensor(one), torch.tensor(other)).item() == pytest.approx(expected, abs=1e-6)


def test_a_box_without_area_gives_numbers() -> None:
    point = torch.zeros(4, requires_grad=True)
    value = matching.box_distance(point, torch.zeros(4))
    value.backward()
    assert value.isfinite() and point.grad is not None and point.grad.isfinite().all()


def test_box_distance_adds_l1_and_giou() -> None:
    # |0.5 - 0.25| + |1 - 0.5| = 0.75, and GIoU 0.5 as above.
    value = matching.box_distance(torch.tensor([0.5, 0.5, 1, 1]), torch.tensor([0.25, 0.5, 0.5, 1]), l1=5, giou=2)
    assert value.item() == pytest.approx(5 * 0.75 + 2 * 0.5)


def test_class_cost_and_confidence() -> None:
    student = torch.tensor([[[0.7, 0.2, 0.1]]]).log()
    teacher = torch.tensor([[[0.1, 0.2, 0.7]]]).log()
    # Half of |0.7 - 0.1| + 0 + |0.1 - 0.7|.
    assert matching.class_cost(student, teacher, no_object=True).item() == pytest.approx(0.6)
    # The last class is no object.
    assert matching.confidence(teacher, no_object=True).item() == pytest.approx(0.2)
    quarter, half = -math.log(3), 0.0  # logits of 1/4 and 1/2
    one, other = torch.tensor([[[quarter, half]]]), torch.tensor([[[half, half]]])
    assert matching.class_cost(one, other, no_object=False).item() == pytest.approx(0.25)
    assert matching.confidence(one, no_object=False).item() == pytest.approx(0.5)
    assert matching.class_weight(torch.tensor(0.5)).item() == pytest.approx(0.5 + 0.1 * 0.5)


def test_mask_distance() -> None:
    quarter, half = -math.log(3), 0.0
    student, teacher = torch.tensor([[half, half]]), torch.tensor([[quarter, half]])
    # One pixel of the two differs.
    kl = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2
    dice = 1 - 2 * (0.5 * 0.25 + 0.5 * 0.5) / (0.25 + 0.25 + 0.0625 + 0.25)
    value = matching.mask_distance(student, teacher, pixels=5, dice=3)
    assert value.item() == pytest.approx(5 * kl + 3 * dice, abs=1e-6)
    assert matching.mask_distance(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_mask_cost_is_the_distance_of_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 20, generator=generator), torch.randn(2, 4, 20, generator=generator)
    each = matching.mask_distance(
        student[:, :, None].expand(2, 3, 4, 20).contiguous(), teacher[:, None].expand(2, 3, 4, 20).contiguous()
    )
    torch.testing.assert_close(matching.mask_cost(student, teacher), each, rtol=1e-4, atol=1e-5)


def test_assignment_is_the_cheapest_and_not_the_greedy_one() -> None:
    cost = torch.tensor([[[0.0, 1.0], [1.0, 3.0], [9.0, 9.0]], [[5.0, 1.0], [0.0, 5.0], [0.5, 0.0]]])
    # First: rows (0, 1) cost 0 + 3, rows (1, 0) cost 1 + 1. Second: rows (1, 2) cost nothing.
    assert matching.assignment(cost).tolist() == [[1, 0], [1, 2]]


def test_a_cost_without_a_number_is_the_last_choice() -> None:
    assert matching.assignment(torch.tensor([[[float("nan")], [7.0]]])).tolist() == [[1]]
