"""Ways to build a student."""

from __future__ import annotations

from hfdistill.students.from_teacher import student_from_teacher as student_from_teacher
