"""A teacher's targets on the disk: made once, found by what the teacher reads."""

from __future__ import annotations

from hfdistill.cache.cached import CachedTeacher
from hfdistill.cache.collator import CachingCollator, MissingTargetsError
from hfdistill.cache.manifest import Manifest, TeacherIdentity
from hfdistill.cache.store import Store
from hfdistill.cache.teacher import KeepsTargets, Reading, StoredTeacher

__all__ = [
    "CachedTeacher",
    "CachingCollator",
    "KeepsTargets",
    "Manifest",
    "MissingTargetsError",
    "Reading",
    "Store",
    "StoredTeacher",
    "TeacherIdentity",
]
