"""A cache as a parquet data set: exported to a folder or the Hub, and imported again bit for bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of httpx or httpx2, by version
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
)
from transformers.utils.logging import tqdm

from hfdistill._atomic import write_json, write_text
from hfdistill.cache import Manifest
from hfdistill.cache.manifest import FILE
from hfdistill.cache.shards import SUFFIX as SHARD
from hfdistill.cache.shards import Shard, write_shard
from hfdistill.cache_card import FILES, CardFacts, cache_card
from hfdistill.cache_tables import SUFFIX, read_table, row_count, write_table
from hfdistill.card import hub_id
from hfdistill.errors import HfDistillError
from hfdistill.filling import readable
from hfdistill.hub import explained

DATA, README = "data", "README.md"
ROWS = "rows"
"""The key in an exported cache.json that tells the rows of each shard."""
MARKS, MARK = "marks", re.compile(r"whole-[0-9a-f]+\.json")
"""The words of recipes that all of their data's targets are here: how many views, rows and examples."""
COUNTS = ("views", "rows", "examples")
DATASET = "dataset"

Bar = Callable[[Sequence[Any], str], Iterable[Any]]
"""Goes through shards and shows a title beside a bar."""


@dataclass(frozen=True)
class Exchanged:
    """What lies at `where` now: how many files, examples and bytes."""

    where: str
    files: int
    examples: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.where}: {self.examples:,} examples in {self.files} files, {readable(self.bytes)}"


def export_cache(path: str | Path, folder: str | Path, bar: Bar | None = None) -> Exchanged:
    """Write a cache as a parquet data set into a new folder, which `datasets.load_dataset` reads too.

    A file a shard, a row an example, then a card (README.md), and at last cache.json, without which it is not whole:
    run it again after an interruption, and it goes on.
    Errors: HfDistillError for a folder that is no cache or an empty one, a target that holds something else, and a full
    disk.
    """
    manifest, shards = _cache(Path(path))
    target = Path(folder)
    _check_target(target, {f"{DATA}/{name}{SUFFIX}" for name in shards} | {README})
    rows = {}
    for name in (bar or _with_tqdm)(list(shards), "Export"):
        table = target / DATA / f"{name}{SUFFIX}"
        rows[name] = (
            row_count(table) if table.exists() else write_table(Shard(shards[name]), manifest.contents.kinds, table)
        )
    facts = CardFacts(target.name, sum(rows.values()), _bytes(target / DATA, rows))
    write_text(target / README, cache_card(manifest, facts))
    write_json(target / FILE, _told(manifest, rows, Path(path)))
    return Exchanged(str(target), len(rows) + 2, facts.examples, facts.size)


def import_cache(
    source: str | Path,
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    bar: Bar | None = None,
) -> Exchanged:
    """Make a cache of an exported one: a folder, or a data set on the Hub ("user/name"), at a `revision`.

    The shards are those of the original, bit for bit; cache.json comes last, so that half a cache is none. Run it again
    after an interruption, and it goes on.
    Errors: HfDistillError for what is no exported cache, files that are missing or cut off, a target that holds
    something else, no network, no permission, and a full disk.
    """
    target = Path(path)
    _check_target(target)
    folder = Path(source) if Path(source).is_dir() else _downloaded(str(source), revision, token)
    manifest, rows = _exported(folder)
    _check_target(target, {f"{name}{SHARD}" for name in rows})
    for name in (bar or _with_tqdm)(list(rows), "Import"):
        if not (target / f"{name}{SHARD}").exists():
            table = folder / DATA / f"{name}{SUFFIX}"
            keys, arrays = read_table(table, manifest.contents.kinds)
            if len(keys) != rows[name]:
                raise HfDistillError(
                    f"{table} has {len(keys)} rows, and {FILE} beside it says {rows[name]}; export or download again."
                )
            write_shard(target, keys, arrays, name)
    manifest.write(target)
    for mark, counts in _told_marks(folder).items():
        write_json(target / mark, counts)
    return Exchanged(str(target), len(rows) + 1, sum(rows.values()), _bytes(target, rows, SHARD))


