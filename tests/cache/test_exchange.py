"""A cache becomes a data set and a cache again, bit for bit; what is cut off, missing or in the way is said."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from hfdistill import CachedTeacher, HfDistillError
from hfdistill.cache import Manifest
from hfdistill.cache_card import size_category
from hfdistill.cache_exchange import export_cache, import_cache, push_cache
from tests.cache import runs
from tests.cache.stores import FORMS, store


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.parametrize("form", FORMS)
def test_a_cache_comes_back_bit_for_bit(tmp_path: Path, form: str) -> None:
    store(tmp_path / "cache", form)
    exported = export_cache(tmp_path / "cache", tmp_path / "set")
    assert (exported.files, exported.examples) == (5, 12)
    assert exported.bytes == sum(file.stat().st_size for file in (tmp_path / "set").glob("data/*.parquet"))
    assert str(exported).startswith(f"{tmp_path / 'set'}: 12 examples in 5 files, ")
    imported = import_cache(tmp_path / "set", tmp_path / "back")
    assert (imported.files, imported.examples) == (4, 12)
    assert shards(tmp_path / "back") == shards(tmp_path / "cache")
    there, here = Manifest.read(tmp_path / "back"), Manifest.read(tmp_path / "cache")
    assert there is not None
    assert here is not None
    # A folder of this machine is nobody's business.
    assert there == replace(here, teacher=replace(here.teacher, name=None))


def test_a_large_shard_goes_through_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfdistill.cache_tables.GROUP_BYTES", 300)
    store(tmp_path / "cache", "hidden states", shards=1, examples=30)
    export_cache(tmp_path / "cache", tmp_path / "set")
    import_cache(tmp_path / "set", tmp_path / "back")
    assert shards(tmp_path / "back") == shards(tmp_path / "cache")


def test_datasets_reads_it(tmp_path: Path) -> None:
    cache = store(tmp_path / "cache", "hidden states")
    export_cache(tmp_path / "cache", tmp_path / "set")
    found = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "read"))["train"]
    assert found.features["logits"] == datasets.List(datasets.List(datasets.Value("float16"), length=7))
    assert len(found) == 12
    keys = np.array([[int(key[:16], 16), int(key[16:], 16)] for key in found["key"]], np.uint64)
    stored = cache.index.read(cache.find(keys), "logits", "rows")
    assert [len(each) for each in stored] == [len(each) for each in found["logits"]]
    row = int(np.argmax([len(each) for each in stored]))
    np.testing.assert_array_equal(np.array(found[row]["logits"], np.float16), stored[row])


def test_the_card(tmp_path: Path) -> None:
    store(tmp_path / "cache", "top-k")
    export_cache(tmp_path / "cache", tmp_path / "set")
    _, head, text = (tmp_path / "set" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["configs"] == [{"config_name": "default", "data_files": "data/*.parquet"}]
    assert yaml.safe_load(head)["size_categories"] == ["n<1K"]
    assert "a `ViTForImageClassification` (weights `0123456789abcdef`) says of 12 inputs" in text
    assert "| `logits.indices` | the lower 16 bits" in text
    assert 'import_cache("set", "cache")' in text
    assert "/home/me" not in text + (tmp_path / "set" / "cache.json").read_text()
    assert [size_category(count) for count in (999, 1000, 54_321, 2 * 10**9)] == [
        "n<1K",
        "1K<n<10K",
        "10K<n<100K",
        "n>1B",
    ]


def test_an_imported_cache_teaches_as_the_original(tmp_path: Path) -> None:
    filler = runs.trainer_of("vit", CachedTeacher(tmp_path / "cache", runs.teacher("vit")), tmp_path / "out")
    filler.fill_cache()
    export_cache(tmp_path / "cache", tmp_path / "set")
    import_cache(tmp_path / "set", tmp_path / "back")
    one, other = (runs.trained("vit", CachedTeacher(tmp_path / name), tmp_path / "out") for name in ("cache", "back"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def interrupted(names: Sequence[str], title: str) -> Iterator[str]:
    """Two shards, and then somebody presses Ctrl-C."""
    yield from names[:2]
    raise KeyboardInterrupt


def test_both_ways_go_on_after_an_interruption(tmp_path: Path) -> None:
    """cache.json comes last, and what is there is left alone."""
    store(tmp_path / "cache", "dense")
    ways = ((export_cache, "cache", "set", "data/*.parquet"), (import_cache, "set", "back", "*.safetensors"))
    for way, source, target, pattern in ways:
        with pytest.raises(KeyboardInterrupt):
            way(tmp_path / source, tmp_path / target, bar=interrupted)
        assert not (tmp_path / target / "cache.json").exists()
        before = {file: file.stat().st_mtime_ns for file in (tmp_path / target).glob(pattern)}
        assert len(before) == 2
        assert way(tmp_path / source, tmp_path / target).examples == 12
        assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert shards(tmp_path / "back") == shards(tmp_path / "cache")


@pytest.mark.parametrize("way", [export_cache, import_cache])
def test_a_full_disk_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., object]
) -> None:
    store(tmp_path / "cache", "dense")
    export_cache(tmp_path / "cache", tmp_path / "set")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HfDistillError, match=r"No space left.*Free some space"):
        way(tmp_path / ("cache" if way is export_cache else "set"), tmp_path / "target")
    assert [file for file in (tmp_path / "target").rglob("*") if file.is_file()] == []


def test_a_file_that_is_cut_off_or_damaged_is_refused_by_name(tmp_path: Path) -> None:
    store(tmp_path / "cache", "dense", shards=1, examples=200)
    export_cache(tmp_path / "cache", tmp_path / "set")
    (table,) = (tmp_path / "set" / "data").iterdir()
    whole = table.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (whole[:-1], whole[:100], b"", damaged):
        table.write_bytes(content)
        with pytest.raises(HfDistillError, match=rf"{table.name} is no whole shard.*again"):
            import_cache(tmp_path / "set", tmp_path / "back")
        assert not (tmp_path / "back").exists() or not any((tmp_path / "back").iterdir())
    pq.write_table(pq.read_table(io.BytesIO(whole)).slice(0, 150), table)
    with pytest.raises(HfDistillError, match=r"has 150 rows, and cache.json beside it says 200"):
        import_cache(tmp_path / "set", tmp_path / "back")
    pq.write_table(pq.read_table(io.BytesIO(whole)).drop_columns("scores"), table)
    with pytest.raises(HfDistillError, match="its columns are key, logits; expected key, logits, scores"):
        import_cache(tmp_path / "set", tmp_path / "back")
    table.unlink()
    with pytest.raises(HfDistillError, match=f"lacks 1 of 1 shards, such as data/{table.name}"):
        import_cache(tmp_path / "set", tmp_path / "back")


def test_a_shard_that_was_cut_off_is_not_exported(tmp_path: Path) -> None:
    store(tmp_path / "cache", "dense", shards=1)
    (shard,) = (tmp_path / "cache").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(HfDistillError, match=f"{shard.name} is no whole shard"):
        export_cache(tmp_path / "cache", tmp_path / "set")


def test_what_is_in_the_way_or_missing_is_said(tmp_path: Path) -> None:
    store(tmp_path / "cache", "dense")
    store(tmp_path / "other", "dense")
    export_cache(tmp_path / "cache", tmp_path / "set")
    for way, source, target in ((export_cache, "cache", "set"), (import_cache, "set", "cache")):
        with pytest.raises(HfDistillError, match="holds a cache already; choose another folder"):
            way(tmp_path / source, tmp_path / target)
    (tmp_path / "set" / "cache.json").unlink()
    with pytest.raises(HfDistillError, match=r"holds no cache\.json. Was the export interrupted"):
        import_cache(tmp_path / "set", tmp_path / "back")
    with pytest.raises(HfDistillError, match=r"holds other files, such as data/shard-"):
        export_cache(tmp_path / "other", tmp_path / "set")
    with pytest.raises(HfDistillError, match="is a cache itself"):
        import_cache(tmp_path / "cache", tmp_path / "back")
    with pytest.raises(HfDistillError, match="is no filled cache"):
        export_cache(tmp_path / "nothing", tmp_path / "more")
    with pytest.raises(HfDistillError, match="expected the folder of an exported cache"):
        import_cache("no name", tmp_path / "back")
    with pytest.raises(HfDistillError, match="could not be downloaded"):
        import_cache("nobody/nothing", tmp_path / "back")
    with pytest.raises(HfDistillError, match="HF_HUB_OFFLINE=1"):
        push_cache(tmp_path / "cache", "me/cache")


def test_a_stranger_cannot_name_files_outside_of_the_folder(tmp_path: Path) -> None:
    store(tmp_path / "cache", "dense", shards=1)
    export_cache(tmp_path / "cache", tmp_path / "set")
    manifest = tmp_path / "set" / "cache.json"
    given = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(given | {"rows": {"../../elsewhere": 4}}))
    with pytest.raises(HfDistillError, match="names shards that cannot be files"):
        import_cache(tmp_path / "set", tmp_path / "back")
