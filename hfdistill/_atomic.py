"""Files and folders that are there whole or not at all.

Everything is written under a temporary name beside the target and then renamed, so that a killed process or a full disk
leaves the former content, never half of the new one.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from safetensors import SafetensorError

from hfdistill.errors import HfDistillError

if TYPE_CHECKING:
    from torch import Tensor

_REMEDIES = {
    errno.ENOSPC: "Free some space there, or choose an output folder on another disk.",
    errno.EDQUOT: "Your quota there is used up: free some space, or choose another output folder.",
    errno.EROFS: "That file system is read-only: choose another output folder.",
    errno.EACCES: "Choose an output folder that you may write to, or change its permissions.",
    errno.EPERM: "Choose an output folder that you may write to, or change its permissions.",
    errno.ENOTDIR: "A part of that path is a file: choose another output folder, or move the file away.",
    errno.EEXIST: "A part of that path is a file: choose another output folder, or move the file away.",
    errno.EFBIG: "Your system limits the size of files there: raise the limit, or choose an output folder elsewhere.",
    errno.EISDIR: "A folder of that name is in the way: move it away, or choose another output folder.",
}


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8; missing parent folders are made.

    Raises:
        HfDistillError: if the file cannot be written; what was there before is untouched.

    """
    with replacement(path) as temporary:
        # Bytes, so that Windows does not turn each line end into two characters.
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, data: object) -> None:
    """Write ``data`` as indented JSON; NaN and infinities, which JSON does not know, become null.

    Raises:
        HfDistillError: if the file cannot be written; what was there before is untouched.

    """
    write_text(path, json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` as a safetensors file.

    Raises:
        HfDistillError: if the file cannot be written; what was there before is untouched.

    """
    # Imported here because safetensors.torch imports torch, and writers of text and JSON need not wait for it.
    from safetensors.torch import save_file

    with replacement(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


@contextmanager
def replacement(path: str | Path) -> Iterator[Path]:
    """Give the name of a temporary file that takes the place of ``path`` when the block, which writes it, ends well.

    Raises:
        HfDistillError: if the file cannot be written; what was there before is untouched.

    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # some disks report that they are full only now
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        _refuse(path, error)
    finally:
        _remove(temporary)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder that takes the place of ``path`` when the block ends well.

    A folder that is at ``path`` already is kept until then, and stays if the block raises. What an earlier, killed
    process left under the temporary name is removed first, so a large model is never left lying about twice.

    Raises:
        HfDistillError: if the folder cannot be made, filled or renamed.

    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.incomplete")
    former = path.with_name(f".{path.name}.former")
    try:
        if former.exists() and not path.exists():
            former.rename(path)  # the process was killed between the two renames below
        shutil.rmtree(former, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(former)  # no system replaces a folder that is not empty in one step
        temporary.rename(path)
        shutil.rmtree(former, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        _refuse(path, error)
    finally:
        if former.exists() and not path.exists():
            former.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink()
    except OSError:
        # It was renamed, or never made; and where it cannot be removed, the first error is the one to tell.
        return


def _refuse(path: Path, error: OSError | SafetensorError) -> NoReturn:
    if isinstance(error, OSError):
        number, cause = error.errno, error.strerror or str(error)
    else:
        # safetensors passes the system's error on as text: "I/O error: No space left on device (os error 28)".
        found = re.search(r"os error (\d+)", str(error))
        number, cause = (int(found[1]) if found else None), str(error)
    remedy = _REMEDIES.get(number or 0, "Choose another output folder.")
    raise HfDistillError(f"Cannot write {path}: {cause}. {remedy}") from error


def _finite(data: object) -> object:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data
