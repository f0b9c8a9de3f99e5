"""A real PgBouncer in transaction mode, in front of a PostgreSQL server.

Layer: tests.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager

import pytest

from proof.chaos.engines import ACCOUNT
from proof.chaos.processes import free_port
from tests.postgres import Postgres
from tests.processes import Process, listening

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed; CI installs it")

_SETTINGS = """
[databases]
* = host=127.0.0.1 port={server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users-{port}.txt
pool_mode = transaction
default_pool_size = {sessions}
server_connect_timeout = 5
server_login_retry = 1
{more}
"""


def pgbouncer(server: Postgres, *, sessions: int = 3, more: str = "") -> AbstractContextManager[int]:
    """Run PgBouncer before `server`, with so many sessions for all clients; gives its port."""
    assert PROGRAM is not None
    port = free_port()
    (server.folder / f"users-{port}.txt").write_text('"app" ""\n')
    account = f"user = {ACCOUNT}\n" if os.geteuid() == 0 else ""
    settings = server.folder / f"pgbouncer-{port}.ini"
    settings.write_text(
        _SETTINGS.format(
            server=server.port, port=port, folder=server.folder, sessions=sessions, more=f"{account}{more}"
        )
    )
    log = server.folder / f"pgbouncer-{port}.log"
    return listening(Process([str(settings)], log, program=PROGRAM), port)
