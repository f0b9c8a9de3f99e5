"""Requests of another account of this machine, sent by a real process of that account.

Layer: tests.

Only root can become another account, so tests that need one are skipped elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NOBODY = 65534
needs_accounts = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process of another account")

_PROGRAM = """
import encodings.idna, os, socket, struct, sys
host, port, user, ending = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
request = sys.stdin.buffer.read()
os.setgroups([]), os.setgid(user), os.setuid(user)
with socket.create_connection((host, port), timeout=20) as peer:
    peer.sendall(request)
    if ending == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif ending != "close":
        if ending == "half":
            peer.shutdown(socket.SHUT_WR)
        while piece := peer.recv(65536):
            sys.stdout.buffer.write(piece)
"""


def ask_as(user: int, port: int, request: bytes, *, ending: str = "read") -> bytes:
    """Send `request` from a process of the account `user`; return the bytes of the response until the server closes.

    `ending` is `read`, `half` (the peer closes its sending side before it reads), `close` or `reset` (it closes its
    socket at once and reads no byte).
    """
    arguments = [sys.executable, "-c", _PROGRAM, "127.0.0.1", str(port), str(user), ending]
    done = subprocess.run(arguments, input=request, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def request_of(method: str, path: str, body: bytes = b"", *, version: str = "1.1", **headers: str) -> bytes:
    """Return the bytes of a request that asks the server to close the connection."""
    lines = {"Host": "localhost", "Connection": "close", **{name.replace("_", "-"): headers[name] for name in headers}}
    if body:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode() + body
