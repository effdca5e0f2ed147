"""What users do with a cache and the Hub, in a process of its own; writes what happened as JSON.

The environment that points to the server on loopback is read when `huggingface_hub` is imported. Usage: a work folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from hfdistill import HfDistillError
from hfdistill.cache_exchange import import_cache, push_cache
from tests.cache.stores import store


def refusal(action: Callable[[], object]) -> str:
    """The message of the one error that a user can mend."""
    try:
        action()
    except HfDistillError as error:
        return str(error)
    return "it worked"


def same(one: Path, other: Path) -> bool:
    """Whether two caches hold the same shards, bit for bit."""
    found = [{file.name: file.read_bytes() for file in each.glob("*.safetensors")} for each in (one, other)]
    return found[0] == found[1]


def main(work: Path) -> dict[str, Any]:
    """Push, import, push another cache in its place, and all that can be wrong."""
    cache, other = work / "cache", work / "other"
    store(cache, "top-k")
    store(other, "dense", shards=1)
    pushed = push_cache(cache, "tester/cache", private=True)
    happened: dict[str, Any] = {"where": pushed.where, "files": pushed.files, "bytes": pushed.bytes}
    happened["imported"] = import_cache("tester/cache", work / "back").examples
    happened["same"] = same(cache, work / "back")
    push_cache(other, "tester/cache")
    import_cache("tester/cache", work / "back of other")
    happened["replaced"] = same(other, work / "back of other")
    happened["branch"] = push_cache(other, "tester/cache", revision="next/try").where
    happened["refusals"] = {
        "no repository": refusal(lambda: import_cache("tester/nothing", work / "no")),
        "revision": refusal(lambda: import_cache("tester/cache", work / "no", revision="nowhere")),
        "token": refusal(lambda: import_cache("tester/cache", work / "no", token="hf_wrong")),
        "push token": refusal(lambda: push_cache(cache, "tester/more", token="hf_wrong")),
        "namespace": refusal(lambda: push_cache(cache, "google/cache")),
        "name": refusal(lambda: push_cache(cache, "not a name")),
        "visibility": refusal(lambda: push_cache(cache, "tester/public", private=True)),
        "storage": refusal(lambda: push_cache(cache, "tester/full")),
        "no cache": refusal(lambda: import_cache("tester/public", work / "no")),
    }
    happened["something left"] = (work / "no").exists()
    endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
    happened["refusals"]["network"] = refusal(lambda: push_cache(cache, "tester/more"))
    happened["refusals"]["import network"] = refusal(lambda: import_cache("tester/cache", work / "no"))
    constants.ENDPOINT = endpoint
    return happened


if __name__ == "__main__":
    work_folder = Path(sys.argv[1])
    (work_folder / "results.json").write_text(json.dumps(main(work_folder)))
