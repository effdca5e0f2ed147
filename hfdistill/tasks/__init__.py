"""Tasks: what a head's outputs mean, which rows count, and the loss against labels."""

from hfdistill.tasks.embeddings import PooledTokens, Pooling
from hfdistill.tasks.heads import architecture_task, auto_class_name, known_auto_classes, named_task, task_of
from hfdistill.tasks.label_losses import LABEL_LOSSES
from hfdistill.tasks.layouts import UNLABELLED, Examples, Layout, Spans, Tokens
from hfdistill.tasks.pairs import ImageTextPairs
from hfdistill.tasks.queries import Pairs, Queries, TeacherLogits
from hfdistill.tasks.table import TASKS
from hfdistill.tasks.task import Classes, Task
from hfdistill.tasks.two_heads import TwoHeads

__all__ = [
    "LABEL_LOSSES",
    "TASKS",
    "UNLABELLED",
    "Classes",
    "Examples",
    "ImageTextPairs",
    "Layout",
    "Pairs",
    "PooledTokens",
    "Pooling",
    "Queries",
    "Spans",
    "Task",
    "TeacherLogits",
    "Tokens",
    "TwoHeads",
    "architecture_task",
    "auto_class_name",
    "known_auto_classes",
    "named_task",
    "task_of",
]
