"""Servers, roles and settings that cannot work: each error names the thing, what was found, and the remedy."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from proof.chaos.engines import ACCOUNT
from proof.chaos.processes import free_port
from tenuto import Hub
from tenuto.core.errors import StoreUnavailable, StoreUnusable, TenutoError
from tenuto.stores import open_url
from tenuto.stores.base import Committed
from tenuto.stores.postgres import schema as postgres_schema
from tenuto.stores.postgres import server as postgres_server
from tests.certificates import make_certificate
from tests.postgres import Postgres, needs_postgres, running_postgres
from tests.stores.contract import Chat, create
from tests.stores.two import opened, opened_at

pytestmark = needs_postgres

HERE = "127.0.0.1/32"
# Each role has its own way in. The last line does not name `sealed`, so that role needs TLS.
WAYS_IN = f"""
host all locked {HERE} md5
hostssl all sealed {HERE} trust
host all app,plain,limited,few,reader,missing {HERE} trust
"""
ROLES = """
CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'geheim';
CREATE ROLE sealed LOGIN SUPERUSER;
CREATE ROLE plain LOGIN;
CREATE ROLE reader LOGIN;
CREATE ROLE limited LOGIN CONNECTION LIMIT 0;
CREATE ROLE few LOGIN CONNECTION LIMIT 3;
ALTER ROLE reader SET default_transaction_read_only = on;
GRANT CREATE ON DATABASE app TO limited, few;
"""
ON_TABLES = 'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO "plain"'


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    files = {"ways-in.conf": WAYS_IN}
    with running_postgres(files=files, fsync="off", hba_file="ways-in.conf", max_connections="12") as server:
        server.sql(ROLES)
        yield server


@pytest.fixture(scope="module")
def with_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, Path]]:
    """Give a server with TLS, and the certificate of its authority."""
    certificate = make_certificate(tmp_path_factory.mktemp("tls"))
    key = certificate.with_name("key.pem")
    files = {"ways-in.conf": WAYS_IN, "own.pem": certificate.read_text(), "key.pem": key.read_text()}
    hba = "ways-in.conf"
    with running_postgres(
        files=files, fsync="off", hba_file=hba, ssl="on", ssl_cert_file="../own.pem", ssl_key_file="../key.pem"
    ) as server:
        server.sql(ROLES)
        yield server, certificate


async def refusal(url: str) -> TenutoError:
    """Return the error with which the store at `url` does not open."""
    with pytest.raises((StoreUnavailable, StoreUnusable)) as caught:
        await open_url(url).open()
    return caught.value


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (
            "app:secret@127.0.0.1:{closed}/app",
            r"PostgreSQL at 'postgresql://127.0.0.1:\d+/app' .*check its host and port",
        ),
        ("app@127.0.0.1:{port}/other", 'database "other" does not exist.*; create it first'),
        ("missing@127.0.0.1:{port}/app", 'role "missing" does not exist.*; check role, password and sslmode'),
        ("locked:secret@127.0.0.1:{port}/app", 'refused the role .* for user "locked".*; check role, password and'),
        ("reader@127.0.0.1:{port}/app", "read-only for role 'reader'; set default_transaction_read_only to off"),
        ("limited@127.0.0.1:{port}/app", 'no connection left .*for role "limited".*; raise max_connections or the'),
        ("plain@127.0.0.1:{port}/app", 'GRANT CREATE ON DATABASE "app" TO "plain"; or: CREATE SCHEMA tenuto AUTHOR'),
        ("app@127.0.0.1:{port}/app?schema=user", "schema 'user' has a name that PostgreSQL reserves; name another"),
        ("app@127.0.0.1:{port}/app?schema=pg_chat", "schema 'pg_chat' has a name that PostgreSQL reserves; name"),
        ("app@127.0.0.1:{port}/app?sslmode=require", "offers no TLS.*check host and port, and set ssl to on there"),
    ],
)
async def test_place_that_cannot_work_is_refused_with_the_remedy(server: Postgres, place: str, expected: str) -> None:
    error = await refusal(f"postgresql://{place.format(port=server.port, closed=free_port())}")
    assert re.search(expected, str(error)), error
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE {0}.users (id int)",
        "CREATE TABLE {0}.store AS SELECT 1 AS version; CREATE TABLE {0}.channels (id int)",
        "CREATE VIEW {0}.channels AS SELECT 1 AS id",
    ],
)
async def test_tables_of_another_program_are_refused(server: Postgres, schema: str, statement: str) -> None:
    server.sql(f"CREATE SCHEMA {schema};" + statement.format(schema))
    error = await refusal(f"{server.url}?schema={schema}")
    assert f"schema '{schema}' holds tables of another program; name another one" in str(error)
    found = f"SELECT string_agg(column_name, ',') FROM information_schema.columns WHERE table_schema = '{schema}'"
    assert set(server.sql(found).split(",")) <= {"id", "version"}  # they are as they were


async def test_a_server_that_is_too_old_is_refused(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_schema, "OLDEST_SERVER", 990_000)
    error = await refusal(server.url)
    assert re.fullmatch(r"PostgreSQL \d+\.\d+ .*is too old; use PostgreSQL 13 or newer", str(error))


async def test_reads_and_renewals_share_the_few_connections_that_the_server_gives(
    server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit of the role leaves two connections for them, beside the one for writes."""
    url = f"postgresql://few@127.0.0.1:{server.port}/app?schema=few"
    async with opened_at(url) as store, asyncio.timeout(60):
        for _ in range(3):
            heads = [store.heads(["c"]) for _ in range(20)]
            names = [store.channels(after=None, limit=1) for _ in range(20)]
            await asyncio.gather(*heads, store.hold("n", 4_000, {}), *names)
    (line,) = [one.getMessage() for one in caplog.records if "may open" in one.getMessage()]
    assert line.startswith("PostgreSQL gives this role 3 connections, and the processes of this store, 1 with this one")
    (line,) = [one.getMessage() for one in caplog.records if "no further connection" in one.getMessage()]
    assert 'no further connection (too many connections for role "few"), so its reads share the open ones' in line


