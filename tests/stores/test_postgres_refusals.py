"""Servers and settings that cannot work: each error names the thing, what was found, and the remedy."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import asyncpg
import pytest

from proof.chaos.engines import ACCOUNT
from tenuto import Hub
from tenuto.core.errors import StoreUnavailable, StoreUnusable, TenutoError
from tenuto.stores import open_url
from tenuto.stores.base import Committed, Store
from tenuto.stores.postgres import schema as postgres_schema
from tenuto.stores.postgres import server as postgres_server
from tenuto.stores.postgres.store import PostgresStore
from tests.certificates import make_certificate
from tests.postgres import Postgres, needs_postgres, running_postgres
from tests.stores.contract import Chat, create

pytestmark = needs_postgres

HERE = "127.0.0.1/32"
# Each role has its own way in. The last line does not name `sealed`, so that role needs TLS.
WAYS_IN = f"""
host all locked {HERE} md5
hostssl all sealed {HERE} trust
host all app,plain,limited,few {HERE} trust
"""
ROLES = """
CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'geheim';
CREATE ROLE sealed LOGIN SUPERUSER;
CREATE ROLE plain LOGIN;
CREATE ROLE limited LOGIN CONNECTION LIMIT 0;
CREATE ROLE few LOGIN CONNECTION LIMIT 3;
GRANT CREATE ON DATABASE app TO plain, limited, few;
"""


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
    with pytest.raises(TenutoError) as caught:
        await open_url(url).open()
    return caught.value


async def opens(url: str) -> None:
    store = open_url(url)
    await store.open()
    await store.close()


# -- servers ---------------------------------------------------------------------------------------------------


async def test_a_server_that_is_too_old_is_refused(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_schema, "OLDEST_SERVER", 990_000)
    error = await refusal(server.url)
    assert isinstance(error, StoreUnusable)
    assert re.fullmatch(r"PostgreSQL \d+\.\d+ .*is too old; use PostgreSQL 13 or newer", str(error))


async def test_connections_that_are_all_taken_are_named_with_the_remedy(server: Postgres) -> None:
    url = f"postgresql://plain@127.0.0.1:{server.port}/app?schema=taken"
    async with AsyncExitStack() as others:
        with pytest.raises(asyncpg.TooManyConnectionsError):
            while True:
                other = await asyncpg.connect(url.partition("?")[0])
                others.push_async_callback(other.close)
        error = await refusal(url)
        assert isinstance(error, StoreUnavailable)
        assert "has no connection left (remaining connection slots are reserved" in str(error)
        assert str(error).endswith(
            "raise max_connections or the CONNECTION LIMIT of the role or database, or stop other clients"
        )
    error = await refusal(f"postgresql://limited@127.0.0.1:{server.port}/app?schema=limited")
    assert 'no connection left (too many connections for role "limited"); raise' in str(error)


async def test_reads_and_renewals_share_the_few_connections_that_the_server_gives(
    server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit of the role leaves two connections for them, beside the one for writes."""
    store = PostgresStore(f"postgresql://few@127.0.0.1:{server.port}/app", schema="few")
    await store.open()
    async with asyncio.timeout(60):
        for _ in range(3):
            heads = [store.heads(["c"]) for _ in range(20)]
            names = [store.channels(after=None, limit=1) for _ in range(20)]
            await asyncio.gather(*heads, store.hold("n", 4_000, {}), *names)
        async with store._pooled(), store._pooled():
            waiting = asyncio.create_task(store.heads(["c"]))
            await asyncio.sleep(0)  # it begins
        await waiting
    server.sql("ALTER ROLE few CONNECTION LIMIT 0")
    server.disconnect("usename = 'few'")
    (line,) = [one.getMessage() for one in caplog.records if "no further connection" in one.getMessage()]
    assert 'no further connection (too many connections for role "few"), so its reads share the open ones' in line
    for _ in range(2):  # each of the ended connections may still look open
        with pytest.raises(StoreUnavailable):
            await store.heads(["c"])
    with pytest.raises(StoreUnavailable, match=r'no connection left .too many connections for role "few"'):
        await store.heads(["c"])
    await store.close()


