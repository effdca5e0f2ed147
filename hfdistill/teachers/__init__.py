"""Where targets come from: every teacher is a callable `(inputs) -> Targets`, and the objective sees no difference."""

from __future__ import annotations

from hfdistill.teachers.ensemble import EnsembleTeacher, LiveEnsemble, LiveMember
from hfdistill.teachers.kept import KeptLogits
from hfdistill.teachers.live import LiveTeacher
from hfdistill.teachers.mapped import MappedLogits, MappedTeacher
from hfdistill.teachers.moving_average import AverageTeacher, EmaTeacher
from hfdistill.teachers.own_base import OwnBase, OwnBaseTeacher
from hfdistill.teachers.peer import Peer, PeerForward, PeerTeacher
from hfdistill.teachers.targets import Targets, Teacher
from hfdistill.teachers.zero_shot import ZeroShotTeacher

__all__ = [
    "AverageTeacher",
    "EmaTeacher",
    "EnsembleTeacher",
    "KeptLogits",
    "LiveEnsemble",
    "LiveMember",
    "LiveTeacher",
    "MappedLogits",
    "MappedTeacher",
    "OwnBase",
    "OwnBaseTeacher",
    "Peer",
    "PeerForward",
    "PeerTeacher",
    "Targets",
    "Teacher",
    "ZeroShotTeacher",
]
