"""A viewer's side: what a client shows after the events it was sent (`docs/protocol.md`, 3.4).

You are in `core`. The Python client, `holdfast tail`, the simulator and the property tests all keep their view with
this; `web/view.js` is its twin, and both pass `tests/vectors/`. A view is always a prefix of the truth and ends
equal to it, whatever was cut, delayed, repeated or joined.
"""

from __future__ import annotations

from msgspec.structs import replace

from holdfast.core.cursor import EMPTY
from holdfast.core.events import (
    Batch,
    ChannelAttached,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageEvent,
    MessageFinish,
    MessagePart,
    MessageTakeover,
    MessageUpdate,
    Page,
    ServerEvent,
)
from holdfast.core.model import APPENDABLE, Message, Part
from holdfast.core.text import Text

# What is remembered of messages that are not shown. It matters while a page of history is on its way or a batch
# comes twice, so the oldest may go; without a bound a view that is open for weeks would only ever grow.
REMEMBERED = 10_000


class ViewGap(Exception):
    """An append lies beyond what the view has: something was lost. Attach anew, after a back-off, without a cursor.

    Until that new start the view ignores what comes, and has no cursor.
    """


class _Part:
    __slots__ = ("fields", "key", "serial", "text")

    def __init__(self, part: Part, serial: int) -> None:
        self.serial = serial  # of its last change
        self.key = APPENDABLE.get(part["type"], "")
        self.fields = part
        self.text = Text(part.get(self.key, "")) if self.key else None

    def value(self) -> Part:
        return {**self.fields, self.key: str(self.text)} if self.text is not None else self.fields


class _Shown:
    """A message in view."""

    __slots__ = ("base", "head", "parts", "version")

    def __init__(self, message: Message, serial: int) -> None:
        self.head = message
        self.version = serial
        self.base = serial  # of the last create or update: what a part that is not there yet starts from
        self.parts = [_Part(part, serial) for part in message.parts]

    def message(self) -> Message:
        return replace(self.head, parts=[part.value() for part in self.parts], version=self.version)


