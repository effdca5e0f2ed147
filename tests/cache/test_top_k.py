"""The k most likely classes, packed and unpacked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hfdistill import HfDistillError
from hfdistill.cache.top_k import LOGS, LOW, REST, TopK
from hfdistill.losses import forward_kl, top_k_kl
from hfdistill.teachers import KeptLogits


def kept(form: TopK, logits: torch.Tensor) -> KeptLogits:
    """Through the disk's form and back."""
    found = form.unpacked(form.packed(logits))
    return KeptLogits(found[LOW], found[LOGS], found[REST], form.temperatures)


@pytest.mark.parametrize("classes", [1_000, 65_536, 65_537, 151_936, 262_144, 300_000])
def test_indices_survive_packing(classes: int) -> None:
    """16 bits an index, 18 up to 262,144 classes, 20 beyond."""
    form = TopK(5, classes)
    logits = torch.randn(2, 3, classes, generator=torch.Generator().manual_seed(classes))
    logits[0, 0, classes - 1] = 50.0
    logits[1, 2, 0] = 50.0
    expected = logits.topk(5).indices
    assert torch.equal(kept(form, logits).indices.long(), expected)


def test_bytes_a_row_are_as_said() -> None:
    """274 for 64 of 262,144 classes: 144 of indices, 128 of log-probabilities, 2 of the rest; 212 with 8 bits."""
    logits = torch.randn(3, 262_144)
    for store, expected in (("float16", 274), ("uint8", 212)):
        form = TopK(64, 262_144, store=store)
        assert form.row_bytes == expected
        assert sum(each.nbytes for each in form.packed(logits).values()) == 3 * expected


@pytest.mark.parametrize(("store", "bound"), [("float16", 2e-3), ("uint8", 4e-2)])
def test_probabilities_at_each_temperature(store: str, bound: float) -> None:
    """What is kept is re-tempered exactly, but for rounding, since the others' weight is kept for each temperature."""
    form = TopK(10, 100, (1.0, 4.0), store)
    logits = 3 * torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    teacher = kept(form, logits)
    for temperature in form.temperatures:
        whole = (logits / temperature).softmax(-1)
        expected = whole.gather(-1, teacher.indices.long())
        torch.testing.assert_close(teacher.at(temperature), expected, rtol=bound, atol=bound / 10)


def test_of_almost_all_classes_the_loss_is_that_of_all() -> None:
    """One class is left for the bucket of the rest."""
    student, logits = torch.randn(4, 12), torch.randn(4, 12)
    teacher = kept(TopK(11, 12, (2.0,)), logits)
    value = top_k_kl(student, teacher.at(2.0), indices=teacher.places, temperature=2.0)
    torch.testing.assert_close(value, forward_kl(student, logits, temperature=2.0), rtol=5e-3, atol=1e-3)


def test_classes_of_which_the_student_has_no_equal_are_left_out() -> None:
    """As a whole teacher is read: renormalised over what both know."""
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    found = TopK(5, 6).unpacked(TopK(5, 6).packed(logits))
    columns = torch.tensor([1, 0, -1, 2, 3, 4])
    teacher = KeptLogits(found[LOW], found[LOGS], found[REST], (1.0,), columns)
    known = columns >= 0
    shared = torch.zeros(3, 5)
    shared[:, columns[known]] = logits[:, known].softmax(-1)
    there = teacher.places >= 0
    probabilities = teacher.at(1.0)
    expected = shared.gather(1, teacher.places.clamp(min=0))
    # The one that was not kept is among those that both know, so that nothing is missing of the share.
    assert int(teacher.indices[0].long().eq(2).sum()) == 1
    torch.testing.assert_close(probabilities[0][there[0]], expected[0][there[0]], rtol=5e-3, atol=1e-3)
    assert float(probabilities[~there].abs().sum()) == 0


def test_a_temperature_that_was_not_kept_is_refused() -> None:
    """A truncated distribution cannot be re-tempered."""
    teacher = kept(TopK(3, 10, (1.0, 2.0)), torch.randn(1, 10))
    with pytest.raises(HfDistillError, match=r"at temperature 1, 2; temperature 4 was asked for"):
        teacher.at(4.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": 0, "classes": 10}, "top_k=0 of 10"),
        ({"k": 10, "classes": 10}, "top_k=10 of 10"),
        ({"k": 2, "classes": 10, "temperatures": ()}, "temperatures"),
        ({"k": 2, "classes": 10, "store": "float8"}, "float8"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, object], said: str) -> None:
    """At construction."""
    with pytest.raises(HfDistillError, match=said):
        TopK(**given)  # type: ignore[arg-type]


def test_impossible_classes_stay_impossible() -> None:
    """A teacher says so by -inf."""
    logits = torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf]])
    teacher = kept(TopK(3, 4), logits)
    probabilities = teacher.at(1.0)
    np.testing.assert_allclose(probabilities[0, :2].sum(), 1.0, atol=1e-3)
    assert float(probabilities[0, 2]) == 0
