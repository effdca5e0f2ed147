"""Data: the examples of a recipe, split, labelled and seen through the processors of both models."""

from __future__ import annotations

from hfdistill.data.examples import STUDENT, TEACHER, Examples, whole_batch
from hfdistill.data.kind import Kind, View
from hfdistill.data.labels import LabelSpace
from hfdistill.data.prepared import PreparedData, prepare
from hfdistill.data.splits import TaskData, read_data

__all__ = [
    "STUDENT",
    "TEACHER",
    "Examples",
    "Kind",
    "LabelSpace",
    "PreparedData",
    "TaskData",
    "View",
    "prepare",
    "read_data",
    "whole_batch",
]
