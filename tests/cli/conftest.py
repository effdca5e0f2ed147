"""What tests of commands share."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from hfdistill import cli


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder and a cache that end with the test; the command leaves environment and signals alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(cli, "_set_environment", lambda debug: None)
    monkeypatch.setattr(cli, "_end_on_sigterm", lambda: None)