async def test_start_names_the_connections_that_the_processes_may_open_if_the_server_gives_fewer(
    server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The server gives nine to roles that are no superusers, and three to `few`."""

    async def warnings(role: str, schema: str) -> list[str]:
        caplog.clear()
        await opens(f"postgresql://{role}@127.0.0.1:{server.port}/app?schema={schema}")
        return [one.getMessage() for one in caplog.records if "may open" in one.getMessage()]

    assert await warnings("plain", "room") == []
    store = PostgresStore(f"postgresql://plain@127.0.0.1:{server.port}/app", schema="room")
    await store.open()
    await store.hold("n", 60_000, {})
    remedy = "raise max_connections or the CONNECTION LIMIT, or use fewer processes or PgBouncer (prepare=0)"
    assert await warnings("plain", "room") == [
        "PostgreSQL gives this role 9 connections, and the processes of this store, 2 with this one, may open 14, "
        f"7 each: {remedy}"
    ]
    await store.hold("n", 0, {})
    assert await warnings("plain", "room") == []
    await store.close()
    server.sql("ALTER ROLE few CONNECTION LIMIT 3")  # another test lowers it
    (line,) = await warnings("few", "of_few")
    assert line.startswith("PostgreSQL gives this role 3 connections, and the processes of this store, 1 with this one")


async def test_a_server_that_accepts_connections_and_does_not_respond_is_named_with_both_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_server, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await refusal(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app")
    assert isinstance(error, StoreUnavailable)
    assert str(error).endswith(
        "did not respond within 20 s to a statement, or 0.2 s to a new connection; check the server"
    )


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Give a folder on a disk of 24 MB, which is in memory. Only root may mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder],
        capture_output=True,
        timeout=20,
        check=False,
    )
    if done.returncode:
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
        with pytest.raises(StoreUnavailable) as caught:
            await hub.create("chat:1", id="m2", text=text)
        expected = r"the disk of PostgreSQL at '.*/small' is full \(.*No space left on device\); free space on it"
        assert re.fullmatch(expected, str(caught.value))
        ballast.unlink()
        await hub.create("chat:1", id="m2", text=text)
        assert [one.text for one in (await hub.history("chat:1")).messages] == [text, "before"]
        await hub.close()


# -- roles -----------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_refused_and_never_shown(server: Postgres) -> None:
    for password in (":falsch", ""):
        error = await refusal(f"postgresql://locked{password}@127.0.0.1:{server.port}/app")
        assert isinstance(error, StoreUnusable)
        assert 'refused the role (password authentication failed for user "locked")' in str(error)
        assert str(error).endswith("check role, password and sslmode in the store URL")
        assert "falsch" not in str(error)
    await opens(f"postgresql://locked:geheim@127.0.0.1:{server.port}/app?schema=locked")


async def test_a_role_that_is_refused_for_a_time_leaves_the_store_in_use(server: Postgres) -> None:
    """A password that is changed first at the server must not end a hub: its callers try again."""
    store = open_url(f"postgresql://plain@127.0.0.1:{server.port}/app?schema=for_a_time")
    await store.open()
    chat = Chat(store)
    assert await chat.do(create("m1", "a")) == Committed(1)
    server.sql("ALTER ROLE plain NOLOGIN")
    server.disconnect("usename = 'plain'")
    with pytest.raises(StoreUnavailable):
        await chat.do(create("m2", "b"))
    with pytest.raises(StoreUnavailable, match='role "plain" is not permitted to log in'):
        await chat.do(create("m2", "b"))
    server.sql("ALTER ROLE plain LOGIN")
    assert await chat.do(create("m2", "b")) == Committed(2)
    await store.close()


async def test_role_that_may_not_connect_or_use_the_schema_gets_the_grants_it_needs(server: Postgres) -> None:
    url = f"postgresql://plain@127.0.0.1:{server.port}/app?schema=of_another"
    await opens(f"{server.url}?schema=of_another")
    on_tables = 'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA of_another TO "plain"'
    server.sql(f"GRANT USAGE ON SCHEMA of_another TO plain; {on_tables}")
    store = open_url(url)
    await store.open()
    server.sql("REVOKE USAGE ON SCHEMA of_another FROM plain")
    with pytest.raises(StoreUnavailable, match="permission denied for schema of_another") as caught:
        await store.heads(["c"])
    remedy = f'GRANT USAGE ON SCHEMA of_another TO "plain"; {on_tables}'
    assert str(caught.value).endswith(f"as the owner of the schema run: {remedy}")
    server.sql(remedy)
    assert await store.heads(["c"])
    await store.close()

    server.sql("REVOKE CONNECT ON DATABASE app FROM PUBLIC")
    try:
        error = await refusal(url)
        assert isinstance(error, StoreUnusable)
        remedy = 'GRANT CONNECT ON DATABASE "app" TO "plain"'
        assert str(error).endswith(f"as the owner of the database run: {remedy}")
        server.sql(remedy)
        await opens(url)
    finally:
        server.sql("GRANT CONNECT ON DATABASE app TO PUBLIC")


async def test_a_database_that_becomes_read_only_is_named_until_it_is_not(server: Postgres) -> None:
    store = open_url(f"postgresql://plain@127.0.0.1:{server.port}/app?schema=becomes_read_only")
    await store.open()
    chat = Chat(store)
    assert await chat.do(create("m1", "a")) == Committed(1)
    server.sql("ALTER ROLE plain SET default_transaction_read_only = on")
    server.disconnect("usename = 'plain'")
    with pytest.raises(StoreUnavailable):
        await chat.do(create("m2", "b"))
    with pytest.raises(StoreUnavailable, match="read-only for role 'plain'; set default_transaction_read_only to off"):
        await chat.do(create("m2", "b"))
    with pytest.raises(StoreUnavailable, match=r"is read-only for this role .*; set default_transaction_read_only to"):
        await _second_try(store)
    server.sql("ALTER ROLE plain RESET default_transaction_read_only")
    server.disconnect("usename = 'plain'")
    assert await chat.do(create("m2", "b")) == Committed(2)
    await store.close()


async def _second_try(store: Store) -> None:
    """Renew a lease: the first time on a connection that was ended."""
    with suppress(StoreUnavailable):
        await store.hold("n", 4_000, {})
    await store.hold("n", 4_000, {})


# -- TLS -------------------------------------------------------------------------------------------------------


async def test_a_server_without_tls_is_named_when_the_url_requires_it(server: Postgres) -> None:
    error = await refusal(f"{server.url}?sslmode=require")
    assert isinstance(error, StoreUnusable)
    assert "offers no TLS" in str(error)
    assert str(error).endswith("check host and port, and set ssl to on there, or sslmode=prefer in the store URL")


async def test_a_server_that_requires_tls_is_used_with_it_and_named_without(
    with_tls: tuple[Postgres, Path],
) -> None:
    url = f"postgresql://sealed@127.0.0.1:{with_tls[0].port}/app"
    error = await refusal(f"{url}?sslmode=disable")
    assert isinstance(error, StoreUnusable)
    assert "the server may require TLS: write sslmode=require in the store URL" in str(error)
    error = await refusal(f"postgresql://stranger@127.0.0.1:{with_tls[0].port}/app?sslmode=require")
    assert str(error).endswith("add a line for it to pg_hba.conf of the server")
    for mode in ("", "?sslmode=require"):  # meanwhile the driver closes the refused connection
        await opens(f"{url}{mode}")


async def test_a_certificate_is_checked_and_its_mistakes_have_remedies(
    with_tls: tuple[Postgres, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificate = with_tls
    monkeypatch.setenv("HOME", str(tmp_path))  # has no certificates
    other = make_certificate(tmp_path, "other")
    local, number = (f"postgresql://sealed@{host}:{server.port}/app" for host in ("localhost", "127.0.0.1"))
    await opens(f"{local}?sslmode=verify-full&sslrootcert={certificate}")
    await opens(f"{number}?sslmode=verify-ca&sslrootcert={certificate}")
    accepted = "name the file of its authority as sslrootcert in the store URL, and the host as the certificate does"
    for url, reason, remedy in (
        (f"{number}?sslmode=verify-full&sslrootcert={certificate}", "IP address mismatch", accepted),
        (f"{local}?sslmode=verify-full&sslrootcert={other}", "certificate that is not accepted", accepted),
        (f"{local}?sslmode=verify-full", "root certificate file", "check sslmode, sslrootcert, sslcert and sslkey"),
        (f"{local}?sslmode=require&sslrootcert=/none.pem", "sslrootcert names '/none.pem', which cannot", "check ssl"),
        (f"{local}?sslmode=require&sslcert={tmp_path}", "which cannot be read: Is a directory", "check sslmode"),
        (f"{local}?sslmode=require&sslrootcert={__file__}", "TLS with PostgreSQL at ", "check sslmode, sslrootcert"),
    ):
        error = await refusal(url)
        assert isinstance(error, StoreUnusable), url
        assert reason in str(error), url
        assert remedy in str(error), url


# -- limits that an administrator sets --------------------------------------------------------------------------


async def test_limits_of_an_administrator_hold_for_no_session_of_the_store(server: Postgres) -> None:
    limits = {
        "statement_timeout": "20s",
        "lock_timeout": "20s",
        "idle_in_transaction_session_timeout": "20s",
        "idle_session_timeout": "20s",
        "default_transaction_isolation": "serializable",
        "tcp_keepalives_idle": "900",
    }
    if int(server.sql("SHOW server_version_num")) < 140_000:
        del limits["idle_session_timeout"]
    shown = "SELECT " + ", ".join(f"current_setting('{name}')" for name in limits)
    server.sql("; ".join(f"ALTER DATABASE app SET {name} = '{value}'" for name, value in limits.items()))
    try:
        store = PostgresStore(server.url, schema="limits")
        await store.open()
        for _ in range(2):  # a connection of the pool keeps its settings when it is used again
            async with store._pooled() as pooled:
                of_the_pool = dict(zip(limits, await pooled.fetchrow(shown) or (), strict=True))
        assert store._db is not None
        notices = await store._server.connect()
        of_the_writer = dict(zip(limits, await store._db.fetchrow(shown) or (), strict=True))
        of_notices = dict(zip(limits, await notices.fetchrow(shown) or (), strict=True))
        await notices.close()
        await store.close()
    finally:
        server.sql("ALTER DATABASE app RESET ALL")
    expected = dict.fromkeys(limits, "0")
    expected |= {"idle_in_transaction_session_timeout": "3s", "default_transaction_isolation": "read committed"}
    expected |= {"tcp_keepalives_idle": "30"}
    assert (of_the_writer, of_the_pool, of_notices) == (expected, expected, expected)


async def test_an_error_on_a_connection_that_the_server_has_ended_stays_the_error(server: Postgres) -> None:
    store = PostgresStore(server.url, schema="ended")
    await store.open()
    with pytest.raises(ZeroDivisionError):
        async with store._pooled() as db, asyncio.timeout(60):
            ended = asyncio.Event()
            db.add_termination_listener(lambda _: ended.set())
            pid = await db.fetchval("SELECT pg_backend_pid()")
            await asyncio.to_thread(server.disconnect, f"pid = {pid}")
            await ended.wait()
            raise ZeroDivisionError
    assert await store.heads(["c"])
    await store.close()
