"""Checked pairs of student and teacher features, teacher detached, in float32 or wider."""

from __future__ import annotations

from torch import Tensor

from hfdistill.losses._checks import require_floating, require_rows, widened


def _floating_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    require_floating("student features", student)
    require_floating("teacher features", teacher)
    return widened(student), widened(teacher.detach())


def feature_pair(loss: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Features of one width on both sides: (rows, width) or (rows, positions, width)."""
    if student.ndim not in (2, 3) or student.shape != teacher.shape:
        raise ValueError(
            f"{loss} got student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)}, expected "
            "two equal shapes (rows, width) or (rows, positions, width); project the student to the teacher's width."
        )
    return _floating_pair(student, teacher)


def map_pair(loss: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Features (rows, positions, width) that agree in rows and positions; 2 positions or more, widths may differ."""
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"{loss} got student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)}, expected "
            "(rows, positions, width) with equal rows and positions; pool the larger map to the smaller, and turn "
            "(rows, channels, height, width) into it by .flatten(2).transpose(1, 2)."
        )
    if student.shape[1] < 2:
        raise ValueError(
            f"{loss} got {student.shape[1]} position(s), expected at least 2: it compares positions with each other "
            "and is constant for fewer; use hint or cosine_distance."
        )
    return _floating_pair(student, teacher)


def example_pair(loss: str, student: Tensor, teacher: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Features flattened to one vector a row, for at least so many rows; widths may differ."""
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ValueError(
            f"{loss} got student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)}, expected "
            "(rows, width) or (rows, positions, width) with equal rows; select the same rows from both."
        )
    require_rows(loss, len(student), least)
    student, teacher = _floating_pair(student, teacher)
    return student.flatten(1), teacher.flatten(1)
