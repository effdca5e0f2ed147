"""Knowledge distillation for Hugging Face models.

A student, a teacher, and the knowledge that passes between them, inside the Transformers ``Trainer``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hfdistill._version import __version__ as __version__

# Every public name and the module it lives in. A module is imported when one of its names is first used, so that
# `import hfdistill` and `hfdistill --help` load neither torch nor transformers.
_MODULES = {
    "Adversarial": "features",
    "Attentions": "features",
    "Boxes": "boxes",
    "CachedTeacher": "cache",
    "DistillationConfig": "config",
    "DistillationTrainer": "trainer",
    "EmaTeacher": "teachers",
    "Embeddings": "embeddings",
    "EnsembleTeacher": "teachers",
    "HfDistillError": "errors",
    "HiddenStates": "features",
    "Labelled": "features",
    "Logits": "knowledge",
    "MappedTeacher": "teachers",
    "Masks": "boxes",
    "Module": "features",
    "Objective": "objective",
    "OwnBase": "teachers",
    "Peer": "teachers",
    "Relations": "features",
    "ReplayedViews": "replay",
    "Span": "features",
    "TaskLoss": "knowledge",
    "Window": "features",
    "ZeroShotTeacher": "teachers",
    "distillation_space": "search_space",
    "student_from_teacher": "students",
    "student_with_distillation_token": "students",
}

__all__ = sorted(_MODULES)

if TYPE_CHECKING:
    from hfdistill.boxes import Boxes as Boxes
    from hfdistill.boxes import Masks as Masks
    from hfdistill.cache import CachedTeacher as CachedTeacher
    from hfdistill.config import DistillationConfig as DistillationConfig
    from hfdistill.embeddings import Embeddings as Embeddings
    from hfdistill.errors import HfDistillError as HfDistillError
    from hfdistill.features import Adversarial as Adversarial
    from hfdistill.features import Attentions as Attentions
    from hfdistill.features import HiddenStates as HiddenStates
    from hfdistill.features import Labelled as Labelled
    from hfdistill.features import Module as Module
    from hfdistill.features import Relations as Relations
    from hfdistill.features import Span as Span
    from hfdistill.features import Window as Window
    from hfdistill.knowledge import Logits as Logits
    from hfdistill.knowledge import TaskLoss as TaskLoss
    from hfdistill.objective import Objective as Objective
    from hfdistill.replay import ReplayedViews as ReplayedViews
    from hfdistill.search_space import distillation_space as distillation_space
    from hfdistill.students import student_from_teacher as student_from_teacher
    from hfdistill.students import student_with_distillation_token as student_with_distillation_token
    from hfdistill.teachers import EmaTeacher as EmaTeacher
    from hfdistill.teachers import EnsembleTeacher as EnsembleTeacher
    from hfdistill.teachers import MappedTeacher as MappedTeacher
    from hfdistill.teachers import OwnBase as OwnBase
    from hfdistill.teachers import Peer as Peer
    from hfdistill.teachers import ZeroShotTeacher as ZeroShotTeacher
    from hfdistill.trainer import DistillationTrainer as DistillationTrainer
else:
    # Hidden from type checkers, which would otherwise let every misspelt name through.
    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
