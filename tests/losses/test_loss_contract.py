"""What holds for every loss in LOSSES; a new loss is taken up by itself."""

from __future__ import annotations

import inspect
from collections.abc import Collection

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hfdistill import losses
from hfdistill.losses import LOSSES, standardize


def losses_with(option: str, but: Collection[str] = ()) -> list[str]:
    return [name for name, loss in LOSSES.items() if option in inspect.signature(loss).parameters and name not in but]


# Exceptions to the contract, each with its reason.
NOT_ZERO_AT_TEACHER = {
    "contrastive": "other examples are never impossible",
    "hard_label": "a cross-entropy with one class",
    "normalized_kd": "a cross-entropy, which keeps the teacher's entropy",
}
COMPARES_ROWS = {
    "dist": "its intra-class part runs over rows",
    "pkd": "channels are standardised over rows",
    "probabilistic_transfer": "neighbours are rows",
    "relational_angle": "triples of rows",
    "relational_distance": "pairs of rows",
    "similarity_preserving": "pairs of rows",
}
# A smaller batch makes the loss constant; not in the table: 0 rows are fine and give 0 values.
LEAST_ROWS = {
    "contrastive": 2,
    "dist": 3,
    "pkd": 1,
    "probabilistic_transfer": 2,
    "relational_angle": 3,
    "relational_distance": 3,
    "similarity_preserving": 2,
}
NOT_SCALED_BY_T_SQUARED = {
    "contrastive": "its temperature is a margin, not a softening of two distributions",
    "normalized_kd": "its target part is at T = 1",
}
CHANGES_WITH_T = {
    "contrastive": "no T squared",
    "dist": "a correlation ignores scale, so the published T squared makes its gradient grow",
}
EXCEPTIONS = NOT_ZERO_AT_TEACHER, COMPARES_ROWS, LEAST_ROWS, NOT_SCALED_BY_T_SQUARED, CHANGES_WITH_T


def test_names_are_sorted_and_complete():
    assert losses.__all__ == sorted(losses.__all__)
    assert set(LOSSES) < set(losses.__all__)
    assert list(LOSSES) == sorted(LOSSES)


def test_exceptions_name_existing_losses():
    assert set().union(*EXCEPTIONS) <= set(LOSSES)


def test_options_can_be_read_from_the_signature(case):
    student, teacher, *options = inspect.signature(case.function).parameters.values()
    assert (case.function.__name__, student.name, teacher.name) == (case.name, "student", "teacher")
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    required = {option.name for option in options if option.default is inspect.Parameter.empty}
    assert required <= {"labels", "indices"}


def test_one_value_a_row_in_a_wide_dtype(case):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        student, teacher = case.pair(dtype)
        value = case(student, teacher)
        assert value.shape == (len(student),)
        assert value.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)


def test_zero_and_flat_where_student_equals_teacher(case):
    student, _ = case.pair()
    value = case(student, student.detach().clone())
    (gradient,) = torch.autograd.grad(value.sum(), student)
    if case.name in NOT_ZERO_AT_TEACHER:
        assert value.min() > 1e-9
    else:
        assert value.abs().max() < 1e-10
        assert gradient.abs().max() < 1e-10


def test_non_negative(case):
    for dtype in (torch.float64, torch.float32):
        student, teacher = case.pair(dtype)
        for scale in (0.0, 1e-3, 1.0, 100.0):
            assert case(student * scale, teacher).min() >= 0
            assert case(teacher + scale * 1e-3 * student, teacher).min() >= -1e-6


def test_rows_do_not_touch_each_other(case):
    student, teacher = case.pair()
    for row in range(len(student)):
        (gradient,) = torch.autograd.grad(case(student, teacher)[row], student)
        touched = gradient.flatten(1).abs().sum(1) > 0
        assert touched[row]
        assert touched.sum() == (len(student) if case.name in COMPARES_ROWS else 1)


def test_gradient_is_the_derivative(case):
    student, teacher = case.pair()
    weights = torch.linspace(0.5, 2.0, len(student), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: weights * case(values, teacher), student)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(case, dtype):
    student, teacher = case.pair(dtype)
    value = case(student, teacher)
    expected = case(student.float(), teacher.float())
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.dtype == dtype


def test_autocast_does_not_lower_the_precision(case):
    student, teacher = case.pair(torch.float32)
    expected = case(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        value = case(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", losses_with("temperature", but=NOT_SCALED_BY_T_SQUARED), indirect=True)
def test_temperature_scales_by_its_square(case):
    student, teacher = case.pair()
    torch.testing.assert_close(
        case(student * 3, teacher * 3, temperature=3.0), 9 * case(student, teacher, temperature=1.0)
    )


@pytest.mark.parametrize("case", losses_with("temperature", but=CHANGES_WITH_T), indirect=True)
def test_gradient_size_is_bounded_over_temperature(case):
    student, teacher = case.pair()
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        (gradient,) = torch.autograd.grad(case(student, teacher, temperature=temperature).mean(), student)
        sizes.append(gradient.norm().item())
    assert max(sizes) / min(sizes) < 8


def test_finite_at_huge_values(case):
    for pattern in (1.0, -1.0):
        for dtype in (torch.float32, torch.float64):
            student, teacher = case.pair(dtype)
            for huge_s, huge_t in (
                (1e4 * student.sign(), 1e4 * pattern * student.sign()),
                (1e4 * student, pattern * 1e4 * teacher),
                (1e4 * student, teacher),
                (student, 1e4 * teacher),
                (0 * student, teacher),
                (student, 0 * teacher),
            ):
                value = case(huge_s, huge_t.detach())
                (gradient,) = torch.autograd.grad(value.sum(), student)
                assert value.isfinite().all()
                assert gradient.isfinite().all()


def test_teacher_gets_no_gradient(case):
    student, teacher = case.pair()
    teacher.requires_grad_()
    case(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_no_value_is_read_back_from_the_device(case):
    student, teacher = case.pair()
    # Fake tensors have no values: what would stall a GPU (item, a branch on a tensor, a mask as an index) fails here.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_student, fake_teacher = mode.from_tensor(student), mode.from_tensor(teacher)
        value = case(fake_student, fake_teacher)
        (gradient,) = torch.autograd.grad(value.sum(), fake_student)
    assert value.shape == (len(student),)
    assert gradient.shape == student.shape


def test_batch_too_small_to_teach_is_refused(case):
    least = LEAST_ROWS.get(case.name, 0)
    student, teacher = case.pair(rows=least)
    value = case(student, teacher)
    assert value.shape == (least,)
    if least:
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert gradient.abs().max() > 1e-6
        with pytest.raises(
            ValueError, match=rf"got {(least - 1)} value|got a batch of {least - 1} row.* expected at least"
        ):
            case(*case.pair(rows=least - 1))


@pytest.mark.parametrize("case", losses_with("standardized"), indirect=True)
def test_standardized_option_is_standardize_applied_first(case):
    student, teacher = case.pair()
    value = case(student, teacher, standardized=True)
    torch.testing.assert_close(value, case(standardize(student), standardize(teacher)))
    torch.testing.assert_close(value, case(3 * student + 1, 5 * teacher - 2, standardized=True), rtol=1e-5, atol=1e-6)
