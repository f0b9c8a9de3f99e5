"""The engines of a cluster: a PostgreSQL server with a standby, a Redis server as the bus, and nginx in front.

Layer: chaos.

PostgreSQL is Debian's, on loopback, in a folder that is removed at the end. The benchmarks and the tests start it, too.

The configuration of nginx is that of `docs/deployment.md`: only paths, ports and TLS differ from the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from proof.chaos.processes import Child, Failure, free_port
from proof.chaos.proxies import Proxy

_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
_INSTALLED = _FOLDERS[-1] if _FOLDERS else Path(shutil.which("initdb") or "/none/initdb").parent
PROGRAMS = Path(os.environ.get("TENUTO_POSTGRES", _INSTALLED))  # of the release that runs
ACCOUNT = "nobody"  # PostgreSQL refuses to run as root
# Its many small files are slow on a disk.
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None

# `pg_terminate_backend` waits since PostgreSQL 14.
_DISCONNECT = """
DO $$ DECLARE ended int[]; BEGIN
  ended := array(SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {which});
  PERFORM pg_terminate_backend(pid) FROM unnest(ended) pid;
  FOR _ IN 1..2000 LOOP
    PERFORM pg_stat_clear_snapshot();
    EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY (ended));
    PERFORM pg_sleep(0.01);
  END LOOP;