def push_cache(
    path: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    bar: Bar | None = None,
) -> Exchanged:
    """Publish a cache on the Hub as a data set: parquet shards, cache.json and a card.

    The repository is made if it is not there; with `private` a public one is refused. `revision` is a branch. Shards
    are converted and sent one at a time and appear in one commit, so a broken upload publishes nothing; what has been
    sent is not sent again.
    Errors: HfDistillError for a folder that is no cache, a refused token, a missing right, no network.
    """
    manifest, shards = _cache(Path(path))
    with explained(repo_id, "you/my-cache"), TemporaryDirectory() as temporary:
        api = HfApi(token=token, library_name="hfdistill")
        address = api.create_repo(repo_id, repo_type=DATASET, private=private, exist_ok=True)
        name = address.repo_id
        if private and not api.dataset_info(name).private:
            raise HfDistillError(
                f"got private=True, but {name} exists and is public; make it private in its settings, or choose "
                "another name"
            )
        if revision is not None:
            api.create_branch(name, branch=revision, repo_type=DATASET, exist_ok=True)
        rows, size, operations = {}, 0, []
        for shard in (bar or _with_tqdm)(list(shards), "Push"):
            table = Path(temporary) / f"{shard}{SUFFIX}"
            rows[shard] = write_table(Shard(shards[shard]), manifest.contents.kinds, table)
            size += table.stat().st_size
            operation = CommitOperationAdd(f"{DATA}/{table.name}", table)
            api.preupload_lfs_files(name, [operation], repo_type=DATASET, revision=revision)
            if operation.path_or_fileobj == b"":  # it is there; small files may wait for the commit instead
                table.unlink()
            operations.append(operation)
        facts = CardFacts(name, sum(rows.values()), size)
        texts = {
            README: cache_card(manifest, facts),
            FILE: json.dumps(_told(manifest, rows, Path(path)), indent=2) + "\n",
        }
        operations += [CommitOperationAdd(file, text.encode()) for file, text in texts.items()]
        there = api.list_repo_files(name, revision=revision, repo_type=DATASET)
        stale = {file for file in there if Path(file).match(FILES)} - {each.path_in_repo for each in operations}
        deleted = [CommitOperationDelete(file) for file in sorted(stale)]
        message = "Upload a teacher's targets"
        api.create_commit(name, [*operations, *deleted], commit_message=message, repo_type=DATASET, revision=revision)
    return Exchanged(
        str(address) if revision is None else f"{address}/tree/{revision}", len(operations), facts.examples, size
    )


def _cache(path: Path) -> tuple[Manifest, dict[str, Path]]:
    """What a cache's manifest says, and its shards by name."""
    manifest = Manifest.read(path)
    shards = {file.stem: file for file in sorted(path.glob(f"[!.]*{SHARD}"))}
    if manifest is None or not shards:
        lacks = FILE if manifest is None else "shards"
        raise HfDistillError(
            f"{path} is no filled cache: it holds no {lacks}. Expected the folder of a CachedTeacher that has been "
            "filled (hfdistill cache RECIPE, or trainer.fill_cache())."
        )
    return manifest, shards


def _exported(folder: Path) -> tuple[Manifest, Mapping[str, int]]:
    """What the manifest of an exported cache says, and the rows of each of its shards."""
    manifest = Manifest.read(folder)
    if manifest is None:
        raise HfDistillError(
            f"{folder} is no exported cache: it holds no {FILE}. Was the export interrupted? Then run it again."
        )
    rows = json.loads((folder / FILE).read_text(encoding="utf-8")).get(ROWS)
    if not isinstance(rows, dict):
        raise HfDistillError(f"{folder} is a cache itself, and not an exported one; pass it on: CachedTeacher(path).")
    # They become the names of files here, and may come from a stranger.
    if not all(re.fullmatch(r"\w[\w-]*", name) and isinstance(count, int) for name, count in rows.items()):
        raise HfDistillError(f"{folder / FILE} names shards that cannot be files: {', '.join(rows)}.")
    missing = [name for name in rows if not (folder / DATA / f"{name}{SUFFIX}").is_file()]
    if missing:
        raise HfDistillError(
            f"{folder} lacks {len(missing)} of {len(rows)} shards, such as {DATA}/{missing[0]}{SUFFIX}; export or "
            "download it again."
        )
    return manifest, rows


