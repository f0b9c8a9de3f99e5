"""Views: the messages that one viewer shows of a channel, over all its connections.

Layer: oracle.

`ViewOracle` follows the log of a simulation: it feeds the product's `core.view.View`, and compares that view with the
log after each piece that arrives. A `wirecheck.Checker` beside it applies the rules of the wire. `PlanOracle` follows
plans, for processes that cannot see the log: each text is a beginning of the planned one, and no shown text disappears.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from proof.oracle import Violation
from proof.oracle.log import EpochLog, StoredLogs, text_of
from proof.oracle.plans import Script, first_difference
from proof.oracle.promises import Promises
from proof.oracle.responses import check_cursor, check_message
from proof.wirecheck import Checker, SeenMessage
from proof.wirecheck import Violation as WireViolation
from tenuto.core.events import (
    EMPTY,
    NO_EPOCH,
    Batch,
    ChannelAttached,
    Cursor,
    EphemeralEvent,
    Page,
    PresenceLeave,
    ServerEvent,
    Signal,
    StoredEvent,
    parse_cursor,
)
from tenuto.core.limits import Limits
from tenuto.core.view import View, ViewGap

STATUSES = ("complete", "failed", "interrupted", "cancelled")
HISTORY = 200  # the most messages that a new start brings


class ViewOracle:
    """One viewer's view of one channel. `note` receives lines for the trace, `promises` judges presence."""

    def __init__(
        self,
        name: str,
        channel: str,
        stored: StoredLogs,
        note: Callable[[str], None],
        limits: Limits,
        *,
        promises: Promises | None = None,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.name = name
        self.channel = channel
        self.view = View()
        self.epoch = NO_EPOCH  # epoch of the shown messages
        self.starts = 0  # how often the view was begun anew
        self.signals: set[object] = set()  # the data of all received signals
        self.follows_s = float("inf")  # time since which it receives ephemeral events at once
        self._checker = Checker(channel)
        self._stored = stored
        self._note = note
        self._limits = limits
        self._promises = promises
        self._now_s = now_s
        self._begun_s = 0.0  # time at which this connection was asked for; the server may attach it from then on
        self._attached_s = 0.0  # the view receives presence changes from then on, at the earliest
        self._next_epoch: str | None = None  # epoch of a new start that is not complete
        self._since: Cursor | None = None  # the cursor that this connection sent, until it is attached
        self._is_poll = False
        self._is_whole = True  # False in the middle of a batch
        self._high: dict[str, int] = {}  # by epoch, the highest serial that this viewer ever showed

    def begin(self, since: str | None, *, is_poll: bool = False, asked_s: float | None = None) -> None:
        """Begin a connection that resumes from `since`, with a request that was sent at `asked_s`, by default now."""
        self._checker.begin(since, is_poll=is_poll)
        self._since = parse_cursor(since)
        self._is_poll = is_poll
        self._begun_s = self._now_s() if asked_s is None else asked_s
        self.follows_s = float("inf")

    def cut(self) -> None:
        """End the connection."""
        self._checker.end()
        self.view.cut()
        self._next_epoch = None
        self.follows_s = float("inf")

    def reload(self) -> None:
        """Load the page again: the view forgets its content."""
        self._checker.reload()
        self.view = View()
        self._next_epoch = None
        self.starts += 1

    def save(self) -> bytes:
        """Return a copy of the page, to be restored later."""
        return pickle.dumps((self.view, self._checker, self.epoch))

    def restore(self, page: bytes) -> None:
        """Continue with a saved page."""
        self.view, self._checker, self.epoch = pickle.loads(page)
        self._is_whole = False
        self.starts += 1

    def receive(self, raw: Sequence[dict[str, Any]], cursor: str | None, stamp: int) -> None:
        """Take a batch, or a piece of one, that was sent at `stamp`. Raises Violation."""
        self._checker.take(list(raw), cursor)
        for violation in self._checker.violations:
            raise self._violation(f"{violation.kind}: {violation.detail}")
        events = _decode(raw)
        for event in events:
            self._check_event(event, stamp)
        try:
            self.view.receive(Batch(events=events, cursor=cursor))
        except ViewGap as gap:
            raise self._violation(f"a gap: {gap}") from None
        if events and cursor is None and all(isinstance(event, EphemeralEvent) for event in events):
            return  # ephemeral events belong to no batch of the log
        self._is_whole = cursor is not None
        if cursor is None:
            self._check_prefixes()
            return
        self._note(f"{self.name} {self.channel} at {cursor} after {len(events)} events")
        self._check_complete(cursor, stamp)

    def receive_page(self, page: Page, stamp: int, starts: int) -> bool:
        """Take a page of history that was requested at start number `starts`. Return False to request it again."""
        cursor = parse_cursor(page.cursor)
        if cursor is None or starts != self.starts or cursor.epoch != self.epoch or self._next_epoch is not None:
            return True  # the page belongs to another view
        for message in page.messages:
            check_message(self._stored, self.channel, message, stamp)
        check_cursor(self._stored, self.channel, page.messages, page.cursor, stamp)
        is_accepted = self.view.receive_page(page)
        if self._is_whole and self.view.cursor is not None:
            self._check_shown(self._log(self.epoch), parse_cursor(self.view.cursor) or EMPTY)
        return is_accepted

    @property
    def is_settled(self) -> bool:
        """Return whether the view is at the end of the log."""
        log = self._stored.head(self.channel)
        cursor = parse_cursor(self.view.cursor)
        if cursor is None or self._next_epoch is not None or cursor.epoch != log.epoch:
            return False
        return log.last_event <= cursor.serial <= log.serial  # an entry without an event moves no cursor

    def _violation(self, text: str) -> Violation:
        return Violation(f"{self.name} on {self.channel}: {text}")

    def _log(self, epoch: str) -> EpochLog:
        log = self._stored.epoch(self.channel, epoch)
        if log is None:
            raise self._violation(f"the epoch {epoch} was never stored")
        return log

    def _check_event(self, event: ServerEvent, stamp: int) -> None:
        """Check that the event was stored before it was sent."""
        if isinstance(event, ChannelAttached):
            self._check_attached(event, stamp)
        elif isinstance(event, StoredEvent):
            if not self._log(self._next_epoch or self.epoch).is_stored(event.serial, stamp):
                raise self._violation(f"entry {event.serial} was sent before it was stored: {event}")
            if self._next_epoch is None:
                self._high[self.epoch] = max(event.serial, self._high.get(self.epoch, 0))
        elif self._promises is not None:
            self._check_notice(event, self._promises)

    def _check_notice(self, event: EphemeralEvent, promises: Promises) -> None:
        """Check that a member that left was away for the grace, and that a member sent the signal."""
        if isinstance(event, PresenceLeave):
            self._note(f"{self.name} receives the leave of {event.id} from {self.channel}")
            promises.members.check_leave((self.channel, event.id), self._attached_s)
        elif isinstance(event, Signal) and event.from_ is not None:  # the server's own signals have no sender
            if event.data not in promises.signals:
                raise self._violation(f"no member has sent {event}")
            self.signals.add(event.data)

    def _check_attached(self, event: ChannelAttached, stamp: int) -> None:
        self.follows_s = min(self.follows_s, self._now_s()) if not self._is_poll else float("inf")
        self._attached_s = self._begun_s  # a late event may report a leave of that time
        log = self._log(event.epoch)
        since, self._since = self._since, None
        if not log.is_stored(event.serial, stamp):
            raise self._violation(f"attached at {event.serial} before it was stored")
        if event.resumed:
            self.epoch, self._next_epoch = event.epoch, None
            return
        has_missed = self._stored.has_changed_epoch(self.channel, 0)  # an empty view perhaps missed a whole epoch
        if since is not None and event.serial and since.epoch in (event.epoch, event.epoch if has_missed else NO_EPOCH):
            changed = log.changed_between(since.serial, event.serial)
            if since.serial <= event.serial and changed <= self._limits.catch_up_messages:
                raise self._violation(f"a needless new start: only {changed} messages changed since {since}")
        self._next_epoch = event.epoch

    def _check_complete(self, text: str, stamp: int) -> None:
        """Check after a complete batch that the view equals the log at its cursor."""
        cursor = parse_cursor(text)
        if cursor is None:
            raise self._violation(f"invalid cursor: {text!r}")
        is_start, self._next_epoch = self._next_epoch is not None, None
        if is_start:
            self.epoch = cursor.epoch
            self.starts += 1
        log = self._log(cursor.epoch)
        if not log.is_stored(cursor.serial, stamp):
            raise self._violation(f"the cursor {text} was sent before it was stored")
        high = self._high.get(cursor.epoch, 0)
        if cursor.serial < high:
            raise self._violation(f"back to {text} after {high} was shown")
        self._high[cursor.epoch] = cursor.serial
        log.note_sent(cursor.serial)
        self._check_shown(log, cursor)
        if is_start:
            self._check_start(log, cursor)

    def _check_shown(self, log: EpochLog, cursor: Cursor) -> None:
        shown = {message.id: message for message in self.view.messages()}
        for message in shown.values():
            # A message of a history page may be newer than the cursor, and is whole.
            expected = log.at(message.id, max(cursor.serial, message.version))
            if message != expected:
                raise self._violation(f"at {cursor} it shows\n  {message}, stored is\n  {expected}")
        pending = {command.id: command for command in self.view.commands()}
        if pending != log.pending(cursor.serial):
            raise self._violation(f"at {cursor} pending are\n  {pending}, stored are\n  {log.pending(cursor.serial)}")
        before = self.view.before
        for message in log.messages(cursor.serial):
            if message.id in shown or log.is_deleted(message.id) or before is None:
                continue  # a page may lack a message that was deleted since
            if message.created >= before:
                raise self._violation(f"at {cursor} it does not show {message}, though it shows all from {before}")
            if not self.view.more:
                raise self._violation(f"at {cursor} the view has no older message than {before}, stored is {message}")

    def _check_start(self, log: EpochLog, cursor: Cursor) -> None:
        shown = {message.id for message in self.view.messages()}
        for message in log.messages(cursor.serial):
            if message.status == "streaming" and message.id not in shown:
                raise self._violation(f"a new start at {cursor} lacks the streaming {message}")

    def _check_prefixes(self) -> None:
        """Check in the middle of a batch that each part is a beginning of a text that it had."""
        log = self._log(self.epoch)
        for message in self.view.messages():
            for index, part in enumerate(message.parts):
                text = text_of(part)
                if text and not any(one.startswith(text) for one in log.texts(message.id, index)):
                    raise self._violation(f"part {index} of {message.id} shows {text!r}, which it never had")


def _decode(raw: Sequence[dict[str, Any]]) -> list[ServerEvent]:
    try:
        return msgspec.convert({"events": raw}, Batch).events
    except msgspec.ValidationError as error:
        raise Violation(f"an event is not of the protocol: {error}") from None


class PlanOracle:
    """All that one person was shown, over connections and reloads. Text stays, and is that of the script."""

    def __init__(self, seed: int, steps: int) -> None:
        self._seed = seed
        self._steps = steps
        self._texts: dict[str, str] = {}
        self._known: dict[str, tuple[int, int]] = {}  # version and length at the last look
        self._attempts: dict[str, int] = {}  # number of superseded attempts
        self.lengths: dict[str, int] = {}
        self.statuses: dict[str, str] = {}
        self.violations: list[WireViolation] = []

    def look(self, checker: Checker) -> None:
        """Judge the messages that `checker` shows now."""
        if not checker.has_attached:
            return  # a page that was just loaded again shows no message yet
        for message_id, message in checker.messages.items():
            known = (message.version, sum(part.length for part in message.parts))
            if self._known.get(message_id) != known:
                self._known[message_id] = known
                self._judge(message_id, message)
        if len(checker.messages) < len(self.lengths):
            for message_id in self.lengths.keys() - checker.messages.keys():
                if len(checker.messages) < HISTORY:
                    self._violate("vanished", f"{message_id} was shown and is gone")
                del self.lengths[message_id]

    def forget(self) -> None:
        """Forget the shown text: the store has lost some of it, and began a new epoch."""
        self._texts.clear()
        self._attempts.clear()
        self._known.clear()
        self.lengths.clear()
        self.statuses.clear()

    def _judge(self, message_id: str, message: SeenMessage) -> None:
        parts = [part.as_json() for part in message.parts]
        status = message.status
        script = Script(self._seed, message_id, steps=self._steps)
        if (wrong := script.wrong(parts, is_whole=status == "complete")) is not None:
            self._violate("untrue", wrong)
        self._take_attempts(message_id, [part for part in parts if part["type"] == "attempt"])
        text = "".join(part.text for part in message.parts if part.fields["type"] != "attempt")
        before, status_before = self.lengths.get(message_id, 0), self.statuses.get(message_id, "streaming")
        if len(text) < before:
            self._violate("shrunk", f"{message_id} was shown with {before} characters, now {len(text)}")
        self._check_stays(message_id, text)
        # an interrupted message may continue after a takeover
        if status_before not in ("streaming", "interrupted") and (status != status_before or len(text) != before):
            self._violate(
                "reopened", f"{message_id} was {status_before} with {before} characters, now {status} with {len(text)}"
            )
        if status not in ("streaming", *STATUSES):
            self._violate("status", f"{message_id} is {status!r}")
        self.lengths[message_id], self.statuses[message_id] = len(text), status

    def _take_attempts(self, message_id: str, attempts: list[dict[str, Any]]) -> None:
        """Check that the shown text of an attempt that is superseded now was kept. It counts no longer."""
        known = self._attempts.get(message_id, 0)
        if len(attempts) < known:
            self._violate("shrunk", f"{message_id} was shown with {known} attempts, now {len(attempts)}")
        elif len(attempts) > known:
            kept = "".join(text_of(part) for part in attempts[known]["parts"])
            self._check_stays(message_id, kept)
            self._texts.pop(message_id, None)
            self.lengths.pop(message_id, None)
        self._attempts[message_id] = len(attempts)

    def _check_stays(self, message_id: str, text: str) -> None:
        before = self._texts.get(message_id, "")
        if not text.startswith(before):
            self._violate("changed", f"{message_id}: {first_difference(before, text)}")
        self._texts[message_id] = text

    def _violate(self, kind: str, detail: str) -> None:
        self.violations.append(WireViolation(kind, detail))
