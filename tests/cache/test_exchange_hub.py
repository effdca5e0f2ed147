"""A cache goes to the Hub as a data set and comes back; what goes wrong is explained, and publishes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub.server import HubServer

# The client starts Transformers: seconds alone, minutes on a busy machine.
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Happened:
    """The server after the client is done, and what the client saw."""

    hub: HubServer
    results: dict[str, Any]


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Happened]:
    work = tmp_path_factory.mktemp("exchange")
    (work / "public").mkdir()
    (work / "public" / "README.md").write_text("# Something else\n")
    with HubServer() as hub:
        hub.publish("tester/public", work / "public")
        hub.full.add("tester/full")
        hub.run(Path(__file__).with_name("exchange_client.py"), work, home=work / "home")
        yield Happened(hub, json.loads((work / "results.json").read_text()))


def test_a_pushed_cache_comes_back_bit_for_bit(happened: Happened) -> None:
    assert happened.results["imported"] == 12
    assert happened.results["same"]
    assert happened.results["where"] == f"{happened.hub.endpoint}/datasets/tester/cache"
    assert happened.results["files"] == 5
    assert happened.hub.repositories["tester/cache"].private


def test_another_cache_takes_its_place_in_one_commit(happened: Happened) -> None:
    assert happened.results["replaced"]
    files = happened.hub.files("tester/cache")
    assert len([name for name in files if name.endswith(".parquet")]) == 1
    assert set(files) - {".gitattributes", "README.md", "cache.json"} == {
        name for name in files if name.startswith("data/shard-")
    }
    messages = happened.hub.repositories["tester/cache"].messages
    assert messages[:3] == ["initial commit", *["Upload a teacher's targets"] * 2]
    assert happened.results["branch"].endswith("/datasets/tester/cache/tree/next/try")


def test_the_card_tells_how_to_import_it(happened: Happened) -> None:
    _, head, text = happened.hub.files("tester/cache")["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head)["configs"][0]["data_files"] == "data/*.parquet"
    assert 'import_cache("tester/cache", "cache")' in text


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no repository", "did not give the data set tester/nothing (404): is the name right"),
        ("revision", "revision='nowhere'"),
        ("token", "(401): is the name right"),
        ("push token", "(401): the token is missing or not valid. Run `hf auth login`"),
        ("namespace", "(403): the token may not write there"),
        ("name", "expected a name such as you/my-cache"),
        ("visibility", "got private=True, but tester/public exists and is public"),
        ("storage", "Your storage is full"),
        ("no cache", "is no exported cache: it holds no cache.json"),
        ("network", "no answer from the Hub at http://127.0.0.1:9"),
        ("import network", "could not be downloaded"),
    ],
)
def test_what_goes_wrong_is_explained(happened: Happened, case: str, words: str) -> None:
    assert words in happened.results["refusals"][case]
    assert "tester/more" not in happened.hub.repositories
    assert not happened.results["something left"]


def test_a_broken_upload_publishes_nothing(happened: Happened) -> None:
    assert set(happened.hub.files("tester/full")) == {".gitattributes"}


def test_the_server_knew_every_question(happened: Happened) -> None:
    assert [question for question in happened.hub.unknown if "tester/" in question] == []
