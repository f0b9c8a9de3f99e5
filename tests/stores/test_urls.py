"""The stores that URLs name."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from tenuto.cli.main import main
from tenuto.core.errors import LocalError
from tenuto.stores import open_url
from tenuto.stores.postgres.store import PostgresStore
from tenuto.stores.sqlite.store import SqliteStore


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///data/chat.db", "data/chat.db"),
        ("sqlite:////var/lib/chat.db", "/var/lib/chat.db"),
        ("sqlite:///../chat.db?synchronous=normal", "../chat.db"),
        ("sqlite:///with%20space%3F.db", "with space?.db"),
        ("SQLITE:///chat.db", "chat.db"),
        ("sqlite:///ch%E4t.db", os.fsdecode(b"ch\xe4t.db")),
    ],
)
def test_an_sqlite_url_names_a_file(url: str, path: str) -> None:
    store = open_url(url)
    assert isinstance(store, SqliteStore)
    assert store.path == Path(path)


def test_a_postgresql_url_names_a_schema_and_keeps_the_drivers_options() -> None:
    store = open_url("postgres://app:pw@db:5433/chat?schema=staging&sslmode=require")
    assert isinstance(store, PostgresStore)
    assert (store.dsn, store.schema) == ("postgres://app:pw@db:5433/chat?sslmode=require", "staging")
    assert open_url("postgresql://db/chat").schema == "tenuto"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///folder/", "'sqlite:///folder/' does not name a file"),
        ("sqlite:///chat.db#top", "'sqlite:///chat.db' does not name a file"),
        ("sqlite:///chat.db?mode=ro", "unknown option 'mode'; an SQLite store has synchronous only"),
        ("sqlite:///chat.db?synchronous=off", "synchronous must be 'normal', 'full' or 'extra', got 'off'"),
        ("postgresql://db:port/app", "'postgresql://db:port/app' has a port that is not a number from 1 to 65535; use"),
        ("postgresql://db/app?schema=My-App", "schema must be 1-63 characters of a-z 0-9 _ .*, got 'My-App'"),
        ("postgresql://db/app?durability=none", "durability must be sync or async, got 'none'"),
        ("postgresql://db/app?schema=a&schema=b", "has the option 'schema' 2 times; give it once"),
        ("sqlite:///:memory:", "for one in memory use memory://"),
        ("sqlite:chat.db", "'sqlite:chat.db' lacks slashes; use sqlite:///chat.db"),
        ("sqlite://[chat.db", r"store URL must be memory://, .* got 'sqlite://\[chat.db'"),
        ("sqlite:///chat\n.db", r"'sqlite:///chat\\n.db' holds a control character"),
        ("mysql://user:geheim@db/tenuto", "store URL must be memory://, .* got 'mysql://db/tenuto'"),
        ("postgres://user:geheim@db", "does not name a database; use postgresql://role@host:5432/database"),
        ("postgresql://user:ge/heim?x=geheim@db/tenuto", "URL"),
        ("postgresql://user:heim/geheim@db/tenuto", "percent-encode"),
        ("postgresql://user:p@heim/geheim@db/tenuto", "percent-encode"),
        ("postgresql://user:ge@heim@db/tenuto", "has an @ in its password or behind its host; percent-encode"),
        ("postgres://db/tenuto?password=geheim", "unknown option 'password'; a PostgreSQL store has schema"),
        ("sqlite://user:geheim@chat.db", "use sqlite:///chat.db"),
        ("sqlite:///?password=geheim", "'sqlite:///' does not name a file"),
        ("memory://user:geheim@here", "use memory://"),
    ],
)
def test_url_without_a_store_is_refused_with_the_remedy(url: str, expected: str) -> None:
    with pytest.raises(LocalError, match=expected) as refused:
        open_url(url)
    assert "heim" not in str(refused.value)


@pytest.mark.parametrize("url", ["sqlite:///chat\n.db", "postgresql://db:port/app"])
def test_command_reports_a_malformed_url_in_one_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["serve", "--port", "0", "--store", url])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "store URL" in done.stderr
    assert list(tmp_path.iterdir()) == []