async def test_a_server_that_accepts_connections_and_does_not_respond_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await refusal(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app")
    assert "did not respond within 20 s to a statement, or 0.2 s to a new connection" in str(error)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Give a folder on a disk of 24 MB, which is in memory. Only root may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("a disk of a few MB cannot be mounted here")
    try:
        shutil.chown(folder, ACCOUNT)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, timeout=20)


async def test_a_full_disk_is_named_and_the_store_goes_on_when_there_is_space() -> None:
    with running_postgres(fsync="off") as server, small_disk(server.folder / "small") as disk:
        server.sql(f"CREATE TABLESPACE small LOCATION '{disk}'")
        server.sql("CREATE DATABASE small TABLESPACE small")
        hub = Hub(f"postgresql://app@127.0.0.1:{server.port}/small", hooks_signals=False, drain_s=0.0)
        await hub.create("chat:1", id="m1", text="before")
        ballast = disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        text = Random(1).randbytes(500_000).hex()  # which cannot be compressed to a few pages
        with pytest.raises(StoreUnavailable, match=r"the disk of PostgreSQL at '.*/small' is full.*; free space on it"):
            await hub.create("chat:1", id="m2", text=text)
        ballast.unlink()
        await hub.create("chat:1", id="m2", text=text)
        assert [one.text for one in (await hub.history("chat:1")).messages] == [text, "before"]
        await hub.close()


@pytest.mark.parametrize(
    ("loss", "remedy", "expected"),
    [
        ("ALTER ROLE plain NOLOGIN", "ALTER ROLE plain LOGIN", 'role "plain" is not permitted to log in'),
        (
            "ALTER ROLE plain SET default_transaction_read_only = on",
            "ALTER ROLE plain RESET default_transaction_read_only",
            "read-only for role 'plain'; set default_transaction_read_only to off",
        ),
        (
            "REVOKE USAGE ON SCHEMA {schema} FROM plain",
            'GRANT USAGE ON SCHEMA {schema} TO "plain"; {on_tables}',
            "permission denied for schema {schema}.*; as the owner of the schema run: {remedy}$",
        ),
        (
            "REVOKE CONNECT ON DATABASE app FROM PUBLIC",
            'GRANT CONNECT ON DATABASE "app" TO "plain"',
            "permission denied for database .*; as the owner of the database run: {remedy}$",
        ),
    ],
)
async def test_role_that_loses_a_right_is_named_until_it_has_it_again(
    server: Postgres, schema: str, loss: str, remedy: str, expected: str
) -> None:
    """A password that is changed first at the server must not end a hub: its callers try again."""
    async with opened(server, schema):
        pass
    names = {"schema": schema, "on_tables": ON_TABLES.format(schema=schema)}
    remedy = remedy.format(**names)
    grants = f'GRANT USAGE, CREATE ON SCHEMA {schema} TO "plain"; {names["on_tables"]}'
    url = f"postgresql://plain@127.0.0.1:{server.port}/app?schema={schema}"
    assert str(await refusal(url)).endswith(f"as the owner of the schema run: {grants}")
    server.sql(grants)
    store = open_url(url)
    await store.open()
    server.sql(loss.format(**names))
    server.disconnect("usename = 'plain'")
    for call in (store.note({"a": b"1"}), store.hold("n", 4_000, {}), store.hold("n", 4_000, {})):
        with suppress(StoreUnavailable):  # the connections that were ended
            await call
    with pytest.raises(StoreUnavailable, match=expected.format(remedy=re.escape(remedy), **names)):
        await Chat(store).do(create("m1", "a"))
    server.sql(remedy)
    server.disconnect("usename = 'plain'")
    with suppress(StoreUnavailable):
        await store.heads(["c"])
    assert await Chat(store).do(create("m1", "a")) == Committed(1)
    await store.close()


