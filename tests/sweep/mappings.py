"""The classes of the sweep: those in the auto mappings of the tasks that the table knows."""

from __future__ import annotations

import transformers

from hfdistill.tasks import known_auto_classes


def classes() -> list[tuple[str, str]]:
    """Every pair of an auto class and a class that it loads; a class that several load stands under the first."""
    found: dict[str, str] = {}
    for auto_class in known_auto_classes():
        for entry in getattr(transformers, auto_class)._model_mapping._model_mapping.values():
            for name in (entry,) if isinstance(entry, str) else entry:
                found.setdefault(name, auto_class)
    return [(auto_class, name) for name, auto_class in found.items()]