class View:
    """The messages of one channel as a client shows them, and the cursor to come back with."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.gaps = 0
        self.more = False
        self.before: int | None = None
        self._shown: dict[str, _Shown] = {}
        self._seen: dict[str, int] = {}  # serial of the last event about a message that is not in view
        self._deleted: dict[str, int] = {}
        self._aside: View | None = None  # a new start that is not complete yet
        self._is_lost = False  # after a gap, until a new start

    def messages(self) -> list[Message]:
        """What is shown, in order."""
        shown = sorted(self._shown.values(), key=lambda one: one.head.created)
        return [one.message() for one in shown]

    def text(self, message_id: str) -> str:
        """The text of a message's text parts; empty if it is not in view."""
        shown = self._shown.get(message_id)
        return "" if shown is None else shown.message().text

    def receive(self, batch: Batch) -> None:
        """Apply a batch, or a piece of one (no cursor). Raises ViewGap when something was lost before it."""
        try:
            for event in batch.events:
                self._receive(event)
        except ViewGap:
            self.gaps += 1
            self.cursor = None
            self._aside = None
            self._is_lost = True
            raise
        if batch.cursor is not None:
            if self._aside is not None:
                self._replace(self._aside)
            if not self._is_lost:
                self.cursor = batch.cursor

    def cut(self) -> None:
        """The connection is gone: a new start that was not complete is forgotten."""
        self._aside = None

    def receive_page(self, page: Page) -> bool:
        """Take in a page of history that was asked for from `before`.

        False: it is older than what is known of one of its messages. Ask again from `before`, which stays.
        """
        is_believed = True
        for message in page.messages:
            if message.id in self._shown or message.id in self._deleted:
                continue
            if message.version < self._seen.get(message.id, 0):
                is_believed = False
            else:
                self._shown[message.id] = _Shown(message, message.version)
        if is_believed:
            self.before = min((message.created for message in page.messages), default=self.before)
            self.more = page.more
        return is_believed

    def _receive(self, event: ServerEvent) -> None:
        if isinstance(event, ChannelAttached):
            self._attach(event)
            return
        if self._aside is not None:
            self._aside._apply(event)
        elif not self._is_lost:
            self._apply(event)

    def _attach(self, event: ChannelAttached) -> None:
        self._aside = None
        if not event.resumed:
            self._aside = View()
            self._aside.more = bool(event.more)
            self._aside.before = event.before
        elif self.cursor == str(EMPTY):
            # The cursor of an empty channel names no epoch, so it resumes in any. What a batch that was cut has shown
            # since then may be of a log that is gone; all of this one follows.
            self._shown, self._seen, self._deleted = {}, {}, {}

    def _replace(self, other: View) -> None:
        self._aside, self._is_lost = None, False
        self.more, self.before = other.more, other.before
        self._shown, self._seen, self._deleted = other._shown, other._seen, other._deleted

    def _apply(self, event: MessageEvent) -> None:
        match event:
            case MessageCreate() | MessageUpdate():
                self._show(event.message, event.serial)
            case MessageAppend():
                self._append(event)
            case MessagePart():
                self._set_part(event)
            case MessageFinish():
                self._amend(event, status=event.status, reason=event.reason, meta=event.meta, at=event.updated_at)
            case MessageTakeover():
                self._amend(event, status="streaming", reason=None, meta=None, at=None)
            case MessageDelete():
                shown = self._shown.get(event.id)
                if shown is None or event.serial > shown.version:
                    self._shown.pop(event.id, None)
                    _remember(self._deleted, event.id, event.serial)

    def _show(self, message: Message, serial: int) -> None:
        shown = self._shown.get(message.id)
        if shown is not None and serial <= shown.version:
            return
        if serial <= self._deleted.get(message.id, 0) or serial < self._seen.get(message.id, 0):
            return
        is_old = self.before is not None and message.created < self.before
        if shown is None and is_old and message.status != "streaming":
            _remember(self._seen, message.id, serial)
            return
        self._shown[message.id] = _Shown(message, serial)
        self._seen.pop(message.id, None)

    def _append(self, event: MessageAppend) -> None:
        shown = self._shown.get(event.id)
        if shown is None:
            _remember(self._seen, event.id, event.serial)
            return
        if event.part >= len(shown.parts):
            if event.serial <= shown.base:
                return
            raise ViewGap(f"part {event.part} of message {event.id!r} was never opened")
        part = shown.parts[event.part]
        if event.serial <= part.serial or part.text is None:
            return
        if event.at > part.text.length:
            raise ViewGap(f"part {event.part} of {event.id!r} has {part.text.length}, an append came for {event.at}")
        part.text.append(event.text[part.text.length - event.at :], event.serial)
        part.serial = event.serial
        shown.version = max(shown.version, event.serial)

    def _set_part(self, event: MessagePart) -> None:
        shown = self._shown.get(event.id)
        if shown is None:
            _remember(self._seen, event.id, event.serial)
            return
        count = len(shown.parts)
        serial = shown.parts[event.index].serial if event.index < count else shown.base
        if event.serial <= serial:
            return
        if event.index > count:
            raise ViewGap(f"part {event.index} of message {event.id!r} came before part {count}")
        shown.parts[event.index : event.index + 1] = [_Part(event.part, event.serial)]
        shown.version = max(shown.version, event.serial)
        shown.head = replace(shown.head, updated_at=event.updated_at)

    def _amend(
        self,
        event: MessageFinish | MessageTakeover,
        *,
        status: str,
        reason: str | None,
        meta: dict[str, object] | None,
        at: int | None,
    ) -> None:
        shown = self._shown.get(event.id)
        if shown is None:
            _remember(self._seen, event.id, event.serial)
            return
        if event.serial <= shown.version:
            return
        head = replace(shown.head, status=status, reason=reason)
        if meta is not None and at is not None:
            head = replace(head, meta=meta, updated_at=at)
        shown.head = head
        shown.version = event.serial


def _remember(serials: dict[str, int], message_id: str, serial: int) -> None:
    """Keep the highest serial heard of a message; the one not heard of for longest goes where there are too many."""
    serials[message_id] = max(serial, serials.pop(message_id, 0))
    if len(serials) > REMEMBERED:
        del serials[next(iter(serials))]
