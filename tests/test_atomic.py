"""Files are there whole or not at all, and an error says path, cause and remedy."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfdistill import _atomic
from hfdistill.errors import HfDistillError

BIG = 100_000
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: _atomic.write_text(path, "x" * BIG),
    "json": lambda path: _atomic.write_json(path, ["x" * BIG]),
    "tensors": lambda path: _atomic.write_tensors(path, {"x": torch.zeros(BIG)}),
}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def names(folder: Path) -> list[str]:
    """Return the names of everything in the folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 10 kB, as a full disk does: a real error of the system, also for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_text_is_utf8_with_plain_line_ends_and_parents_are_made(tmp_path: Path) -> None:
    """Text comes back to the byte, from a folder that was not there before."""
    _atomic.write_text(tmp_path / "a" / "b" / "report.md", "α = ½\nsecond\n")
    assert (tmp_path / "a" / "b" / "report.md").read_bytes() == "α = ½\nsecond\n".encode()
    assert names(tmp_path / "a" / "b") == ["report.md"]


def test_json_is_valid_json_whatever_the_numbers(tmp_path: Path) -> None:
    """A NaN in the logs does not make a file that other readers refuse."""
    _atomic.write_json(tmp_path / "a.json", {"loss": float("nan"), "rows": [(1, float("inf")), 0.5, None, "ü"]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"loss": None, "rows": [[1, None], 0.5, None, "ü"]}
    assert "ü" in text
    assert text.endswith("}\n")


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    """Types, shapes and values survive, also of views and of tensors with a gradient."""
    matrix = torch.arange(6.0, requires_grad=True).view(2, 3)
    _atomic.write_tensors(tmp_path / "a.safetensors", {"logits": matrix.t(), "labels": torch.tensor([1, 2])})
    loaded = load_file(tmp_path / "a.safetensors")
    assert torch.equal(loaded["logits"], matrix.t())
    assert torch.equal(loaded["labels"], torch.tensor([1, 2]))


@writers
def test_the_former_file_stays_when_the_disk_is_full(
    tmp_path: Path, small_disk: None, write: Callable[[Path], None]
) -> None:
    """Neither a half-written file nor a temporary one is left, and the former content is."""
    path = tmp_path / "file"
    path.write_text("former", encoding="utf-8")
    with pytest.raises(HfDistillError, match=r"Cannot write .*file: .*File too large.*raise the limit"):
        write(path)
    assert path.read_text(encoding="utf-8") == "former"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "read-only"), (errno.EACCES, "may write to")],
)
def test_the_message_has_the_remedy_for_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    """A full disk and a forbidden folder are mended in different ways; some disks tell only at the sync."""

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HfDistillError, match=rf"{os.strerror(number)}\. .*{remedy}"):
        _atomic.write_text(tmp_path / "report.md", "text")
    assert names(tmp_path) == []


@writers
def test_a_path_below_a_file_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """The output folder's name may be that of a file."""
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(HfDistillError, match="A part of that path is a file"):
        write(tmp_path / "out" / "report.md")


def test_a_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    """A folder is never removed to make room for a file."""
    (tmp_path / "report.md" / "inside").mkdir(parents=True)
    with pytest.raises(HfDistillError, match="folder of that name is in the way"):
        _atomic.write_text(tmp_path / "report.md", "text")
    assert names(tmp_path) == ["report.md"]


def test_a_folder_appears_whole_and_takes_the_place_of_the_former(tmp_path: Path) -> None:
    """While the block runs the former folder is there, afterwards only the new one."""
    target = tmp_path / "run" / "student"
    for content in ("first", "second"):
        with _atomic.new_folder(target) as temporary:
            (temporary / content).write_text(content, encoding="utf-8")
            assert content == "first" or names(target) == ["first"]
        assert names(target) == [content]
    assert names(tmp_path / "run") == ["student"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("stop")])
def test_an_interrupted_folder_leaves_the_former(tmp_path: Path, error: BaseException) -> None:
    """Ctrl-C in the middle of a save changes nothing, and is not dressed up as another error."""
    with _atomic.new_folder(tmp_path / "student") as temporary:
        (temporary / "former").touch()
    with pytest.raises(type(error)), _atomic.new_folder(tmp_path / "student") as temporary:
        (temporary / "half").touch()
        raise error
    assert names(tmp_path) == ["student"]
    assert names(tmp_path / "student") == ["former"]


def test_a_full_disk_inside_the_block_is_told_with_the_folder(tmp_path: Path, small_disk: None) -> None:
    """What a library writes into the folder fails as our own writing does."""
    with (
        pytest.raises(HfDistillError, match=r"Cannot write .*student: File too large"),
        _atomic.new_folder(tmp_path / "student") as temporary,
    ):
        (temporary / "weights").write_bytes(b"x" * BIG)
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_cleared_up(tmp_path: Path) -> None:
    """A kill during the save leaves a temporary folder; a kill between two renames leaves the former one aside."""
    (tmp_path / ".student.incomplete").mkdir()
    (tmp_path / ".student.incomplete" / "half").touch()
    (tmp_path / ".student.former").mkdir()
    (tmp_path / ".student.former" / "former").touch()
    with pytest.raises(RuntimeError), _atomic.new_folder(tmp_path / "student") as temporary:
        assert names(temporary) == []
        assert names(tmp_path / "student") == ["former"]
        raise RuntimeError
    assert names(tmp_path) == ["student"]


def test_a_failed_rename_brings_the_former_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step may fail too."""
    with _atomic.new_folder(tmp_path / "student") as temporary:
        (temporary / "former").touch()
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name == ".student.incomplete":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(HfDistillError, match="Free some space"), _atomic.new_folder(tmp_path / "student"):
        pass
    assert names(tmp_path / "student") == ["former"]
