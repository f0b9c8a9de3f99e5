"""Secrets that pass through a server are in none of its logs, results, exports and counters.

Layer: tests.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from proof.chaos.processes import free_port
from tests.processes import PATIENCE_S, Process, request
from tests.stores.files import cli

APP = """
from tenuto import Hub
from tenuto.hub.access.tokens import jwt_verifier

hub = Hub(
    "sqlite:///{store}",
    authenticate=jwt_verifier(secret={secret!r}, audience="chat", cookie="session"),
    ticket_keys=[{key!r}],
)
"""
SECRET = "hidden-secret-of-the-signer-of-tokens-00"
WRONG_SECRET = "hidden-secret-of-another-signer-00000000"
TICKET_KEY = b"hidden-key-of-all-tickets-0000000000000"
NO_TOKEN = "hidden-text-that-is-no-token"
OTHER_COOKIE = "hidden-value-of-a-cookie-of-the-app"


def token(secret: str = SECRET, *, left_s: int = 600) -> str:
    grants = {"*": ["subscribe", "history", "publish", "admin"]}
    claims = {"sub": "ann", "aud": "chat", "exp": int(time.time()) + left_s, "tenuto": grants}
    return jwt.encode(claims, secret, algorithm="HS256")


def first_lines(port: int, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Return the status and the first line of a response that may not end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.readline()


def test_secrets_are_in_no_log_result_or_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, port = tmp_path / "chat.db", free_port()
    (tmp_path / "secret_app.py").write_text(APP.format(store=store, secret=SECRET, key=TICKET_KEY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    arguments = ["-m", "tenuto", "serve", "--app", "secret_app:hub", "--port", str(port), "--log-level", "debug"]
    server = Process(arguments, tmp_path / "server.log")
    good, expired, forged = token(), token(left_s=-600), token(WRONG_SECRET)
    tickets: list[str] = []

    def ask(method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        return request(port, method, path, body, headers=headers)

    with server:
        server.until(lambda: ask("GET", "/healthz")[0] == 200)
        bearer = {"authorization": f"Bearer {good}"}
        made = ask("POST", "/v1/channels/chat:1/messages", {"id": "m1", "text": "kept"}, **bearer)
        assert made[0] == 201, made
        for value in (expired, forged, NO_TOKEN, f"{good}x"):
            assert ask("GET", "/v1/channels/chat:1/messages", authorization=f"Bearer {value}")[0] == 401
            assert ask("GET", "/v1/channels/chat:1/messages", cookie=f"session={value}; other={OTHER_COOKIE}")[0] == 401
            assert first_lines(port, f"/v1/channels/chat:1/events?ticket={value}", {})[0] == 401
            assert first_lines(port, f"/v1/channels/chat:1/events?token={value}", {})[0] in (400, 401)
        cookie = {"cookie": f"session={good}; other={OTHER_COOKIE}"}
        assert ask("GET", "/v1/channels/chat:1/messages", **cookie)[0] == 200
        for channel in ("chat:1", "chat:2"):
            status, issued = ask("POST", "/v1/tickets", {"channel": channel}, **bearer)
            assert status == 201
            tickets.append(issued["ticket"])
        assert first_lines(port, f"/v1/channels/chat:1/events?ticket={tickets[0]}", {})[0] == 200
        assert first_lines(port, f"/v1/channels/chat:1/events?ticket={tickets[1]}", {})[0] in (401, 403)
        outputs = [str(ask("GET", path, **bearer)[1]) for path in ("/metrics", "/v1/channels", "/readyz")]
        at_server = ("--url", f"http://127.0.0.1:{port}", "--token", good)
        commands = (("inspect",), ("verify",), ("export", "chat:1"))
        outputs += [cli(*command, *at_server).output for command in commands]
        assert "no damage found" in outputs[-2]
        assert "kept" in outputs[-1]
        further = (("channels",), ("backup", tmp_path / "one.db"), ("forget", "ann"), ("verify",))
        outputs += [cli(*command, store=store).output for command in (*commands, *further)]
        assert '"messages": 1' in outputs[-2]
    assert "more since the last such line" in server.output
    outputs += [server.output, store.read_bytes().decode(errors="replace")]
    outputs.append((tmp_path / "one.db").read_bytes().decode(errors="replace"))
    hidden = [SECRET, WRONG_SECRET, TICKET_KEY.decode(), NO_TOKEN, OTHER_COOKIE, *tickets]
    hidden += [part for one in (good, expired, forged) for part in one.split(".")[1:]]
    for value in hidden:
        for output in outputs:
            assert value not in output
