"""Sockets of a hub under uvicorn with the options of `docs/deployment.md`: size and compression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from proof.wirecheck import encode_frame
from tests.attacks.attacker import HANDSHAKE, connect
from tests.attacks.mounted import MountedServer
from tests.attacks.scene import MIB, PERSON, bystander, token, writer_token

MAX_BYTES = MIB + 64 * 1024  # as `tenuto serve` sets it
MASK = b"\0\0\0\0"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MountedServer]:
    """uvicorn with the settings of the docs, beside a client that writes and its strict viewers."""
    with MountedServer("uvicorn-sockets", tmp_path) as one, bystander(one.port, writer_token()):
        yield one


def frame_from(stream: BinaryIO) -> bytes:
    """Read one frame of the server and return its payload."""
    length = stream.read(2)[1]
    if length >= 126:
        length = int.from_bytes(stream.read(2 if length == 126 else 8))
    return stream.read(length)


def test_options_of_the_docs_switch_compression_off_and_refuse_a_large_message_before_it_arrives(
    server: MountedServer,
) -> None:
    """A compressed frame of 16 KiB would become one of 16 MiB in memory."""
    headers = f"Sec-WebSocket-Extensions: permessage-deflate\r\nAuthorization: Bearer {token('ada', PERSON)}\r\n"
    with connect(server.port) as one, one.makefile("rb") as stream:
        one.sendall(f"{HANDSHAKE}{headers}\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.read(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"permessage-deflate" not in head
        one.sendall(encode_frame(1, b"x", mask=MASK, length=MAX_BYTES + 1))
        while (frame := frame_from(stream)).startswith(b"{"):
            pass
        assert frame[:2] == (1009).to_bytes(2)
