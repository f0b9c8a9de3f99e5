"""Sockets of a hub under uvicorn, with the options of `docs/deployment.md` and without them: size and compression."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
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
    one = MountedServer(request.param, tmp_path)
    try:
        one.start()
        with bystander(one.port, writer_token()):
            yield one
    finally:
        one.clean_up()


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


def test_largest_request_is_accepted(server: MountedServer) -> None:
    create = {"type": "create", "ref": 1, "channel": "c", "text": "x" * (MIB - 200)}
    with opened(server) as (_, stream):
        stream.write(encode_frame(1, json.dumps(create).encode(), mask=MASK))
        while (reply := frame_from(stream)).startswith(b'{"type":"ping"'):
            pass
        assert reply.startswith(b'{"type":"ok"'), reply[:300]


def test_person_who_takes_the_id_of_an_answer_is_not_served_as_the_assistant(server: MountedServer) -> None:
    bearer = {"Authorization": f"Bearer {token('ada', PERSON)}"}
    taken = {"id": "taken", "text": "words of a person"}
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as one:
        one.request(
            "POST", "/v1/channels/answers/messages", json.dumps(taken), {**bearer, "Content-Type": "application/json"}
        )
        created = one.getresponse()
        assert (created.status, taken["text"].encode() in created.read()) == (201, True)
        one.request("GET", "/ask?id=taken")
        refused = one.getresponse()
        assert (refused.status >= 400, b"words of a person" in refused.read()) == (True, False)
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as one:
        one.request("GET", "/ask?id=free")
        served = one.getresponse()
        assert (served.status, b"the answer" in served.read()) == (200, True)