END $$
"""


class Postgres:
    """A server on a port of this machine, with the role `app` and the database `app`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._data = "data"
        self._where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "app")  # options of the server's programs
        self.url = f"postgresql://app@127.0.0.1:{self.port}/app"

    def create(self, files: Mapping[str, str] = MappingProxyType({})) -> None:
        """Create the files of the server, and further `files` in its folder, which only its account can read."""
        for name, text in files.items():
            file = self.folder / name
            file.write_text(text)
            file.chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(file, ACCOUNT)
        if os.geteuid() == 0:
            shutil.chown(self.folder, ACCOUNT)
        self._run("initdb", "-D", "data", "-U", "app", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")

    @property
    def pid(self) -> int:
        """Return the process id of the running server, whose other processes are its children."""
        return int((self.folder / self._data / "postmaster.pid").read_text().split("\n")[0])

    def start(self, **settings: str) -> None:
        """Start the server and wait until it answers."""
        chosen = {"port": str(self.port), "listen_addresses": "127.0.0.1", "unix_socket_directories": "", **settings}
        options = " ".join(f"-c {name}='{value}'" for name, value in chosen.items())
        self._run("pg_ctl", "-D", self._data, "-l", "log", "-w", "-t", "60", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: `fast` ends all connections, `immediate` is a crash."""
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "60", "-m", mode, "stop")

    def pause(self) -> None:
        """Stop all processes of the server by SIGSTOP, until `resume`."""
        self._signal_all(signal.SIGSTOP)  # the first one first, so that it starts no others

    def resume(self) -> None:
        """Let all processes of the server continue."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        os.kill(self.pid, number)
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

    def follow(self, source: Postgres, port: int, **settings: str) -> None:
        """Copy the running server `source`, and start as its standby, which streams its commits from `port`."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, ACCOUNT)
        where = ("-h", "127.0.0.1", "-p", str(source.port), "-U", "app")
        self._run("pg_basebackup", *where, "-D", "data", "-X", "stream", "-c", "fast", "--no-sync")
        (self.folder / self._data / "standby.signal").touch()
        self.start(
            primary_conninfo=f"host=127.0.0.1 port={port} user=app", wal_retrieve_retry_interval="200", **settings
        )

    def promote(self) -> None:
        """Let this standby begin a timeline of its own, in which it accepts writes."""
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "60", "promote")

    def back_up(self) -> None:
        """Copy the running server, as a standby that has fallen behind."""
        self._run("pg_basebackup", *self._where, "-D", "backup", "-X", "stream", "-c", "fast", "--no-sync")

    def fail_over(self, **settings: str) -> None:
        """End the server as a crash would, and promote its copy on the same port."""
        self.stop("immediate")
        self._data = "backup"
        (self.folder / "backup" / "recovery.signal").touch()
        self.start(restore_command="false", hot_standby="off", **settings)  # it answers once it is promoted

    def disconnect(self, which: str, *, database: str = "app") -> None:
        """End the other sessions that the condition `which` on `pg_stat_activity` names, and wait for their end."""
        self.sql(_DISCONNECT.format(which=which), database=database)

    def dump(self, schema: str) -> None:
        """Back up the tables of `schema` as `docs/keeping.md` does."""
        self._run("pg_dump", *self._where, "--format=custom", f"--schema={schema}", f"--file={schema}.dump", "app")

    def restore(self, schema: str, *how: str) -> None:
        """Restore the tables of `schema`; the options `how` are those of `docs/keeping.md` unless given."""
        how = how or ("--clean", "--if-exists")
        self._run("pg_restore", *self._where, *how, "--dbname=app", f"{schema}.dump")

    def sql(self, statement: str, *, database: str = "app") -> str:
        """Run `statement` as the superuser; returns its output. Limits set in the database do not apply to it."""
        return self._run("psql", *self._where, "-Atc", statement, database, PGOPTIONS="-c statement_timeout=0")

    def _run(self, program: str, *arguments: str, **environment: str) -> str:
        # Another release may come without the programs of clients.
        folder = PROGRAMS if (PROGRAMS / program).exists() else _INSTALLED
        command = [str(folder / program), *arguments]
        account = ACCOUNT if os.geteuid() == 0 else None
        done = subprocess.run(
            command,
            cwd=self.folder,
            user=account,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{program} failed: {done.stdout}{done.stderr}"
        return done.stdout.strip()


@contextmanager
def running_postgres(
    directory: Path | None = None, *, files: Mapping[str, str] = MappingProxyType({}), **settings: str
) -> Iterator[Postgres]:
    """Run a server in a folder below `directory`, by default one in memory."""
    with tempfile.TemporaryDirectory(
        prefix="tenuto-postgres-", dir=directory or MEMORY, ignore_cleanup_errors=True
    ) as name:
        server = Postgres(Path(name))
        server.create(files)
        server.start(**settings)
        try:
            server.sql("CREATE DATABASE app", database="postgres")
            yield server
        finally:
            server.stop("immediate")


SETTINGS = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_wal_size": "64MB"}
CAUGHT_UP_S = 30.0
START_S = 20.0


def check_programs() -> None:
    """Raise Failure unless the programs of a cluster are installed."""
    missing = [name for name in ("nginx", "redis-server") if shutil.which(name) is None]
    missing += [] if (PROGRAMS / "initdb").exists() else ["postgresql"]
    missing += [f"{name} (pip)" for name in ("asyncpg", "redis") if importlib.util.find_spec(name) is None]
    if missing:
        raise Failure(f"a cluster needs {', '.join(missing)}: apt-get install postgresql redis-server nginx")


class PostgresPair:
    """A PostgreSQL server, and a standby that gets its commits through the proxy `link`, which `open_proxy` opens."""

    def __init__(self, folder: Path, open_proxy: Callable[[int], Awaitable[Proxy]]) -> None:
        self._folder = folder  # gets the logs of the servers
        self._open_proxy = open_proxy
        self._servers: list[Postgres] = []
        self._running: list[Postgres] = []
        self.is_synchronous = False
        self.link: Proxy
        self.primary: Postgres
        self.standby: Postgres

    def _new(self) -> Postgres:
        server = Postgres(Path(tempfile.mkdtemp(prefix="tenuto-postgres-", dir=MEMORY)))
        self._servers.append(server)
        return server

    async def open(self) -> None:
        """Start both servers."""
        self.primary, self.standby = self._new(), self._new()
        await asyncio.to_thread(self.primary.create)
        await self.start()
        await asyncio.to_thread(self.primary.sql, "CREATE DATABASE app", database="postgres")
        self.link = await self._open_proxy(self.primary.port)
        await self._follow()

    async def close(self) -> None:
        """End both servers, and keep their logs."""
        for server in list(self._running):
            with contextlib.suppress(OSError, AssertionError):
                await asyncio.to_thread(server.resume)
            with contextlib.suppress(OSError, AssertionError):
                await self._stop(server)
        for server in self._servers:
            self._keep_log(server)

    def _keep_log(self, server: Postgres) -> None:
        """Keep the log of a server that has ended, and remove its files."""
        with contextlib.suppress(OSError):
            shutil.copyfile(server.folder / "log", self._folder / f"{server.folder.name}.log")
        shutil.rmtree(server.folder, ignore_errors=True)

    async def start(self) -> None:
        """Start the primary, again after `kill`."""
        self._running.append(self.primary)
        await asyncio.to_thread(self.primary.start, **SETTINGS)

    async def kill(self) -> None:
        """End the primary as a crash does."""
        await self._stop(self.primary)

    async def _stop(self, server: Postgres) -> None:
        await asyncio.to_thread(server.stop, "immediate")
        self._running.remove(server)

    async def _follow(self) -> None:
        """Start the standby, as a copy of the primary."""
        await self.link.do("point_to", self.primary.port)
        self._running.append(self.standby)
        await asyncio.to_thread(self.standby.follow, self.primary, self.link.port, **SETTINGS)

    async def until_caught_up(self) -> None:
        """Wait until the standby has all commits of the primary of this moment."""
        place = await asyncio.to_thread(self.primary.sql, "SELECT pg_current_wal_flush_lsn()")
        await self._until(self.standby, f"SELECT pg_last_wal_receive_lsn() >= '{place}'", "the standby has caught up")

    async def set_synchronous(self, is_synchronous: bool) -> None:
        """Let the primary wait for the standby at each commit, or no longer."""
        names = "*" if is_synchronous else ""
        await asyncio.to_thread(self.primary.sql, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        await asyncio.to_thread(self.primary.sql, "SELECT pg_reload_conf()")
        if is_synchronous:
            state = "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'"
            await self._until(self.primary, state, "the standby is synchronous")
        self.is_synchronous = is_synchronous

    async def promote(self) -> None:
        """Promote the standby of a dead primary."""
        await self.link.do("cut")  # swallows the bytes that have not arrived
        await self.link.do("resume")
        await asyncio.to_thread(self.standby.promote)
        self._keep_log(self.primary)
        self.primary, self.standby = self.standby, self._new()
        self.is_synchronous = False

    async def renew_standby(self) -> None:
        """Start a standby of the promoted server."""
        await self._follow()

    async def _until(self, server: Postgres, question: str, what: str) -> None:
        deadline_s = time.monotonic() + CAUGHT_UP_S
        while await asyncio.to_thread(server.sql, question) != "t":
            if time.monotonic() > deadline_s:
                raise Failure(f"waited {CAUGHT_UP_S:.0f} s until {what}")
            await asyncio.sleep(0.05)  # PostgreSQL gives no event for it


class Redis(Child):
    """A Redis server that keeps nothing. It has the same port after each start."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        super().__init__("redis", [*arguments, "--dir", str(folder)], folder / "redis.log", program="redis-server")

    async def start(self) -> None:
        """Start, and wait until it responds."""
        await self.spawn()
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                if b"PONG" in await self.request("PING"):
                    return
            await asyncio.sleep(0.02)  # before it connects again
        raise AssertionError(f"redis-server did not start:\n{self.log[-2_000:]}")

    async def request(self, command: str) -> bytes:
        """Send a command without arguments; return the reply as received."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(command.encode() + b"\r\n")
            return await reader.readline()
        finally:
            writer.transport.abort()


DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


def settings_of_the_docs() -> tuple[str, str, str]:
    """Return what `docs/deployment.md` shows: the configuration, the processes, and the inner one of two proxies."""
    found = re.findall(r"```nginx\n(.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    whole, group, inner = map(str, found)
    return whole, group, inner


def configuration(folder: Path, port: int, *upstreams: int, inner: int | None = None) -> str:
    """Return the configuration of an nginx that listens on `port`, and passes requests on to the ports `upstreams`.

    With `inner`, two proxies follow one another: paths of the outer one begin with `/chat`, and `inner` is the port of
    the other one.
    """
    paths = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole, group, inside = settings_of_the_docs()
    main, _, http = whole.partition("http {")
    owner = "user root;" if os.geteuid() == 0 else ""
    general = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; {owner}"
    processes = "".join(group.splitlines()[1].replace("10.0.0.1:8000", f"127.0.0.1:{one}") for one in upstreams)
    group = re.sub(r"( *server .*;\n)+", lambda _: processes, group)
    http = http.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    if inner is not None:
        http = http.replace("location / {", "location /chat/ {")
        http = http.replace("proxy_pass http://127.0.0.1:8000;", f"proxy_pass http://127.0.0.1:{inner}/;")
        inside = inside.replace("listen 80;", f"listen 127.0.0.1:{inner};").replace("10.0.0.8", "127.0.0.1")
        http = inside + http
    else:
        http = http.replace("proxy_pass http://127.0.0.1:8000;", "proxy_pass http://chat;")
    text = f"{general}\n{main}http {{ access_log off; {paths}{group}{http}"
    text = re.sub(r"\n *ssl_\w+ .*;", "", text)
    # The strict viewers check this header, which nginx takes as its own.
    return text.replace("proxy_buffering off;", "proxy_buffering off; proxy_pass_header X-Accel-Buffering;")
