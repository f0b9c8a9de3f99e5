"""The load client's reader finds the same payload as the wire checker's parsers, for every split of the input."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.events import CloseConnection, Event, Ping, TextMessage

from bench.reader import LoadFrames, LoadResponse
from proof.wirecheck import Frames, Response, WireError, encode_frame

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n11\r\n, these are\r\n\r\nfo\r\n2\r\nur\r\n0\r\n\r\n"
)
WITH_LENGTH = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"
WITHOUT_END = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the connection ends"

cut_lists = st.lists(st.integers(0, 400), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return `data` split at these positions, which may repeat and may lie beyond its end."""
    positions = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(positions)]


@given(st.sampled_from([CHUNKED, WITH_LENGTH, WITHOUT_END]), cut_lists)
def test_the_reader_returns_the_body_that_h11_returns(data: bytes, cuts: list[int]) -> None:
    reader, parser = LoadResponse(), Response()
    body, expected = (b"".join(map(one.receive, pieces(data, cuts))) for one in (reader, parser))
    assert body == expected
    assert (reader.status, reader.headers, reader.is_complete) == (parser.status, parser.headers, parser.is_complete)


@given(cut_lists)
def test_the_reader_returns_the_messages_that_wsproto_returns(cuts: list[int]) -> None:
    data = b"".join(
        (
            encode_frame(0x1, b"short", mask=b""),
            encode_frame(0x1, "mor\u00e9 ".encode(), mask=b"", is_final=False),
            encode_frame(0x9, b"ping", mask=b""),
            encode_frame(0x0, b"x" * 200, mask=b""),
            encode_frame(0x1, b"y" * 70_000, mask=b""),
            encode_frame(0x8, struct.pack("!H", 1012), mask=b""),
        )
    )
    received: list[list[Event]] = []
    for parser in (LoadFrames(), Frames()):
        received.append([event for piece in pieces(data, cuts) for event in parser.receive(piece)])
    assert received[0] == received[1]
    assert received[0][1] == Ping(payload=b"ping")


@pytest.mark.parametrize(
    "event", [TextMessage(data="h\u00e9"), Ping(payload=b"p").response(), CloseConnection(code=1000)]
)
def test_the_reader_encodes_the_frame_that_wsproto_encodes(event: TextMessage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda count: b"mask"[:count])
    assert LoadFrames().encode(event) == Frames().encode(event)


def test_a_chunk_size_that_is_not_hexadecimal_is_an_error() -> None:
    with pytest.raises(WireError, match="invalid chunk size: b'xyz'"):
        LoadResponse().receive(CHUNKED.replace(b"5\r\n", b"xyz\r\n"))
