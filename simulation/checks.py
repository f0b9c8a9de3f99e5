"""What must hold, whatever happened: the eyes of viewers, the hook_recorder of writers, and the size of a hub.

Layer: simulation.

An `Eye` is a viewer's strict `core.view.View`, compared with the truth after every piece that
arrives. Answers are compared with what was stored when they were given. All of these raise `Violation`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable

import msgspec

from holdfast.app import Hub
from holdfast.core.cursor import EMPTY, NO_EPOCH, Cursor, parse_cursor
from holdfast.core.events import (
    Batch,
    ChannelAttached,
    EphemeralEvent,
    MessageCreate,
    MessageUpdate,
    Page,
    Presence,
    PresenceLeave,
    ServerEvent,
    Signal,
)
from holdfast.core.limits import Limits
from holdfast.core.model import Message
from holdfast.core.view import View, ViewGap
from holdfast.hub.hub import HubCore
from holdfast.transports.app import App
from simulation.ledger import Ledger
from simulation.trace import Trace, Violation
from simulation.truth import Life, Truth, text_of


class Eye:
    """One person's view of one channel, kept over connections, and all that may be said about it."""

    def __init__(
        self,
        name: str,
        channel: str,
        truth: Truth,
        trace: Trace,
        limits: Limits,
        *,
        ledger: Ledger | None = None,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.name = name
        self.channel = channel
        self.view = View()
        self.epoch = NO_EPOCH  # of what is shown
        self.starts = 0  # how often the view was begun anew
        self.batches = 0
        self._truth = truth
        self._trace = trace
        self._limits = limits
        self._ledger = ledger
        self._now_s = now_s
        self.heard: set[object] = set()  # what was signalled
        self.follows_s = float("inf")  # since then it is told at once what is said in passing
        self._begun_s = 0.0  # when this connection was begun
        self._attached_s = 0.0  # not before this did the view begin to be told who comes and goes
        self._next_epoch: str | None = None  # of a new start that is not complete
        self._since: Cursor | None = None  # asked for with this connection, until it is answered
        self._is_answered = True
        self._is_poll = False
        self._is_whole = True  # it does not stand in the middle of a batch
        self._high: dict[str, int] = {}  # by epoch, the highest serial this person ever saw

    def begin(self, since: str | None, *, is_told: bool = True) -> None:
        """What comes from now on answers the cursor `since`; `is_told`: it begins with `channel.attached`.

        A poll need not; and what it says in passing has a cursor, since nobody else remembers where a poller was.
        """
        self._since = parse_cursor(since)
        self._is_answered = not is_told
        self._is_poll = not is_told
        self._begun_s = self._now_s()
        self.follows_s = float("inf")

    def cut(self) -> None:
        """The connection is gone."""
        self.view.cut()
        self._next_epoch = None
        self.follows_s = float("inf")

    def reload(self) -> None:
        """The page is loaded anew: everything that was shown is forgotten."""
        self.view = View()
        self._next_epoch = None
        self.starts += 1

    def put_away(self) -> tuple[View, str]:
        """The page as it is, to be looked at again some day."""
        return copy.deepcopy(self.view), self.epoch

    def take_out(self, page: tuple[View, str]) -> None:
        """Go on with a page that was put away."""
        view, self.epoch = page
        self.view = copy.deepcopy(view)
        self._is_whole = False
        self.starts += 1

    def receive(self, batch: Batch, stamp: int) -> None:
        """A batch, or a piece of one, arrived that was sent at `stamp`."""
        for event in batch.events:
            self._check_event(event, stamp)
        try:
            self.view.receive(batch)
        except ViewGap as gap:
            raise self._violation(f"a gap: {gap}") from None
        is_passing = batch.events and all(isinstance(event, EphemeralEvent) for event in batch.events)
        if is_passing and not self._is_poll:
            if batch.cursor is not None:
                raise self._violation(f"what was said in passing moves the cursor: {batch}")
            return  # not of the log: it stands in no batch's middle
        self._is_whole = batch.cursor is not None
        if batch.cursor is None:
            self._check_prefixes()
            return
        self.batches += 1
        self._trace.add(f"{self.name} {self.channel} at {batch.cursor} after {len(batch.events)} events")
        self._check_complete(batch.cursor, stamp)

    def receive_page(self, page: Page, stamp: int, starts: int) -> bool:
        """A page of history arrived that was asked for at the start number `starts`; False: ask again."""
        cursor = parse_cursor(page.cursor)
        if cursor is None or starts != self.starts or cursor.epoch != self.epoch or self._next_epoch is not None:
            return True  # of another view
        for message in page.messages:
            check_message(self._truth, self.channel, message, stamp)
        check_cursor(self._truth, self.channel, page.messages, page.cursor, stamp)
        is_believed = self.view.receive_page(page)
        if self._is_whole and self.view.cursor is not None:
            self._check_shown(self._life(self.epoch), parse_cursor(self.view.cursor) or EMPTY)
        return is_believed

    @property
    def is_settled(self) -> bool:
        """Does the view show all there is?"""
        life = self._truth.head(self.channel)
        cursor = parse_cursor(self.view.cursor)
        if cursor is None or self._next_epoch is not None or cursor.epoch != life.epoch:
            return False
        return life.seen <= cursor.serial <= life.serial  # what is no event moves nobody

    # -- inside ------------------------------------------------------------------------------------------------

    def _violation(self, text: str) -> Violation:
        return Violation(f"{self.name} on {self.channel}: {text}")

    def _life(self, epoch: str) -> Life:
        life = self._truth.life(self.channel, epoch)
        if life is None:
            raise self._violation(f"the epoch {epoch} was never stored")
        return life

    def _check_event(self, event: ServerEvent, stamp: int) -> None:
        """Stored before shown."""
        if isinstance(event, ChannelAttached):
            self._check_attached(event, stamp)
            return
        if not self._is_answered:
            raise self._violation(f"the first event is not channel.attached, but {event}")
        if isinstance(event, EphemeralEvent):
            self._check_passing(event)
            return
        life = self._life(self._next_epoch or self.epoch)
        if not life.is_stored(event.serial, stamp):
            raise self._violation(f"entry {event.serial} was sent before it was stored: {event}")
        if isinstance(event, MessageCreate | MessageUpdate) and event.serial != event.message.version:
            raise self._violation(f"labelled {event.serial}, but of version {event.message.version}: {event}")
        if self._next_epoch is None:
            self._high[self.epoch] = max(event.serial, self._high.get(self.epoch, 0))

    def _check_passing(self, event: EphemeralEvent) -> None:
        """Nobody is said to have left who was back at once, and nothing to be said that was not."""
        if self._ledger is None:
            return
        if isinstance(event, PresenceLeave):
            self._trace.add(f"{self.name} is told that {event.id} has left {self.channel}")
            self._ledger.check_leave((self.channel, event.id), self._attached_s)
        elif isinstance(event, Signal) and event.from_ is not None:  # the server's own are of another kind
            if event.data not in self._ledger.whispers:
                raise self._violation(f"nobody signalled {event}")
            self.heard.add(event.data)

    def _check_attached(self, event: ChannelAttached, stamp: int) -> None:
        self.follows_s = min(self.follows_s, self._now_s()) if not self._is_poll else float("inf")
        self._attached_s = self._begun_s  # what arrives late may be told of long ago
        life = self._life(event.epoch)
        since, is_first = self._since, self._since is not None
        self._since, self._is_answered = None, True
        if not life.is_stored(event.serial, stamp):
            raise self._violation(f"attached at {event.serial} before it was stored")
        if event.channel != self.channel:
            raise self._violation(f"attached to {event.channel}")
        if event.resumed:
            self._check_resumed(event, since if is_first else parse_cursor(self.view.cursor))
            self.epoch, self._next_epoch = event.epoch, None
            return
        if is_first and since is not None and event.serial and since.epoch in (event.epoch, NO_EPOCH):
            changed = life.changed_between(since.serial, event.serial)
            if since.serial <= event.serial and changed <= self._limits.catch_up_messages:
                raise self._violation(f"a needless new start: only {changed} messages changed since {since}")
        self._next_epoch = event.epoch

    def _check_resumed(self, event: ChannelAttached, since: Cursor | None) -> None:
        if since is None:
            raise self._violation("resumed without a cursor")
        if since.epoch not in (event.epoch, NO_EPOCH):
            raise self._violation(f"resumed in epoch {event.epoch} from {since}")
        if since.serial > event.serial:
            raise self._violation(f"resumed at {event.serial} from {since}")

    def _check_complete(self, text: str, stamp: int) -> None:
        """A complete batch: the view equals the truth at its cursor."""
        cursor = parse_cursor(text)
        if cursor is None:
            raise self._violation(f"{text!r} is no cursor")
        is_start, self._next_epoch = self._next_epoch is not None, None
        if is_start:
            self.epoch = cursor.epoch
            self.starts += 1
        if cursor.epoch != self.epoch:
            raise self._violation(f"the cursor {text} is not of epoch {self.epoch}")
        life = self._life(cursor.epoch)
        if not life.is_stored(cursor.serial, stamp):
            raise self._violation(f"the cursor {text} was sent before it was stored")
        high = self._high.get(cursor.epoch, 0)
        if cursor.serial < high:
            raise self._violation(f"back to {text} after {high} was shown")
        self._high[cursor.epoch] = cursor.serial
        life.tell(cursor.serial)
        self._check_shown(life, cursor)
        if is_start:
            self._check_start(life, cursor)

    def _check_shown(self, life: Life, cursor: Cursor) -> None:
        shown = {message.id: message for message in self.view.messages()}
        for message in shown.values():
            # A page of history may be ahead of the cursor; what it brought is whole.
            expected = life.at(message.id, max(cursor.serial, message.version))
            if message != expected:
                raise self._violation(f"at {cursor} it shows\n  {message}, true is\n  {expected}")
        pending = {command.id: command for command in self.view.commands()}
        if pending != life.pending(cursor.serial):
            raise self._violation(f"at {cursor} pending are\n  {pending}, true is\n  {life.pending(cursor.serial)}")
        before = self.view.before
        for message in life.messages(cursor.serial):
            if message.id in shown or life.is_deleted(message.id) or before is None:
                continue  # what was deleted since may be missing from a page already
            if message.created >= before:
                raise self._violation(f"at {cursor} it does not show {message}, though it shows all from {before}")
            if not self.view.more:
                raise self._violation(f"at {cursor} nothing is said to be before {before}, but there is {message}")

    def _check_start(self, life: Life, cursor: Cursor) -> None:
        shown = {message.id for message in self.view.messages()}
        for message in life.messages(cursor.serial):
            if message.status == "streaming" and message.id not in shown:
                raise self._violation(f"a new start at {cursor} lacks the streaming {message}")

    def _check_prefixes(self) -> None:
        """A piece of a batch: each part is a prefix of what it was at some time."""
        life = self._life(self.epoch)
        for message in self.view.messages():
            for index, part in enumerate(message.parts):
                text = text_of(part)
                if text and not any(one.startswith(text) for one in life.texts(message.id, index)):
                    raise self._violation(f"part {index} of {message.id} shows {text!r}, which it never had")


def check_message(truth: Truth, channel: str, message: Message, stamp: int) -> Life:
    """A message that was told is one that was stored by then; returns the life it is in."""
    for life in truth.lives_between(channel, 0, stamp):
        if life.is_stored(message.version, stamp) and life.at(message.id, message.version) == message:
            return life
    raise Violation(f"{channel}: this was told and was never stored: {message}")


def check_cursor(truth: Truth, channel: str, messages: Iterable[Message], text: str, stamp: int) -> None:
    """Messages came with the cursor from which to follow them: they are as they were there, and it is stored."""
    cursor = parse_cursor(text)
    life = truth.life(channel, cursor.epoch) if cursor is not None else None
    if cursor is None or life is None or not life.is_stored(cursor.serial, stamp):
        raise Violation(f"{channel}: an answer says to go on from {text}, before that was stored")
    for message in messages:
        if message.version > cursor.serial or life.at(message.id, cursor.serial) != message:
            raise Violation(f"{channel}: who goes on from {text} misses something of {message}, or gets it twice")


def check_fresh(life: Life, message: Message, told: int) -> None:
    """A message that was read is at least as new as what others had been told of, serial `told`, before it was."""
    known = life.at(message.id, told)
    if known is not None and known.version > message.version:
        raise Violation(f"{life.channel}: {message.id} was read as of {message.version}, {known.version} was known")


def check_deleted(truth: Truth, channel: str, message_id: str, *, since: int, stamp: int) -> None:
    """A message of which an answer of `stamp` says that it is deleted, was so by then; or all of its channel was."""
    for life in truth.lives_between(channel, since, stamp):
        serial, message = life.versions.get(message_id, [(0, None)])[-1]
        if message is None and serial and life.is_stored(serial, stamp):
            return
    if not truth.was_disturbed(channel, since) and not truth.is_grave(channel, message_id):
        raise Violation(f"{channel}: {message_id} was said to be deleted before that was stored")


def check_text(
    truth: Truth,
    channel: str,
    message_id: str,
    part: int,
    at: int | None,
    text: str,
    serial: int,
    *,
    since: int,
    stamp: int,
) -> None:
    """Text that was acknowledged with `serial`, in an answer of `stamp` to a request of `since`, was stored then.

    Without `at` it may stand anywhere in the part.
    """
    for life in truth.lives_between(channel, since, stamp):
        message = life.at(message_id, serial) if life.is_stored(serial, stamp) else None
        if message is not None and part < len(message.parts):
            stored = text_of(message.parts[part])
            if stored.startswith(text, at) if at is not None else text in stored:
                life.tell(serial)
                return
    raise Violation(f"{channel}: {text!r} at {at} of {message_id}.{part} was acknowledged as {serial}, not stored")


def check_serial(
    truth: Truth, channel: str, message_id: str, serial: int, *, since: int, stamp: int, request: str | None = None
) -> None:
    """What was acknowledged with `serial` was stored then; however often `request` came, it has one serial."""
    for life in truth.lives_between(channel, since, stamp):
        if serial and life.is_stored(serial, stamp) and life.changed[serial - 1] == message_id:
            first = life.requests.get((message_id, request), serial) if request is not None else serial
            if first != serial and not truth.was_disturbed(channel, since):
                raise Violation(f"{channel}: {request} of {message_id} was answered {serial}, it is stored as {first}")
            life.tell(serial)
            return
    raise Violation(f"{channel}: {serial} of {message_id} was acknowledged before it was stored")


def check_refusal(
    truth: Truth, channel: str, message_id: str, code: str, generation: int, *, since: int, stamp: int
) -> bool:
    """Is a refusal of `code` what the log says at some moment while it was asked?"""
    if code == "deleted" and truth.is_grave(channel, message_id):
        return True
    for life in truth.lives_between(channel, since, stamp):
        for serial, message in life.versions.get(message_id, []):
            if not life.is_stored(serial, stamp):
                break
            match code:
                case "deleted":
                    is_so = message is None
                case "finished":
                    is_so = message is not None and message.status != "streaming"
                case "streaming":
                    is_so = message is not None and message.status == "streaming"
                case "fenced":
                    is_so = len(life.takeovers.get(message_id, [])) + 1 != generation
                case _:
                    is_so = False
            if is_so:
                return True
    return False


def check_writers(life: Life, node: str) -> None:
    """No message streams whose writer died with another process than `node`, the only one there is."""
    for message in life.messages(life.serial):
        _, writer = life.writers[message.id][-1]
        if message.status == "streaming" and writer is not None and writer.node not in (None, node):
            raise Violation(f"{life.channel}: {message.id} streams still, though its writer died with {writer.node}")


def members_of(hub: HubCore, channel: str) -> Presence:
    """Who is in `channel`, as `hub` knows it."""
    runtime = hub._runtime
    live = runtime.channels.get(channel) if runtime is not None and not runtime.is_over else None
    return live.presence_state.presence() if live is not None else Presence(members=[], count=0)


def check_nobody_is_forgotten(life: Life, hub: HubCore, abandoned: Container[tuple[str, str]]) -> None:
    """No message streams for ever: when all have ended, none is left whose writer here has ended, too."""
    runtime = hub._runtime
    for message in life.messages(life.serial):
        _, writer = life.writers[message.id][-1]
        if message.status != "streaming" or writer is None or writer.node != hub.node or runtime is None:
            continue
        place = (life.channel, message.id)
        if place not in runtime.writers and place not in abandoned:
            raise Violation(f"{life.channel}: {message.id} streams for ever: its writer has left")


def check_empty(hub: Hub, who: str) -> None:
    """When everybody has left for long enough, nothing is left of them."""
    app = hub._asgi
    if isinstance(app, App):
        _at_most(who, "sockets are left", len(app._sockets), 0)
        _at_most(who, "heartbeats are left", len(app.heartbeats), 0)
    runtime = hub._runtime
    if runtime is None or runtime.is_over or runtime.committer is None:
        return
    for name in ("channels", "feeds", "writers", "waiting", "members", "turns_running", "turns_waiting"):
        _at_most(who, f"{name} are left", hub.stats()[name], 0)
    _at_most(who, "channels are remembered as parking", len(runtime.committer._loader.parked), 0)
    _at_most(who, "bytes wait", runtime.committer._waiting_bytes, 0)
    _at_most(who, "unclear commits are remembered", len(runtime.committer._loader._unclear), 0)
    _at_most(who, "ticks are due", len(runtime.ticks._due), 0)


def _at_most(who: str, what: str, count: int, limit: int) -> None:
    if count > limit:
        raise Violation(f"{who}: {count} {what}, {limit} at most")


def decoded_events(raw: Iterable[object]) -> list[ServerEvent]:
    """Events as they came over the wire; one that is not of the protocol is a violation."""
    try:
        return [msgspec.convert(event, ServerEvent) for event in raw]
    except msgspec.ValidationError as error:
        raise Violation(f"an event is not of the protocol: {error}") from None
