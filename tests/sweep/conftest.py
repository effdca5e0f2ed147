"""The sweep looks at hfdistill, so what Transformers' own models warn of is none of its business."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def no_deprecated_calls() -> None:
    """Models may call what Transformers has deprecated."""


@pytest.fixture(autouse=True)
def quiet_and_seeded() -> Iterator[None]:
    """No bars and no advice; the random state of other tests stays as it was."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with torch.random.fork_rng():
        yield
    transformers.logging.set_verbosity(verbosity)
