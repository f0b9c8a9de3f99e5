"""Attacks by WebSockets: unknown ones that hold memory, and floods of frames that carry no message."""

from __future__ import annotations

import json

import pytest

from proof.wirecheck import encode_frame
from tests.attacks.attacker import HANDSHAKE, connect, read_all
from tests.attacks.scene import MIB, PERSON, Scene, introduces_itself, run, token
from tests.attacks.test_connections import BURST, SPARE, STORM_BYTES

MASK = b"\0\0\0\0"
BEGINNING = encode_frame(1, b"a", mask=MASK, is_final=False).hex()
EMPTY = encode_frame(0, b"", mask=MASK, is_final=False).hex()
PING = encode_frame(9, b"x" * 125, mask=MASK).hex()
EMPTY_PING = encode_frame(9, b"", mask=MASK).hex()
PONG = encode_frame(10, b"", mask=MASK).hex()
TEXT = encode_frame(1, b"{}", mask=MASK).hex()
# A frame that announces 8 KiB and stops before the last byte.
UNFINISHED = encode_frame(1, b"x" * 8191, mask=MASK, length=8192).hex()
# A message of 250 fragments, which are as many as are allowed, or a few less.
FRAGMENTS = BEGINNING + EMPTY * 248 + encode_frame(0, b"", mask=MASK).hex()
PADDING = "X-Long: " + "y" * 8_000 + "\r\n"


def bearer() -> str:
    return token("attacker", PERSON)


@pytest.mark.parametrize(
    ("first", "piece"),
    [(encode_frame(1, b"x", mask=MASK, length=8193).hex(), "78" * 100), (BEGINNING, EMPTY)],
    ids=["a frame above 8 KiB", "many empty fragments"],
)
async def test_large_frame_or_many_fragments_end_an_unknown_socket(attacked: Scene, first: str, piece: str) -> None:
    outcome = await run(attacked, "frames", first=first, piece=piece)
    outcome.check(4 * MIB)
    assert set(outcome.report["codes"]) == {"1009"}, outcome
    assert await attacked.until_memory_is_back(outcome.before_bytes) < 30


async def test_unknown_sockets_take_little_memory_and_give_it_back(attacked: Scene) -> None:
    async def others() -> int:
        return sum([await introduces_itself(attacked, f"good-{number}") for number in range(20)])

    begin = f"{HANDSHAKE}\r\n"
    options = {"total": 2_215, "addresses": 20, "begin": begin, "socket_frames": UNFINISHED, "seconds": 12}
    outcome = await run(attacked, "crowd", beside=others, **options)
    outcome.check(64 * MIB)
    assert outcome.beside == 20
    assert outcome.descriptors < BURST + SPARE, outcome
    assert outcome.report["left"] == 0, outcome
    # 2,215 sockets in a second are a storm
    assert await attacked.until_memory_is_back(outcome.before_bytes + STORM_BYTES) < 30


async def test_unknown_sockets_with_large_heads_take_little_memory(attacked: Scene) -> None:
    begin = f"{HANDSHAKE}{PADDING * 7}\r\n"
    options = {"total": 2_000, "addresses": 20, "begin": begin, "socket_frames": UNFINISHED, "seconds": 12}
    outcome = await run(attacked, "crowd", **options)
    outcome.check(64 * MIB)
    assert await attacked.until_memory_is_back(outcome.before_bytes) < 30


async def test_socket_whose_introduction_failed_is_aborted(attacked: Scene) -> None:
    """The attacker keeps its end open, and responds to no close frame."""
    begin = f"{HANDSHAKE}\r\n"
    outcome = await run(attacked, "crowd", total=200, begin=begin, socket_frames=TEXT, seconds=6)
    assert outcome.report["left"] == 0, outcome
    assert outcome.report["last_end_s"] < 4, outcome


@pytest.mark.parametrize(
    ("piece", "is_known", "reads"),
    [(PING, False, False), (PING, True, True), (EMPTY_PING, True, False), (PONG, False, False), (TEXT, True, False)],
    ids=["unread ping", "read ping", "empty ping", "pong", "small messages"],
)
async def test_flood_of_small_frames_is_not_read(attacked: Scene, piece: str, is_known: bool, reads: bool) -> None:
    outcome = await run(attacked, "frames", first="", piece=piece, bearer=bearer() if is_known else "", reads=reads)
    outcome.check(4 * MIB)
    assert await attacked.until_memory_is_back(outcome.before_bytes) < 30


TWENTY_CPU_S = 0.024  # CPU time of the event loop during a request of another client, as a median (decision 0083)


@pytest.mark.parametrize("piece", [TEXT, FRAGMENTS], ids=["small", "fragments"])
async def test_floods_of_twenty_sockets_of_one_person_do_not_hold_the_loop(attacked: Scene, piece: str) -> None:
    options = {"first": "", "piece": piece, "times": 100, "bearer": bearer(), "at_once": 20}
    outcome = await run(attacked, "frames", reads=True, **options)
    outcome.check_with_cpu_time(16 * MIB, TWENTY_CPU_S)
    assert await attacked.until_memory_is_back(outcome.before_bytes) < 30


async def test_refused_handshake_has_the_form_of_other_refusals(watched_server: Scene) -> None:
    for before, after, status, word in (
        ("Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: websocket", 426, "Upgrade"),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 12", 400, "Sec-WebSocket-Version"),
        ("Sec-WebSocket-Key", "X-Key", 400, "Sec-WebSocket-Key"),
        ("HTTP/1.1", "HTTP/1.0", 400, "HTTP/1.1"),
    ):
        assert before in HANDSHAKE
        with connect(watched_server.port) as one:
            one.sendall(HANDSHAKE.replace(before, after).encode() + b"\r\n")
            head, _, body = read_all(one, 0.3).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        assert b"x-content-type-options: nosniff" in head
        assert (b"sec-websocket-version: 13" in head) == (word != "HTTP/1.1")
        problem = json.loads(body)
        assert (problem["code"], problem["status"]) == ("invalid_request", status)
        assert word in problem["detail"]
