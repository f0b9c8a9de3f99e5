"""Tickets, marks and tokens of one hub are worth no more at another hub that has the same secret.

Layer: tests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.accounts import request_of
from tests.attacks.scene import bystander
from tests.attacks.test_local_only import send
from tests.processes import Server, serving

SECRET = "one secret for both of the hubs, of more than 32 bytes"
ISSUER = "https://issuer.example"
WRITER = {"*": ["subscribe", "history", "publish", "append"]}
HUBS = {
    "chat": ["--jwt-audience", "chat"],
    "other": ["--jwt-audience", "other"],
    "both": ["--jwt-audience", "chat", "--jwt-audience", "other"],
    "issued": ["--jwt-audience", "chat", "--jwt-issuer", ISSUER],
}


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Four hubs with one secret."""
    with ExitStack() as stack:
        found: dict[str, Server] = {}
        for name, options in HUBS.items():
            folder = tmp_path_factory.mktemp(name)
            Path(folder / "secret").write_text(SECRET)
            secret = ["--jwt-secret-file", str(folder / "secret")]
            found[name] = stack.enter_context(serving("serve", folder, *secret, *options))
        yield found


def token(audience: str, **claims: Any) -> str:
    """Return a token of a reader."""
    known = {"sub": "ada", "aud": audience, "exp": time.time() + 600, "tenuto": {"c": ["subscribe", "history"]}}
    return jwt.encode({**known, **claims}, SECRET, algorithm="HS256")


@pytest.fixture(autouse=True)
def viewers_beside(hubs: dict[str, Server]) -> Iterator[None]:
    """At each hub a client writes with a token of that hub, and its viewers miss no text."""
    with ExitStack() as stack:
        for name, server in hubs.items():
            own = token("other" if name == "other" else "chat", sub="bystander", iss=ISSUER, tenuto=WRITER)
            stack.enter_context(bystander(server.port, own))
        yield


def ask(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    """Return status and body of a request."""
    head, _, rest = send(server.port, request_of(method, path, body, **headers)).partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    return status, json.loads(rest) if rest[:1] == b"{" else rest


@pytest.mark.parametrize("thief", ["other", "both", "issued"])
def test_ticket_of_a_hub_with_another_audience_or_issuer_opens_no_stream(hubs: dict[str, Server], thief: str) -> None:
    own, other = hubs["chat"], hubs[thief]
    bearer = {"Authorization": f"Bearer {token('chat')}"}
    status, issued = ask(own, "POST", "/v1/tickets", b'{"channel": "c"}', **bearer)
    assert status == 201
    stream = f"/v1/channels/c/events?ticket={issued['ticket']}"
    assert ask(own, "HEAD", stream)[0] == 200
    status, problem = ask(other, "GET", stream)
    assert (status, problem["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("thief", ["other", "issued"])
def test_token_of_another_audience_or_issuer_is_refused(hubs: dict[str, Server], thief: str) -> None:
    for name, status in (("chat", 200), (thief, 401)):
        assert ask(hubs[name], "GET", "/v1/channels/c", Authorization=f"Bearer {token('chat')}")[0] == status


def test_metrics_need_admin_where_there_is_a_verifier(hubs: dict[str, Server]) -> None:
    for claims, status in (({}, 403), ({"tenuto": {"c": ["admin"]}}, 403), ({"tenuto": {"*": ["admin"]}}, 200)):
        bearer = {"Authorization": f"Bearer {token('chat', **claims)}"}
        assert ask(hubs["chat"], "GET", "/metrics", **bearer)[0] == status
    assert ask(hubs["chat"], "GET", "/metrics")[0] == 401


def test_files_of_the_store_are_readable_for_their_owner_alone(hubs: dict[str, Server]) -> None:
    for server in hubs.values():
        files = list(server.store.parent.glob(f"{server.store.name}*"))
        assert len(files) == 5, files  # database, WAL, shared memory, lock, control socket
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}, files