def _check_target(target: Path, own: Iterable[str] | None = None) -> None:
    """Refuse a folder that holds something else than what is to be written there (`own`, if that is known yet)."""
    if (target / FILE).exists():
        raise HfDistillError(f"{target} holds a cache already; choose another folder, or delete that one first.")
    if own is None or not target.is_dir():
        return
    there = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    others = sorted(file for file in there - set(own) if not Path(file).name.startswith("."))
    if others:
        raise HfDistillError(f"{target} holds other files, such as {others[0]}; choose a new or empty folder.")


def _marks(cache: Path) -> dict[str, dict[str, int]]:
    """What marks count, by their names; what they are of may name folders of this machine."""
    found = {}
    for file in sorted(cache.glob("whole-*.json")):
        # One that cannot be read says nothing, and the one who imports the cache looks for himself.
        with suppress(ValueError, KeyError, TypeError):
            content = json.loads(file.read_text(encoding="utf-8"))
            found[file.name] = {key: int(content[key]) for key in COUNTS}
    return found


def _told_marks(folder: Path) -> dict[str, dict[str, int]]:
    """The marks of an exported cache. They become files here too, and may come from a stranger."""
    told = json.loads((folder / FILE).read_text(encoding="utf-8")).get(MARKS, {})
    return {name: {key: int(counts[key]) for key in COUNTS} for name, counts in told.items() if MARK.fullmatch(name)}


def _told(manifest: Manifest, rows: Mapping[str, int], cache: Path) -> dict[str, Any]:
    """The manifest for others: with each shard's rows and the marks, without the names of folders on this machine."""
    teacher = manifest.teacher
    config = {key: value for key, value in (teacher.config or {}).items() if key != "_name_or_path"}
    known = replace(teacher, name=hub_id(teacher.name), config=config if teacher.config is not None else None)
    return replace(manifest, teacher=known).to_dict() | {ROWS: dict(rows), MARKS: _marks(cache)}


def _downloaded(repo_id: str, revision: str | None, token: str | None) -> Path:
    try:
        found = snapshot_download(
            repo_id,
            repo_type=DATASET,
            revision=_commit(repo_id, revision, token),
            token=token,
            allow_patterns=[FILE, FILES],
            library_name="hfdistill",
        )
    except HFValidationError as error:
        raise HfDistillError(
            f"got {repo_id!r}, expected the folder of an exported cache, or a data set on the Hub such as you/my-cache"
        ) from error
    except HfHubHTTPError as error:
        raise HfDistillError(
            f"The Hub did not give the data set {repo_id} ({error.response.status_code}): is the name right, and "
            f"revision={revision!r}? For a private one, run `hf auth login`, or give a token that may read it."
        ) from error
    except (HTTPError, EntryNotFoundError, OSError) as error:
        raise HfDistillError(
            f"{repo_id} is no folder here, and could not be downloaded ({error}). Check the connection and "
            "HF_ENDPOINT, HF_HUB_OFFLINE and the space on the disk, then import again: it goes on where it stopped."
        ) from error
    return Path(found)


def _commit(repo_id: str, revision: str | None, token: str | None) -> str | None:
    """Which commit is meant; asked first, because a download that is refused takes what was there before."""
    try:
        return HfApi(token=token, library_name="hfdistill").dataset_info(repo_id, revision=revision).sha
    except OfflineModeIsEnabled:
        return revision  # offline on purpose: what was there before is all there is


def _bytes(folder: Path, names: Iterable[str], suffix: str = SUFFIX) -> int:
    return sum((folder / f"{name}{suffix}").stat().st_size for name in names)


def _with_tqdm(shards: Sequence[Any], title: str) -> Iterable[Any]:
    return tqdm(shards, desc=title)  # type: ignore[no-any-return]
