"""The embedded text: the topics of Python's own help, which ships with every Python (PSF licence)."""

from __future__ import annotations

import datasets
import numpy as np

SPLIT_SEED = 0
HELD_OUT = 8
"""One topic in so many is for the test, another for validation."""


def pydoc_topics() -> datasets.DatasetDict:
    """Column text, one topic a row; which topics are for the test follows from their names alone."""
    # Half a megabyte that nobody else needs.
    from pydoc_data.topics import topics

    names = sorted(topics)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(names))
    count = len(names) // HELD_OUT
    parts = {"train": order[2 * count :], "validation": order[count : 2 * count], "test": order[:count]}
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"text": [topics[names[place]] for place in sorted(places)]})
            for split, places in parts.items()
        }
    )