TLS = {
    "sealed@127.0.0.1:{port}/app?sslmode=disable": "may require TLS: write sslmode=require in the store URL",
    "stranger@127.0.0.1:{port}/app?sslmode=require": "add a line for it to pg_hba.conf of the server",
    "sealed@127.0.0.1:{port}/app?sslmode=verify-full&sslrootcert={own}": "IP address mismatch.*as sslrootcert in",
    "sealed@localhost:{port}/app?sslmode=verify-full&sslrootcert={other}": "not accepted.*as sslrootcert in the",
    "sealed@localhost:{port}/app?sslmode=verify-full": "root certificate file.*check sslmode, sslrootcert",
    "sealed@localhost:{port}/app?sslmode=require&sslrootcert=/none.pem": "names '/none.pem', which cannot",
    "sealed@localhost:{port}/app?sslmode=require&sslcert=/tmp": "which cannot be read: Is a directory",
    "sealed@localhost:{port}/app?sslmode=require&sslrootcert={text}": "TLS with PostgreSQL at .*check sslmode",
}


async def test_tls_is_used_and_its_mistakes_have_remedies(
    with_tls: tuple[Postgres, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificate = with_tls
    monkeypatch.setenv("HOME", str(tmp_path))  # has no certificates
    files = {"own": certificate, "other": make_certificate(tmp_path, "other"), "text": __file__}
    for place, expected in TLS.items():
        error = await refusal(f"postgresql://{place.format(port=server.port, **files)}")
        assert isinstance(error, StoreUnusable)
        assert re.search(expected, str(error)), error
    async with opened_at(
        f"postgresql://sealed@127.0.0.1:{server.port}/app?sslmode=verify-ca&sslrootcert={certificate}"
    ):
        pass  # whose certificate is for localhost
    for options in ("", "?sslmode=require", f"?sslmode=verify-full&sslrootcert={certificate}"):
        async with opened_at(f"postgresql://sealed@localhost:{server.port}/app{options}"):
            pass


async def test_limits_of_an_administrator_hold_for_no_session_of_the_store(server: Postgres) -> None:
    expected = {
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "3s",
        "default_transaction_isolation": "read committed",
        "tcp_keepalives_idle": "30",
    }
    if int(server.sql("SHOW server_version_num")) >= 140_000:
        expected["idle_session_timeout"] = "0"
    limits = dict.fromkeys(expected, "20s") | {"default_transaction_isolation": "serializable"}
    limits["tcp_keepalives_idle"] = "900"
    shown = "SELECT " + ", ".join(f"current_setting('{name}')" for name in limits)
    server.sql("; ".join(f"ALTER DATABASE app SET {name} = '{value}'" for name, value in limits.items()))
    try:
        async with opened(server, "limits") as store:
            for _ in range(2):  # a connection of the pool keeps its settings when it is used again
                async with store._pooled() as pooled:
                    assert tuple(await pooled.fetchrow(shown) or ()) == tuple(expected.values())
            notices = await store._server.connect()
            for db in (await store._writer(), notices):
                assert tuple(await db.fetchrow(shown) or ()) == tuple(expected.values())
            await notices.close()
    finally:
        server.sql("ALTER DATABASE app RESET ALL")
