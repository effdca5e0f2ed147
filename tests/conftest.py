"""What every test shares: no network, no cache of the user's, one thread, no bars, no deprecated calls."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

# Before any import of torch or of a Hugging Face library: each reads these once, when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Workers of pytest-xdist inherit the folder from the process that starts them.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hfdistill-tests-")

import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    """Remove the caches that the tests have filled."""
    if not IS_WORKER:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


class DeprecationMessages(logging.Handler):
    """Keeps what a library says of its own deprecated ways; Transformers logs it instead of warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message if it is about a deprecation."""
        message = record.getMessage()
        if "deprecated" in message.lower():
            self.messages.append(message)


@pytest.fixture(autouse=True)
def no_deprecated_calls() -> Iterator[list[str]]:
    """Fail a test during which Transformers logs that something is deprecated; a test may take such words back."""
    handler = DeprecationMessages()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    if "transformers.utils.logging" in sys.modules:
        # Else only the first test of a process that meets a message would fail.
        sys.modules["transformers.utils.logging"].warning_once.cache_clear()
    yield handler.messages
    logger.removeHandler(handler)
    assert not handler.messages, "Transformers calls this deprecated: " + "; ".join(handler.messages)
