"""The target `documents` finds damage that reaches a viewer, and text lost without an error."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proof.fuzz.documents import Documents
from proof.fuzz.engine import check
from tenuto.app import Hub
from tenuto.core import document
from tenuto.core.errors import StoreUnusable
from tenuto.core.message_state import PartState
from tenuto.core.model import Message
from tenuto.stores.sqlite import documents as sqlite_documents
from tenuto.stores.sqlite import engine as sqlite_engine
from tests.stores.files import run_from_outside

decode_head, read, value = document._decode_head, sqlite_documents.Documents.read, PartState.value
FIELDS = len(document.MessageHead.__struct_fields__)


def raises_key_error(self: Any, prefix: str) -> dict[str, bytes]:
    raise KeyError(prefix)


def forgets_a_segment(self: Any, *which: Any) -> tuple[bytes, list[document.Segment]]:
    head, segments = read(self, *which)
    return head, segments[:-1]


def refuses_newer_fields(data: bytes) -> document.MessageHead:
    if len(msgspec.msgpack.decode(data)) > FIELDS:
        raise StoreUnusable("too new")
    return decode_head(data)


def drops_the_last_character(self: PartState, until: int | None = None) -> dict[str, Any]:
    shown = value(self, until)
    return {**shown, self.key: shown[self.key][:-1]} if self.key else shown


MUTANTS: list[tuple[str, object, str, object]] = [
    ("raised", sqlite_engine.Engine, "notes", raises_key_error),
    ("wrong", sqlite_documents.Documents, "read", forgets_a_segment),
    ("refused", document, "_decode_head", refuses_newer_fields),
    ("length", PartState, "value", drops_the_last_character),
]


@pytest.fixture(scope="module")
def target() -> Iterator[Documents]:
    with closing(Documents()) as made:
        yield made


@pytest.mark.parametrize(("kind", "place", "name", "mistake"), MUTANTS, ids=[one[0] for one in MUTANTS])
def test_mutant_is_found(
    monkeypatch: pytest.MonkeyPatch, target: Documents, kind: str, place: object, name: str, mistake: object
) -> None:
    whole: dict[str, Any] = {"edits": []}
    newer = {"edits": [{"document": 1, "blob": 0, "at": [], "more": [None, 7, "new"]}]}
    assert (check(target, whole), check(target, newer)) == (None, None)
    monkeypatch.setattr(place, name, mistake)
    found = (text for given in (whole, newer) if (text := check(target, given)) is not None)
    first = next(found, "no finding")
    assert first.startswith(kind), first[:500]


class Damaged:
    """A hub on a file in which the head of one of two messages is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __aenter__(self) -> Hub:
        hub = Hub(f"sqlite:///{self._path}", hooks_signals=False)
        for id in ("m1", "m2"):
            await hub.create("c", id=id, text="hello")
        await hub.close()
        run_from_outside(
            self._path,
            "UPDATE texts SET body = x'000190' WHERE id = (SELECT slot FROM pieces JOIN documents ON id = document"
            " WHERE message = 'm1' AND blob = 0)",
        )
        self._hub = Hub(f"sqlite:///{self._path}", hooks_signals=False)
        await self._hub.start()
        return self._hub

    async def __aexit__(self, *why: object) -> None:
        await self._hub.close()


def outcomes_of(outcomes: list[Message | BaseException]) -> list[str]:
    """Return the outcome of each request: the code of its error, or `ok`."""
    return [str(getattr(one, "code", repr(one))) if isinstance(one, BaseException) else "ok" for one in outcomes]


async def test_damaged_message_is_refused_and_blocks_no_other_message(tmp_path: Path) -> None:
    async with Damaged(tmp_path / "chat.db") as hub, asyncio.timeout(20.0):
        damaged = await asyncio.gather(hub.update("c", "m1", text="x"), return_exceptions=True)
        others = await asyncio.gather(hub.update("c", "m2", text="x"), return_exceptions=True)
        assert (outcomes_of([*damaged]), outcomes_of([*others])) == (["damaged"], ["ok"])
