"""Views: compute the content that a client shows from the events it receives (`docs/protocol.md`, 3.4).

Layer: core.

The Python client, the simulator and the property tests all keep their view with this. `web/view.js`
is the same in JavaScript, and both pass `tests/vectors/`. A view is always a prefix of the truth and ends equal to it,
even if batches are interrupted, delayed, repeated or joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.events import (
    EMPTY,
    Batch,
    ChannelAttached,
    CommandReply,
    CommandSent,
    EphemeralEvent,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageFinish,
    MessagePart,
    MessageTakeover,
    MessageUpdate,
    Page,
    PresenceEnter,
    PresenceEvent,
    PresenceLeave,
    PresenceSync,
    PresenceUpdate,
    ServerEvent,
    Signal,
    StoredEvent,
)
from tenuto.core.model import Command, Member, Message
from tenuto.core.text import PartState

_Known = TypeVar("_Known", bound=int)

# Number of serials to remember, of messages that are not shown and of commands. They matter only while a page of
# history is being requested or a batch is repeated, so the oldest may be dropped; without a limit the memory of a view
# that is open for weeks would only grow.
REMEMBERED = 10_000


class ViewGap(Exception):
    """An append begins beyond the view's text, so events were lost. Attach again after a delay, without a cursor.

    Until that new start the view ignores all events and has no cursor.
    """


class _Shown:
    """A message that the view shows."""

    __slots__ = ("base", "head", "parts", "version")

    def __init__(self, message: Message, serial: int) -> None:
        self.head = message
        self.version = serial
        self.base = serial  # serial of the last create or update; an event with a higher serial may open parts
        self.parts = [PartState(part, serial, serial) for part in message.parts]  # here an append counts as a change

    def message(self) -> Message:
        return replace(self.head, parts=[part.value() for part in self.parts], version=self.version)


class _Here(Struct):
    """The members of a channel that are known by name, and the number of all members."""

    members: dict[str, Member] = {}
    count: int = 0

    def sync(self, members: Iterable[Member], count: int | None) -> None:
        self.members = {member.id: member for member in members}
        self.count = len(self.members) if count is None else count

    def apply(self, event: PresenceEvent) -> None:
        match event:
            case PresenceEnter():
                if event.member.id not in self.members:
                    self.count += 1
                self.members[event.member.id] = event.member
            case PresenceUpdate():
                self.members[event.member.id] = event.member  # the member was counted before, but not known by name
            case PresenceLeave():
                self.members.pop(event.id, None)
                self.count = max(self.count - 1, len(self.members))
            case PresenceSync():
                self.sync(event.members, event.count)


class _Commands(Struct):
    """The pending commands, and for each known command whether it has a reply."""

    pending: dict[str, Command] = {}
    _has_reply: dict[str, bool] = {}

    def sync(self, pending: Iterable[Command]) -> None:
        """Replace the pending commands by those in `channel.attached`, which lists them all."""
        self.pending = {}
        for command in pending:
            self._open(command)

    def add(self, command: Command) -> None:
        if command.id not in self._has_reply:
            self._open(command)

    def reply(self, command_id: str) -> bool:
        """Record the reply to a command; returns False if the command already had one."""
        if self._has_reply.get(command_id):
            return False
        _remember(self._has_reply, command_id, True)
        self.pending.pop(command_id, None)
        return True

    def _open(self, command: Command) -> None:
        if not self._has_reply.get(command.id):
            _remember(self._has_reply, command.id, False)
            self.pending[command.id] = command


class View:
    """One channel as a client shows it: messages, members and pending commands, and the cursor to resume from."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.passed: list[CommandReply | Signal] = []  # events of the last `receive` that the view itself does not keep
        self.gaps = 0  # number of gaps so far
        self.more = False  # True: there are messages before the oldest one in view
        self.before: int | None = None  # serial before which they were created: the next page is requested from it
        self._shown: dict[str, _Shown] = {}
        self._seen: dict[str, int] = {}  # for messages that are not in view: serial of the last event about them
        self._deleted: dict[str, int] = {}  # for deleted messages: serial of the deletion
        self._here = _Here()
        self._commands = _Commands()
        self._incoming: View | None = None  # the view of a new start while its batches are not complete
        self._is_lost = False  # True from a gap until a new start

    def messages(self) -> list[Message]:
        """Return the messages in view, in order."""
        shown = sorted(self._shown.values(), key=lambda one: one.head.created)
        return [one.message() for one in shown]

    def text(self, message_id: str) -> str:
        """Return the text of a message's text parts; empty if it is not in view."""
        shown = self._shown.get(message_id)
        return "" if shown is None else shown.message().text

    def members(self) -> list[Member]:
        """Return the present members that are known by name, in the order they became known."""
        return list(self._here.members.values())

    @property
    def count(self) -> int:
        """Return the number of members, including those that are not known by name."""
        return self._here.count

    def commands(self) -> list[Command]:
        """Return the pending commands, in the order they became known."""
        return list(self._commands.pending.values())

    def receive(self, batch: Batch) -> None:
        """Apply a batch, or a piece of one (no cursor). Raises ViewGap if events before it were lost.

        Then, also after a gap, `passed` holds the batch's signals and its new replies, for the app's callbacks.
        """
        self.passed = []
        try:
            for event in batch.events:
                self._receive(event)
        except ViewGap:
            self.gaps += 1
            self.cursor = None
            if self._incoming is not None:
                self.passed += self._incoming.passed  # the new start does not repeat these events
            self._incoming = None
            self._is_lost = True
            raise
        if batch.cursor is not None:
            if self._incoming is not None:
                self._replace(self._incoming)
            if not self._is_lost:
                self.cursor = batch.cursor

    def cut(self) -> None:
        """Drop an incomplete new start, because its connection is gone."""
        self._incoming = None

    def receive_page(self, page: Page) -> bool:
        """Add a page of history that was requested from `before`.

        Returns False if the view has newer events of one of its messages. Request it again from `before`, which stays.
        """
        is_current = True
        for message in page.messages:
            if message.id in self._shown or message.id in self._deleted:
                continue
            if message.version < self._seen.get(message.id, 0):
                is_current = False
            else:
                self._shown[message.id] = _Shown(message, message.version)
        if is_current:
            self.before = min((message.created for message in page.messages), default=self.before)
            self.more = page.more
        return is_current

    def _receive(self, event: ServerEvent) -> None:
        if isinstance(event, ChannelAttached):
            self._attach(event)
            return
        if self._incoming is not None:
            self._incoming._apply(event)
        elif not self._is_lost:
            self._apply(event)

    def _attach(self, event: ChannelAttached) -> None:
        self._incoming = None
        view = self
        if not event.resumed:
            view = self._incoming = View()  # takes the place of this one once its batches are complete (`receive`)
            view.more = bool(event.more)
            view.before = event.before
        elif self._is_lost:  # until a new start
            return
        elif f"{self.cursor}:".startswith(f"{EMPTY}:"):  # a transport may have added further fields to the cursor
            # The cursor of an empty channel names no epoch, so it resumes in any epoch. The view may show part of a
            # batch from a log that no longer exists; the whole log of this epoch follows.
            self._shown, self._seen, self._deleted = {}, {}, {}
            self._commands = _Commands()
        presence = event.presence
        view._here.sync(presence.members if presence else (), presence.count if presence else 0)
        view._commands.sync(event.commands)

    def _replace(self, other: View) -> None:
        self._incoming, self._is_lost = None, False
        self.more, self.before = other.more, other.before
        self._shown, self._seen, self._deleted = other._shown, other._seen, other._deleted
        self._here, self._commands = other._here, other._commands
        self.passed += other.passed

    def _apply(self, event: StoredEvent | EphemeralEvent) -> None:
        match event:
            case MessageCreate() | MessageUpdate():
                self._show(event.message, event.serial)
            case MessageAppend() | MessagePart() | MessageFinish() | MessageTakeover() if event.id not in self._shown:
                _remember(self._seen, event.id, event.serial)  # so that no older page brings the message
            case MessageAppend():
                self._append(event)
            case MessagePart():
                self._set_part(event)
            case MessageFinish():
                ended = {"status": event.status, "reason": event.reason, "meta": event.meta}
                self._amend(event, **ended, updated_at=event.updated_at)
            case MessageTakeover():
                self._amend(event, status="streaming", reason=None)
            case MessageDelete():
                shown = self._shown.get(event.id)
                if shown is None or event.serial > shown.version:
                    self._shown.pop(event.id, None)
                    _remember(self._deleted, event.id, event.serial)
            case CommandSent():
                self._commands.add(event.command)
            case CommandReply():
                if self._commands.reply(event.id):
                    self.passed.append(event)
            case Signal():
                self.passed.append(event)
            case PresenceEnter() | PresenceUpdate() | PresenceLeave() | PresenceSync():
                self._here.apply(event)

    def _show(self, message: Message, serial: int) -> None:
        """Show a whole message as of `serial`, unless the view knows it newer or deleted, or has not paged to it."""
        shown = self._shown.get(message.id)
        if shown is not None and serial <= shown.version:
            return
        if serial <= self._deleted.get(message.id, 0) or serial < self._seen.get(message.id, 0):
            return
        is_old = self.before is not None and message.created < self.before
        if shown is None and is_old and message.status != "streaming":
            _remember(self._seen, message.id, serial)  # it comes with its page of history
            return
        self._shown[message.id] = _Shown(message, serial)
        self._seen.pop(message.id, None)

    def _append(self, event: MessageAppend) -> None:
        shown = self._shown[event.id]
        if event.part >= len(shown.parts):
            if event.serial <= shown.base:  # older than the message, which has lost the part since
                return
            raise ViewGap(
                f"message {event.id!r} has {len(shown.parts)} parts, an append came for part {event.part}; attach anew"
            )
        part = shown.parts[event.part]
        if event.serial <= part.changed or part.text is None:  # a repeat; a part without text gets no appends
            return
        if event.at > part.text.length:
            raise ViewGap(
                f"part {event.part} of message {event.id!r} has {part.text.length} characters, "
                f"an append came for offset {event.at}; attach anew"
            )
        part.text.append(event.text[part.text.length - event.at :], event.serial)
        part.changed = event.serial
        shown.version = max(shown.version, event.serial)

    def _set_part(self, event: MessagePart) -> None:
        shown = self._shown[event.id]
        count = len(shown.parts)
        if event.serial <= (shown.parts[event.index].changed if event.index < count else shown.base):  # a repeat
            return
        if event.index > count:
            raise ViewGap(f"message {event.id!r} has {count} parts, part {event.index} came; attach anew")
        shown.parts[event.index : event.index + 1] = [PartState(event.part, event.serial, event.serial)]
        shown.version = max(shown.version, event.serial)
        shown.head = replace(shown.head, updated_at=event.updated_at)

    def _amend(self, event: MessageFinish | MessageTakeover, **changes: object) -> None:
        shown = self._shown[event.id]
        if event.serial <= shown.version:  # a repeat, or the view has a later state
            return
        shown.head = replace(shown.head, **changes)
        shown.version = event.serial


def _remember(known: dict[str, _Known], one: str, value: _Known) -> None:
    """Note `value`, such as an event's serial, for the id `one`, so that older events about it can be ignored.

    The highest value counts. If there are too many ids, the one whose last event is oldest is dropped.
    """
    known[one] = max(value, known.pop(one, value))
    if len(known) > REMEMBERED:
        del known[next(iter(known))]
