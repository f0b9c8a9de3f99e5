"""Which store a URL names."""

from pathlib import Path

import pytest

from holdfast.core.errors import LocalError
from holdfast.stores import open_url
from holdfast.stores.memory import MemoryStore
from holdfast.stores.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///chat.db", "chat.db"),
        ("sqlite:///data/chat.db", "data/chat.db"),
        ("sqlite:////var/lib/chat.db", "/var/lib/chat.db"),
        ("sqlite:///../chat.db?synchronous=normal", "../chat.db"),
        ("sqlite:///with%20space%3F.db", "with space?.db"),
    ],
)
def test_an_sqlite_url_names_a_file(url: str, path: str) -> None:
    store = open_url(url)
    assert isinstance(store, SqliteStore)
    assert store.path == Path(path)


def test_memory_is_a_store_of_its_own_each_time() -> None:
    assert isinstance(open_url("memory://"), MemoryStore)
    assert open_url("memory://") is not open_url("memory://")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "names no store"),
        ("chat.db", "names no store; known are memory://"),
        ("redis://localhost", "names no store"),
        ("sqlite:", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("sqlite:///chat.db#top", "names no file"),
        ("sqlite://chat.db", "write sqlite:///chat.db"),
        ("sqlite:///chat.db?mode=ro", "no option 'mode', only synchronous"),
        ("sqlite:///chat.db?synchronous=off", "synchronous is one of normal, full, extra"),
        ("sqlite:///:memory:", "for a store in memory use memory://"),
        ("memory://name", "write memory://"),
        ("memory://?synchronous=full", "write memory://"),
    ],
)
def test_a_url_that_names_no_store_is_refused_with_what_to_write(url: str, says: str) -> None:
    with pytest.raises(LocalError, match=says):
        open_url(url)
