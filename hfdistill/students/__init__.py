"""Ways to build a student."""

from __future__ import annotations

from hfdistill.students.distillation_token import student_with_distillation_token as student_with_distillation_token
from hfdistill.students.from_teacher import student_from_teacher as student_from_teacher
