"""Sockets of a hub under uvicorn, with the options of `docs/deployment.md` and without them: size and compression."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from proof.wirecheck import encode_frame
from tests.attacks.attacker import HANDSHAKE, connect, frame_from
from tests.attacks.mounted import MountedServer
from tests.attacks.scene import MIB, PERSON, bystander, token, writer_token

MAX_BYTES = MIB + 64 * 1024  # as `tenuto serve` sets it
MASK = b"\0\0\0\0"


@pytest.fixture(params=["uvicorn-httptools", "uvicorn-sockets"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MountedServer]:
    """uvicorn with its own settings, and with those of the docs, beside a client that writes and its strict viewers."""
    with MountedServer(request.param, tmp_path) as one, bystander(one.port, writer_token()):
        yield one


@contextmanager
def opened(server: MountedServer, headers: str = "") -> Iterator[tuple[bytes, BinaryIO]]:
    """Open a socket; gives the head of the response, and the stream behind it."""
    with connect(server.port) as one, one.makefile("rwb", 0) as stream:
        stream.write(f"{HANDSHAKE}{headers}Authorization: Bearer {token('ada', PERSON)}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.read(1) or b""
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield head, stream  # type: ignore[misc]


def has_the_options(server: MountedServer) -> bool:
    return "--ws-max-size" in server._arguments


def test_frames_are_compressed_only_without_the_option(server: MountedServer) -> None:
    """A compressed frame of 16 KiB would become one of 16 MiB in memory."""
    with opened(server, "Sec-WebSocket-Extensions: permessage-deflate\r\n") as (head, _):
        assert (b"permessage-deflate" in head) is not has_the_options(server)


@pytest.mark.parametrize("server", ["uvicorn-sockets"], indirect=True)
def test_announced_message_above_the_limit_is_refused_before_it_arrives(server: MountedServer) -> None:
    with opened(server) as (_, stream):
        stream.write(encode_frame(1, b"x", mask=MASK, length=MAX_BYTES + 1))
        while (frame := frame_from(stream)).startswith(b"{"):
            pass
        assert frame[:2] == (1009).to_bytes(2)
