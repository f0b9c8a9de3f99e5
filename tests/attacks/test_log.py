"""Attacks on the log of `tenuto serve`: unknown peers cause few lines, however often they are refused."""

from __future__ import annotations

from proof.wirecheck import encode_frame
from tests.attacks.attacker import GET, HANDSHAKE, connect, read_all
from tests.attacks.scene import Scene

ATTEMPTS = 200
LINES = 5  # limit of lines for each kind: a reason is logged once, and a few other lines may come meanwhile

INTRODUCED = encode_frame(1, b'{"type":"auth","ref":1,"token":"x"}', mask=b"\0\0\0\0")
TRIES = {
    "a socket that ends": (HANDSHAKE.encode() + b"\r\n", b"HTTP/1.1 101 "),
    "a socket with a false token": (HANDSHAKE.encode() + b"Authorization: Bearer x\r\n\r\n", b"HTTP/1.1 401 "),
    "a socket with a false first frame": (HANDSHAKE.encode() + b"\r\n" + INTRODUCED, b"HTTP/1.1 101 "),
    "a socket of another version": (HANDSHAKE.replace("Version: 13", "Version: 12").encode() + b"\r\n", b"HTTP/1.1 4"),
    "a socket without a key": (HANDSHAKE.partition("Sec-")[0].encode() + b"\r\n", b"HTTP/1.1 4"),
    "an upgrade to another protocol": (GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b"HTTP/1.1 200 "),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"HTTP/1.1 400 "),
    "a false token": (b"GET /v1/channels/c HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n", b"HTTP/1.1 401 "),
}  # fmt: skip


async def test_hundreds_of_attempts_cause_few_lines(watched_server: Scene) -> None:
    """The server has its default log level."""
    begun = watched_server.server.output
    for kind, (request, expected) in TRIES.items():
        before = watched_server.server.output
        for number in range(ATTEMPTS):
            with connect(watched_server.port) as one:
                one.sendall(request)
                one.shutdown(1)  # the server responds, and then notices the end
                received = read_all(one)
                assert received.startswith(expected), (kind, number, received)
        lines = watched_server.server.output.removeprefix(before).splitlines()
        assert len(lines) <= LINES, (kind, lines[:10])
    lines = watched_server.server.output.removeprefix(begun).splitlines()
    assert any("refused 127.0.0.1 with unauthenticated: " in line for line in lines), lines
