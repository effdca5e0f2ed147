"""A shard of a cache as a parquet file that anybody can read, and back again bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hfdistill._atomic import replacement
from hfdistill.cache.keys import Keys
from hfdistill.cache.shards import COUNTS, DTYPES, KEYS, Shard
from hfdistill.errors import HfDistillError

KEY = "key"
"""The column of the examples' keys: 32 hexadecimal digits each."""
METADATA = b"hfdistill"
SUFFIX = ".parquet"
GROUP_BYTES = 16 * 2**20
"""How much of a shard is in memory while it is written, and in a row group of its file."""

Kinds = Mapping[str, str | None]


def write_table(shard: Shard, kinds: Kinds, path: Path) -> int:
    """Write a shard as a parquet file, a row an example; returns the number of rows.

    An array whose examples have one entry becomes a column of lists of one length, one with an entry for each place
    (`kinds`) a column of lists. Types and shapes also stand in the file's metadata.
    Errors: HfDistillError for a shard that does not hold these arrays, and for a full disk.
    """
    names = [name for name in shard.header if name != KEYS and not name.startswith(COUNTS)]
    if set(names) != set(kinds):
        raise HfDistillError(
            f"{shard.path} holds {', '.join(names)}, and cache.json speaks of {', '.join(kinds)}; expected a shard of "
            "this cache. Move the file away."
        )
    examples = len(shard.keys)
    described = {
        name: {"dtype": str(shard.array(name).dtype), "shape": shard.array(name).shape[1:], "along": kinds[name]}
        for name in kinds
    }
    fields = [(KEY, pa.string()), *((name, _column_type(shard.array(name), kinds[name])) for name in kinds)]
    schema = pa.schema(fields, metadata={METADATA: json.dumps({"format": 1, "arrays": described})})
    groups = -(-sum(shard.array(name).nbytes for name in kinds) // GROUP_BYTES) or 1
    rows = max(-(-examples // groups), 1)
    # Statistics and dictionaries serve search among repeated values, and there are none.
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with replacement(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for start in range(0, examples, rows):
            stop = min(start + rows, examples)
            columns = [
                _keys_as_text(shard.keys[start:stop]),
                *(_column(shard, name, kinds, start, stop) for name in kinds),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=rows)
    return examples


def read_table(path: Path, kinds: Kinds) -> tuple[Keys, dict[str, NDArray[Any]]]:
    """The keys and arrays of a shard from its parquet file, with the counts of places.

    Errors: HfDistillError for a file that is cut off, damaged, or of other columns.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        if set(table.column_names) != {KEY, *kinds}:
            raise ValueError(f"its columns are {', '.join(table.column_names)}; expected {', '.join((KEY, *kinds))}")
        arrays: dict[str, NDArray[Any]] = {}
        for name, kind in kinds.items():
            column = pa.concat_arrays(table[name].chunks)
            if kind is not None:
                counts = np.diff(column.offsets.to_numpy()).astype(np.int32)
                if not np.array_equal(arrays.setdefault(COUNTS + kind, counts), counts):
                    raise ValueError(f"{name} has other lengths than the columns before it")
                column = column.flatten()
            arrays[name] = _entries(column)
        return _keys_of_text(table[KEY].to_pylist()), arrays
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise HfDistillError(
            f"{path} is no whole shard of a cache ({error}). It was cut off, or written anew by another program; "
            "export or download it again."
        ) from error


def row_count(path: Path) -> int:
    """How many rows a parquet file has, from its footer. Errors: HfDistillError for a file that is cut off."""
    try:
        rows: int = pq.read_metadata(path).num_rows
    except (OSError, ValueError) as error:
        raise HfDistillError(f"{path} is no whole parquet file ({error}); delete it and export again.") from error
    return rows


def _column_type(array: NDArray[Any], kind: str | None) -> pa.DataType:
    found = pa.from_numpy_dtype(array.dtype)
    for size in reversed(array.shape[1:]):
        found = pa.list_(found, size)
    return found if kind is None else pa.list_(found)


def _column(shard: Shard, name: str, kinds: Kinds, start: int, stop: int) -> pa.Array:
    kind = kinds[name]
    if kind is None:
        return _lists(shard.array(name)[start:stop])
    starts = shard.starts[kind][start : stop + 1]
    entries = _lists(shard.array(name)[starts[0] : starts[-1]])
    return pa.ListArray.from_arrays(pa.array((starts - starts[0]).astype(np.int32)), entries)


def _lists(array: NDArray[Any]) -> pa.Array:
    """Entries `(examples, ...)`, each as nested lists."""
    found = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def _entries(column: pa.Array) -> NDArray[Any]:
    shape = [len(column)]
    while isinstance(column, pa.FixedSizeListArray):
        shape.append(column.type.list_size)
        column = column.flatten()
    array: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if column.null_count or array.dtype.str[1:] not in DTYPES.values():
        raise ValueError(f"it holds {column.type}, or empty places; expected plain numbers")
    return array.reshape(shape)


def _keys_as_text(keys: Keys) -> pa.Array:
    digits = keys.astype(">u8").tobytes().hex()
    return pa.array([digits[place : place + 32] for place in range(0, len(digits), 32)], pa.string())


def _keys_of_text(texts: list[str]) -> Keys:
    if any(len(text) != 32 for text in texts):
        raise ValueError(f"its column {KEY} holds something else than 32 hexadecimal digits")
    return np.frombuffer(bytes.fromhex("".join(texts)), ">u8").reshape(-1, 2).astype(np.uint64)
