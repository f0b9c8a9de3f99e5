"""The checker: one channel as a client sees it, and every violation of the protocol.

Layer: wirecheck.

Follows the client rules of `docs/protocol.md`, section 3, in the simplest possible way. It does not use the product's
fold. It is strict on purpose: an event that a tolerant client accepts can be a violation here. You can change private
names and the text of a violation freely. Do not make a check milder without a reason from the protocol.

A `Checker` passes presence, commands and signals on to `Notices`. A reload forgets the members and the pending
commands, but not the content of a command: it never changes within an epoch, except that the data of a command with a
reply may be missing later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

Json = dict[str, Any]
"""A decoded JSON object. Not the product's types: the checker examines received JSON, not a type made from it."""


@dataclass(frozen=True)
class Violation:
    """A server event that the protocol forbids. Tests compare `kind`; `detail` explains it to a person."""

    kind: str
    detail: str


@dataclass
class SeenPart:
    """A part as a viewer shows it: the fields as received, and the text with all later appends."""

    fields: Json
    serial: int  # serial of its last change
    length: int = 0  # length of the text in code points
    pieces: list[str] = field(default_factory=list)

    @classmethod
    def opened(cls, fields: Json, serial: int) -> Self:
        text = fields.get(cls._growing_key(fields), "")
        return cls(fields=fields, serial=serial, length=len(text), pieces=[text])

    @staticmethod
    def _growing_key(fields: Json) -> str:
        return "input" if fields.get("type") == "tool" else "text"

    @property
    def text(self) -> str:
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0]

    def append(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def as_json(self) -> Json:
        key = self._growing_key(self.fields)
        return self.fields | {key: self.text} if self.length or key in self.fields else self.fields


@dataclass
class SeenMessage:
    """A message as a viewer shows it. `fields` holds all its fields except `parts`."""

    fields: Json
    parts: list[SeenPart]
    replaced_at: int  # serial of its last create or update; parts opened later have their own
    version: int

    @classmethod
    def whole(cls, message: Json, serial: int) -> Self:
        fields = {key: value for key, value in message.items() if key != "parts"}
        parts = [SeenPart.opened(part, serial) for part in message.get("parts", [])]
        return cls(fields=fields, parts=parts, replaced_at=serial, version=serial)

    @property
    def status(self) -> str:
        return str(self.fields.get("status"))

    @property
    def text(self) -> str:
        """Return the text of all its text parts, concatenated."""
        return "".join(part.text for part in self.parts if part.fields.get("type") == "text")

    def as_json(self) -> Json:
        parts = [part.as_json() for part in self.parts]
        return _without_empty(self.fields | {"version": self.version, "parts": parts})


def _without_empty(fields: Json) -> Json:
    return {key: value for key, value in fields.items() if value is not None and value != [] and value != {}}


@dataclass
class _View:
    messages: dict[str, SeenMessage] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    has_more: bool = False  # the channel has older messages that this view never received
    before: int = 0
    is_behind: bool = False  # events are missing: only a new start repairs the view


def _parse_cursor(cursor: str) -> tuple[str, int] | None:
    epoch, *rest = cursor.split(":")
    return (epoch, int(rest[0])) if rest and rest[0].isascii() and rest[0].isdigit() else None


class Checker:
    """One channel as one client sees it, over any number of connections.

    An event that a correct server cannot send is added to `violations`, and then treated by the client rules. The
    caller decides whether a violation fails the run. Call `begin` and `end` for each connection, and `take` with all
    received events. `notices` holds presence, commands and signals.
    """

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.violations: list[Violation] = []
        self.notices = Notices(self.violate)
        self.events = 0
        self.batches = 0
        self.payload_bytes = 0  # the sessions count bodies and frame payloads, without framing
        self.new_starts = 0
        self.resumes = 0
        self.cursor: str | None = None  # cursor of the last complete batch; None after a hole, until a new start
        self.epoch = "-"
        self._view = _View()
        self._aside: _View | None = None  # the view of an incomplete new start; it replaces `_view` when it is complete
        self._since: tuple[str, int] | None = None
        self.has_attached = False  # whether this connection's first batch is complete
        self._has_begun = False  # whether this connection has received channel.attached
        self._last_serial = 0
        self._attach_serial = 0  # the next cursor may not be below it
        self._is_batch_open = False
        self._poll: str | None = None  # the cursor that a poll has sent

    # The view

    @property
    def messages(self) -> dict[str, SeenMessage]:
        return self._view.messages

    def text(self, message_id: str) -> str:
        """Return the text shown of a message; empty if the message is not in view."""
        message = self._view.messages.get(message_id)
        return message.text if message else ""

    def status(self, message_id: str) -> str | None:
        message = self._view.messages.get(message_id)
        return message.status if message else None

    def differences(self, message: Json) -> list[str]:
        """Return one sentence for each field in which the view differs from the server's `message`."""
        seen = self._view.messages.get(message["id"])
        if seen is None:
            return ["not in view"]
        shown, truth = seen.as_json(), _without_empty(message)
        return [
            f"{key}: shown {shorten(shown.get(key))}, stored {shorten(truth.get(key))}"
            for key in sorted(shown.keys() | truth.keys())
            if shown.get(key) != truth.get(key)
        ]

    # Connections and events

    def begin(self, since: str | None, *, is_poll: bool = False) -> None:
        """Begin a connection that requests the events after the cursor `since`.

        The response to a poll with a cursor need not begin with `channel.attached`.
        """
        self._since = _parse_cursor(since) if since is not None else None
        if self.cursor is None and self._since is not None and self._since[1] > 0:
            self._view.has_more = True  # another client saw the events before `since`
        self._poll = since if is_poll and self._since is not None else None
        self._has_begun = self._poll is not None
        if self._poll is not None and self._since is not None and self.epoch == "-":
            self.epoch = self._since[0]
        self.has_attached = False
        self._last_serial = self._since[1] if self._since else 0
        self._attach_serial = 0
        self._is_batch_open = False
        self._aside = None

    def end(self) -> None:
        """End the connection, possibly within a batch; the next connection requests an incomplete batch again."""
        self._aside = None
        self._is_batch_open = False

    def reload(self) -> None:
        """Forget the shown content, as a page that is loaded again. Violations and counters stay."""
        self.end()
        self._view = _View()
        self.cursor, self.epoch, self.has_attached = None, "-", False
        self.notices.reload()

    def take(self, events: list[Json], cursor: str | None = None) -> None:
        """Take events that arrived together, and the cursor at their end, if there was one."""
        for event in events:
            self.events += 1
            try:
                self._take_event(event)
            except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
                self.violate("malformed", f"{error!r} in {shorten(event)}")
        if cursor is not None:
            if not self._is_batch_open and self._poll is not None:
                self._check_poll(self._poll, cursor, has_notices=bool(events))
            elif events and not self._is_batch_open:
                self.violate("cursor", f"{cursor} without a batch before it")
            self._complete(cursor)

    def violate(self, kind: str, detail: str) -> None:
        self.violations.append(Violation(kind, detail))

    def _take_event(self, event: Json) -> None:
        kind = event["type"]
        if kind == "channel.attached":
            self._attached(event)
            return
        if not self._has_begun:
            self.violate("unattached", f"{kind} before channel.attached")
        serial = event.get("serial")
        if serial is not None:  # ephemeral events (presence, signals) have none and belong to no batch
            if serial <= self._last_serial:
                # Either the batch is out of order, or a cursor was sent before all events that it covers.
                self.violate("serial", f"{kind} with serial {serial} after {self._last_serial}")
            self._last_serial = max(self._last_serial, serial)
            self._is_batch_open = True
        handler = self._HANDLERS.get(kind)
        if handler is not None:
            handler(self, event, event["serial"])
        else:
            self.notices.take(event)

    def _attached(self, event: Json) -> None:
        epoch, serial, resumed = event["epoch"], event["serial"], event["resumed"]
        if event["channel"] != self.channel:
            self.violate("channel", f"attached to {event['channel']!r}")
        if self._is_batch_open:
            self.violate("batch", "channel.attached in the middle of a batch")
        if resumed:
            self.resumes += 1
            self._check_resumed(epoch, serial)
        else:
            self.new_starts += 1
            self._aside = _View(has_more=event.get("more", False), before=event.get("before", 0))
            self._last_serial = 0
        self.notices.attached(event)
        self.epoch = epoch
        self._attach_serial = serial
        self._has_begun = True
        self._is_batch_open = True

    def _check_resumed(self, epoch: str, serial: int) -> None:
        # In mid-stream, compare with the latest cursor of this connection, not with its first.
        known = _parse_cursor(self.cursor) if self._has_begun and self.cursor else self._since
        if known is None:
            self.violate("resumed", "resumed: true without a cursor to resume from")
        elif epoch != known[0] and known[0] != "-":
            self.violate("resumed", f"resumed: true from epoch {known[0]} in epoch {epoch}")
        elif serial < known[1]:
            self.violate("resumed", f"resumed: true from serial {known[1]} at serial {serial}")

    def _check_poll(self, before: str, after: str, *, has_notices: bool) -> None:
        """Check the cursor of a poll without an event of the log: only its position in the presence can differ.

        The serial can rise, because claims and leases are entries without an event.
        """
        (epoch, serial, *position), (now_epoch, now_serial, *now_position) = before.split(":"), after.split(":")
        if epoch != now_epoch or int(now_serial) < int(serial) or (position != now_position and not has_notices):
            self.violate("cursor", f"a poll without an event of the log moved the cursor from {before} to {after}")

    def _complete(self, cursor: str) -> None:
        parsed = _parse_cursor(cursor)
        if parsed is None:
            return self.violate("cursor", f"invalid cursor: {cursor!r}")
        epoch, serial = parsed
        if not self._has_begun:
            self.violate("cursor", "a cursor before channel.attached")
        if epoch != self.epoch:
            self.violate("cursor", f"a cursor of epoch {epoch} in epoch {self.epoch}")
        if serial < self._last_serial:
            self.violate("cursor", f"{cursor} at the end of a batch with serial {self._last_serial}")
        if serial < self._attach_serial:
            self.violate("cursor", f"{cursor} before the end of a catch-up to {self._attach_serial}")
        self.batches += 1
        self.has_attached = self._has_begun
        self._is_batch_open = False
        self._last_serial = serial
        self._attach_serial = 0
        if self._aside is not None:
            self._view, self._aside = self._aside, None
        self.cursor = None if self._view.is_behind else cursor
        return None

    # Messages: each handler gets the event and its serial

    def _replace_message(self, event: Json, serial: int) -> None:
        view = self._current()
        message = event["message"]
        id = message["id"]
        if message["version"] != serial:
            self.violate("version", f"{event['type']} {serial} holds version {message['version']} of {id}")
        if serial <= view.deleted.get(id, 0):
            return
        if id in view.deleted:
            self.violate("deleted", f"{event['type']} {serial} of {id}, deleted at {view.deleted[id]}")
        seen = view.messages.get(id)
        if seen is None:
            is_older = view.before and message["created"] < view.before
            if is_older and self._aside is None and message["status"] != "streaming":
                return
        elif serial <= seen.version:
            return
        view.messages[id] = SeenMessage.whole(message, serial)

    def _append(self, event: Json, serial: int) -> None:
        id, index, at, text = event["id"], event["part"], event["at"], event["text"]
        message = self._message(event, serial)
        if message is None:
            return
        if index >= len(message.parts):
            if serial > message.replaced_at:
                self._report_hole(f"append {serial} to part {index} of {id}, which has {len(message.parts)} parts")
            return
        part = message.parts[index]
        if serial <= part.serial:
            return
        overlap = part.length - at
        if overlap < 0:
            self._report_hole(f"append {serial} at {at} of part {index} of {id}, which has {part.length} characters")
            return
        if overlap:
            known = part.text[at : at + len(text)]
            if not text.startswith(known):
                self.violate("text", f"append {serial} at {at} of {id}: {shorten(text)}, shown {shorten(known)}")
            text = text[overlap:]
        part.append(text)
        part.serial = serial
        message.version = max(message.version, serial)

    def _part(self, event: Json, serial: int) -> None:
        id, index = event["id"], event["index"]
        message = self._message(event, serial)
        if message is None:
            return
        if index > len(message.parts):
            if serial > message.replaced_at:
                self._report_hole(f"part {index} of {id}, which has {len(message.parts)} parts")
            return
        known = message.parts[index].serial if index < len(message.parts) else message.replaced_at
        if serial <= known:
            return
        message.parts[index : index + 1] = [SeenPart.opened(event["part"], serial)]
        message.fields["updated_at"] = event["updated_at"]
        message.version = max(message.version, serial)

    def _finish(self, event: Json, serial: int) -> None:
        message = self._message(event, serial)
        if message is None or serial <= message.version:
            return
        if event["status"] not in ("complete", "cancelled", "interrupted", "failed"):
            self.violate("malformed", f"finish {serial} with status {event['status']!r}")
        for key in ("status", "reason", "meta", "updated_at"):
            message.fields[key] = event.get(key)
        message.version = serial

    def _takeover(self, event: Json, serial: int) -> None:
        message = self._message(event, serial)
        if message is None or serial <= message.version:
            return
        message.fields["status"] = "streaming"
        message.fields["reason"] = None
        message.version = serial

    def _delete(self, event: Json, serial: int) -> None:
        view = self._current()
        view.messages.pop(event["id"], None)
        view.deleted[event["id"]] = max(serial, view.deleted.get(event["id"], 0))

    # Helpers

    def _current(self) -> _View:
        return self._view if self._aside is None else self._aside

    def _message(self, event: Json, serial: int) -> SeenMessage | None:
        """Return the message that `event` changes, or None if it is not in view. Report it unless it may be missing."""
        view, id = self._current(), event["id"]
        message = view.messages.get(id)
        if message is None and serial > view.deleted.get(id, 0):
            if id in view.deleted:
                self.violate("deleted", f"{event['type']} {serial} of {id}, deleted at {view.deleted[id]}")
            elif not view.has_more:
                self._report_hole(f"{event['type']} {serial} of {id}, which is not in view")
        return message

    def _report_hole(self, detail: str) -> None:
        """Report a hole. A resume cannot fill it, so drop the cursor: the next attach is a new start."""
        self.violate("hole", detail)
        self._view.is_behind = True
        self.cursor = None

    _HANDLERS: ClassVar[dict[str, Callable[[Checker, Json, int], None]]] = {
        "message.create": _replace_message,
        "message.update": _replace_message,
        "message.append": _append,
        "message.part": _part,
        "message.finish": _finish,
        "message.takeover": _takeover,
        "message.delete": _delete,
    }


def shorten(value: object) -> str:
    """Return the representation of `value`, abbreviated for an error message."""
    shown = repr(value)
    return shown if len(shown) <= 120 else f"{shown[:80]}…{shown[-30:]} ({len(shown)} characters)"


class Notices:
    """The members, commands and signals of one channel. `violate` receives a kind and a detail."""

    def __init__(self, violate: Callable[[str, str], None]) -> None:
        self.members: dict[str, Json] = {}
        self.left: list[str] = []  # for each `presence.leave` the id of the member
        self.signals: list[Json] = []
        self.pending: dict[str, Json] = {}  # commands that wait for a reply
        self.replies: dict[str, Json] = {}
        self._epoch: str | None = None
        self._commands: dict[str, Json] = {}  # all commands that were received
        self._without_reply: set[str] = set()  # received commands whose reply has not come; a new start may omit it
        self._violate = violate

    def attached(self, event: Json) -> None:
        """Take `channel.attached`, which holds the present members and the pending commands."""
        if self._epoch != event["epoch"]:
            self._epoch = event["epoch"]
            self._commands.clear()
            self.replies.clear()
        if not event["resumed"]:
            self._without_reply.clear()
        self._sync((event.get("presence") or {}).get("members", []))
        self.pending = {}
        for command in event.get("commands", []):
            self._command(command)

    def take(self, event: Json) -> None:
        """Take any other event; those of messages are ignored."""
        match event["type"]:
            case "presence.sync":
                self._sync(event["members"])
            case "presence.enter" | "presence.update":
                self.members[event["member"]["id"]] = event["member"]
            case "presence.leave":
                self.members.pop(event["id"], None)
                self.left.append(event["id"])
            case "command":
                self._command(event["command"])
            case "command.reply":
                self._reply(event)
            case "signal":
                self.signals.append(event)

    def reload(self) -> None:
        """Forget the members and the pending commands, as a page that is loaded again."""
        self.members.clear()
        self.pending.clear()
        self._without_reply.clear()

    def differences(self, members: Iterable[str]) -> list[str]:
        """Return one sentence for each difference from `members` and from a channel where no command waits."""
        expected = set(members)
        return [
            *(f"{id} is shown as present, but is not" for id in sorted(self.members.keys() - expected)),
            *(f"{id} is present, but not shown" for id in sorted(expected - self.members.keys())),
            *(f"command {id} still waits for a reply" for id in sorted(self.pending)),
            *(
                f"command {id} was sent, but its reply was not"
                for id in sorted(self._without_reply - self.pending.keys())
            ),
        ]

    def _sync(self, members: list[Json]) -> None:
        self.members = {member["id"]: member for member in members}

    def _command(self, command: Json) -> None:
        self._check_same(self._commands, command["id"], command, "command")
        if command["id"] not in self.replies:
            self.pending[command["id"]] = command
            self._without_reply.add(command["id"])

    def _reply(self, reply: Json) -> None:
        self._check_same(self.replies, reply["id"], reply, "reply")
        self.pending.pop(reply["id"], None)
        self._without_reply.discard(reply["id"])

    def _check_same(self, known: dict[str, Json], id: str, received: Json, what: str) -> None:
        before = known.setdefault(id, received)
        if before == received:
            return
        bare = _without_data(received)
        has_lost_data = bare == _without_data(before) and bare in (before, received)
        if not has_lost_data or (id in self.pending and id not in self.replies):
            self._violate("changed", f"{what} {id} was {before}, and is now {received}")


def _without_data(known: Json) -> Json:
    """Return a command or reply without its data; of an error only the code remains."""
    bare = {name: value for name, value in known.items() if name not in ("data", "error")}
    code = (known.get("error") or {}).get("code")
    return bare | {"error": {"code": code}} if code is not None else bare
