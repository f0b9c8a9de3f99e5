"""The rules of retention and of `max_bytes`: how long the messages of a channel stay, and how much data there may be.

Layer: hub. The rules wait for nothing and read no clock.

The hub reads facts about a channel from its store in small steps, and a `Sweep` names the messages to remove. All
times are in ms since 1970. Wording may change freely; the forms of `Retention` are a public setting.

`Capacity` is the bound of the store's data, `max_bytes`: above it the hub accepts no new message. Only creates are
refused, and the last part of the space is a reserve: running answers end, and stored questions get their answers. The
used space is the size of the file without its free space, as the store last measured it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from tenuto.core.errors import InvalidName, LocalError, StoreFull, shown
from tenuto.core.model import ChannelSummary
from tenuto.core.names import check_prefix, invalid_pattern, is_pattern
from tenuto.core.requests import CreateMessage, SendCommand
from tenuto.core.state import MessageState
from tenuto.core.visitor_ids import STEM, owner_of
from tenuto.hub.keep.exports import LEAD_MS
from tenuto.stores.base import Fact, Store
from tenuto.stores.sqlite.store import SqliteStore

logger = logging.getLogger("tenuto.hub")

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
DAY_MS = 24 * _HOUR_MS
_TIMES_MS = {"s": 1000, "m": _MINUTE_MS, "h": _HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}
_MOST = 2**53  # limit of counts and sizes, as of the numbers on the wire
_SIZES = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_FORM = re.compile(r"([1-9][0-9]{0,8})([a-zA-Z]{1,2})\Z")
# A request may be repeated, so its message stays for a while after its end, and its id stays used up.
LEAST_MS = 10 * _MINUTE_MS
# Deleted messages and commands stay for longer than their turn, for the same reason.
TOMBSTONE_MS = DAY_MS
_LAST = "\x7f"  # after all characters of channel names
MAX_WITHIN = 100  # patterns that are looked for one by one; beyond it all channels are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long messages stay: a message goes when one of these rules lets it go.

    `age`: the time after its end. `idle`: the time without changes after which the whole channel goes. `messages` and
    `bytes`: the newest messages that stay. Times are texts such as "90d" (s, m, h, d or w), sizes such as "50MB".
    """

    age: str | None = None
    idle: str | None = None
    messages: int | None = None
    bytes: str | int | None = None


class Policy(NamedTuple):
    """A checked `Retention`, in ms and bytes."""

    age_ms: int | None
    idle_ms: int | None
    messages: int | None
    size_bytes: int | None


class Due(NamedTuple):
    """The messages and bytes of one channel that retention would remove now."""

    channel: str
    messages: int
    size_bytes: int
    is_gone: bool  # True: the whole channel would go
    damage: str | None = None  # why the channel cannot be read; then retention leaves it out


class Policies:
    """The policies of all channels. The most specific pattern holds: a whole name, then the longest prefix.

    A visitor's channel without one has that of visitors.
    """

    def __init__(self, given: Mapping[str, str | Retention], *, visitors_days: int | None = None) -> None:
        """Check `given`, as the app passes it to a hub. Raises LocalError.

        `visitors_days` is the age of the messages in visitors' channels for which the app has no rule.
        """
        self._of_visitors = None if visitors_days is None else _policy(f"{STEM}*", Retention(age=f"{visitors_days}d"))
        if not isinstance(given, Mapping):
            raise LocalError(f'retention must be a dict such as {{"chat:*": "90d"}}, got {shown(given)}')
        self._names: dict[str, Policy] = {}  # by the name of the channel
        self._stems: dict[str, Policy] = {}  # by the pattern without its `*`
        for pattern, value in given.items():
            _check_pattern(pattern)
            policy = _policy(pattern, value)
            if pattern.endswith("*"):
                self._stems[pattern[:-1]] = policy
            else:
                self._names[pattern] = policy

    def __bool__(self) -> bool:
        return bool(self._names or self._stems or self._of_visitors)

    def find(self, channel: str) -> Policy | None:
        """Return the policy of `channel`, or None. The cost depends on the length of the name alone."""
        exact = self._names.get(channel)
        if exact is not None:
            return exact
        for end in range(len(channel), 0, -1):
            if channel[end - 1] in ":/." and (found := self._stems.get(channel[:end])) is not None:  # stems end so
                return found
        everywhere = self._stems.get("")
        return self._of_visitors if everywhere is None and owner_of(channel) is not None else everywhere

    def within(self) -> list[str]:
        """Return patterns that cover all channels with a policy; none begins with another one's prefix."""
        stems = [*self._stems, *([STEM] if self._of_visitors is not None else [])]
        found = narrowed("", "", [*(f"{one}*" for one in stems), *self._names])
        return found if len(found) <= MAX_WITHIN else ["*"]


def narrowed(prefix: str, after: str, patterns: Iterable[str]) -> list[str]:
    """Narrow `patterns` to the names that begin with `prefix`, and return the result in order.

    Patterns that match no name after `after` are left out. No name matches two of the returned patterns.
    """
    found: list[str] = []
    covered: str | None = None  # the prefix of the last range
    for stem, is_name in sorted((one.removesuffix("*"), not one.endswith("*")) for one in patterns):
        low = stem if is_name else max(stem, prefix)
        is_outside = not low.startswith(prefix) or not low.startswith(stem)
        if is_outside or (covered is not None and low.startswith(covered)):
            continue
        if (low if is_name else low + _LAST) > after:
            found.append(low if is_name else f"{low}*")
        if not is_name:
            covered = low
    return found


def _check_pattern(pattern: object) -> None:
    """Raise LocalError for a pattern that covers no channel: the messages that it means would stay for ever."""
    if not isinstance(pattern, str) or not is_pattern(pattern):
        raise LocalError(f"retention has a wrong pattern: {invalid_pattern(str(pattern))}")
    name = pattern.removesuffix("*").replace("/", ":")  # patterns may have a slash, names have none so far
    with suppress(InvalidName):
        check_prefix(name)
        if pattern:
            return
    raise LocalError(
        f"retention has the pattern {shown(pattern)}, and no channel can have such a name: names have 1-200 characters "
        "of A-Z a-z 0-9 _ . : ~ @ = + -"
    )


class Sweep:
    """One pass over the messages of a channel, in the order of their last changes.

    Read facts after serial `after` and call `take`, until `is_over`. If it `is_emptied` then, the channel can go.
    """

    def __init__(self, policy: Policy, summary: ChannelSummary, now_ms: int, *, is_busy: bool = False) -> None:
        """Begin a pass over the channel of `summary`. With `is_busy`, a message is busy, so the channel stays."""
        self.after = 0
        self.is_over = False
        self._policy = policy
        self._summary = summary
        self._now_ms = now_ms
        self._messages, self._bytes = summary.messages, summary.size_bytes  # without those that have gone so far
        self._updated_ms = summary.updated_ms
        self._kept = 0  # number of facts so far that stay
        self._latest_ms = 0  # the latest time so far that is not in the future
        is_idle = policy.idle_ms is not None and summary.updated_ms + policy.idle_ms <= now_ms
        is_empty = not summary.messages and summary.updated_ms + TOMBSTONE_MS <= now_ms
        # The channel goes as a whole. Before that, the caller looks for a busy message in it (`is_busy`).
        self.is_whole = not is_busy and (is_idle or is_empty)
        is_old = policy.age_ms is not None and summary.created_ms + policy.age_ms <= now_ms
        self.is_needed = self.is_whole or is_old or self.is_above  # False: no message can go

    @property
    def is_emptied(self) -> bool:
        """Return whether the pass is over and all that it saw went."""
        return self.is_over and not self._kept

    @property
    def due(self) -> Due:
        """Return what has gone so far."""
        known = self._summary
        messages, size_bytes = known.messages - self._messages, known.size_bytes - self._bytes
        return Due(known.channel, messages, size_bytes, self.is_emptied)

    def take(self, facts: Sequence[Fact], *, is_last: bool) -> list[Fact]:
        """Return those of `facts` that go. `is_last`: no further ones follow."""
        due = []
        rest_stays = False
        for given in facts:
            fact = self._in_order(given)
            self.after = fact.version
            if self._goes(fact):
                due.append(given)
                if fact.is_counted:
                    self._messages -= 1
                    self._bytes -= fact.size_bytes
            else:
                self._kept += 1
                # One that stays for its age shows that the later ones stay. A time in the future does not, as it comes
                # from a clock that was wrong; above the limit a command does not, as it stays for longer than messages.
                is_in_time = not fact.is_busy and fact.at_ms is not None and fact.at_ms <= self._now_ms
                rest_stays |= is_in_time and (fact.is_counted or not self.is_above)
        self.is_over = is_last or (not due and rest_stays)
        return due

    def _in_order(self, fact: Fact) -> Fact:
        """Return `fact` with a time no earlier than those before it.

        It changed later, so an earlier time comes from a clock that was set back.
        """
        if fact.at_ms is None:
            return fact
        if fact.at_ms <= self._now_ms:
            self._latest_ms = max(self._latest_ms, fact.at_ms)
        return fact._replace(at_ms=max(self._latest_ms, fact.at_ms))

    @property
    def is_above(self) -> bool:
        """Return whether the channel has more messages or bytes than may stay. The newest message stays."""
        most, most_bytes = self._policy.messages, self._policy.size_bytes
        is_above_bytes = most_bytes is not None and self._bytes > most_bytes and self._messages > 1
        return is_above_bytes or (most is not None and self._messages > most)

    def _goes(self, fact: Fact) -> bool:
        """Return whether a rule lets go the message or command of `fact`."""
        if fact.is_busy:
            return False
        if fact.at_ms is None:  # damaged
            return self.is_whole
        if self.is_whole and fact.at_ms <= self._updated_ms:  # else it has changed since the summary
            return True
        age_ms = self._policy.age_ms
        rest_ms = LEAST_MS if fact.is_counted else TOMBSTONE_MS
        is_old = age_ms is not None and fact.at_ms + age_ms <= self._now_ms
        return is_old or (self.is_above and fact.at_ms + rest_ms <= self._now_ms)


class ClockTrust:
    """Whether the clock of the machine is plausible: a wrong clock must not remove messages.

    At the start the clock must stand at most `BEHIND_MS` before the newest stored time, and at most `REST_MS` after it.
    A store without messages has no such time. From then on the clock must advance as the monotonic clock does. After a
    jump of more than `JUMP_MS`, in either direction, it counts again when it is back where it should be, or when it has
    advanced evenly for `STEADY_MS`.
    """

    JUMP_MS = _HOUR_MS
    BEHIND_MS = LEAD_MS + JUMP_MS  # an import brings times that are ahead by `LEAD_MS`
    REST_MS = 7 * DAY_MS
    STEADY_MS = DAY_MS

    def __init__(self) -> None:
        self._offset_ms: int | None = None  # of the trusted clock: its time, less that of the monotonic clock
        self._other_ms = 0  # the same of the clock that is not trusted
        self._since_ms: int | None = None  # monotonic time since which that clock has advanced evenly

    @property
    def is_new(self) -> bool:
        """Return whether no clock has been trusted yet, so that the newest stored time is needed."""
        return self._offset_ms is None

    def trusts(self, now_ms: int, *, steady_ms: int, newest_ms: int) -> bool:
        """Return whether `now_ms` is plausible.

        `steady_ms` is the monotonic time. `newest_ms` is the newest time that was stored before the start, or 0; it
        counts only while `is_new`.
        """
        offset_ms = now_ms - steady_ms
        if self._offset_ms is None:
            is_plausible = not newest_ms or -self.BEHIND_MS <= now_ms - newest_ms <= self.REST_MS
        else:
            is_plausible = abs(offset_ms - self._offset_ms) <= self.JUMP_MS
        if not is_plausible:
            if self._since_ms is None or abs(offset_ms - self._other_ms) > self.JUMP_MS:
                self._since_ms = steady_ms
                self._other_ms = offset_ms
            is_plausible = steady_ms - self._since_ms >= self.STEADY_MS
        if is_plausible:
            self._offset_ms, self._since_ms = offset_ms, None
        return is_plausible


def _policy(pattern: str, value: object) -> Policy:
    """Return the policy for the rule `value` of `pattern`. Raises LocalError."""
    where = f"retention of {shown(pattern)}"
    if isinstance(value, str):
        value = Retention(age=value)
    if not isinstance(value, Retention):
        raise LocalError(f'{where} must be an age such as "90d", or a Retention(...), got {shown(value)}')
    if value == Retention():
        raise LocalError(f"{where} must have a rule: give age, idle, messages or bytes; got Retention()")
    messages = value.messages
    if messages is not None and not (_is_number(messages) and 1 <= messages <= _MOST):
        raise LocalError(
            f"the number of messages in the {where} must be a whole number from 1 to {_MOST}, got {shown(messages)}; "
            "leave it out to keep them all"
        )
    return Policy(
        age_ms=_time_ms(value.age, f"age in the {where}"),
        idle_ms=_time_ms(value.idle, f"idle in the {where}"),
        messages=messages,
        size_bytes=size_bytes(value.bytes, f"bytes in the {where}") if value.bytes is not None else None,
    )


def rules_of(option: str, given: Sequence[str]) -> dict[str, str | Retention]:
    """Return the ages of texts such as "chat:*=90d", by pattern. Raises LocalError, which names the `option`."""
    rules: dict[str, str | Retention] = {}
    for text in given:
        pattern, is_rule, age = text.rpartition("=")
        if not is_rule:
            raise LocalError(f"{option} must be PATTERN=AGE, such as chat:*=90d, got {shown(text)}")
        if pattern in rules:
            raise LocalError(f"{option} has two ages for the pattern {shown(pattern)}; give each pattern once")
        rules[pattern] = age
    return rules


def time_ms(value: object, where: str, *, example: str, least_ms: int = 1) -> int:
    """Return a time such as "90d" in ms. Raises LocalError, in which `where` names it."""
    found = _FORM.match(value) if isinstance(value, str) else None
    unit_ms = _TIMES_MS.get(found[2]) if found is not None else None
    if found is None or unit_ms is None:
        raise LocalError(f'{where} must be a number and s, m, h, d or w, such as "{example}", got {shown(value)}')
    if int(found[1]) * unit_ms < least_ms:
        raise LocalError(f'{where} must be "{least_ms // _MINUTE_MS}m" or more, got {shown(value)}')
    return int(found[1]) * unit_ms


def _time_ms(value: object, where: str) -> int | None:
    return time_ms(value, where, example="90d", least_ms=LEAST_MS) if value is not None else None


def size_bytes(value: object, where: str) -> int:
    """Return a size such as "50MB" in bytes. Raises LocalError, in which `where` names it."""
    found = _FORM.match(value) if isinstance(value, str) else None
    unit = _SIZES.get(found[2]) if found is not None else None
    size = int(found[1]) * unit if found is not None and unit is not None else value
    if not _is_number(size) or size < 1:
        raise LocalError(f'{where} must be a number and kB, MB, GB or TB, such as "50MB", got {shown(value)}')
    if size > _MOST:
        raise LocalError(f"{where} must be at most {_MOST} bytes, got {shown(value)}; leave it out to have no limit")
    return size


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


LEAST_BYTES = 10 * 10**6
WARNED_AT = 0.9  # part of `max_bytes` from which the log warns
FULL_AT = 0.95  # part of `max_bytes` from which creates are refused; the rest is the reserve


class Capacity:
    """The bound of a hub's store. Without `max_bytes` it refuses no request."""

    def __init__(self, max_bytes: str | int | None, store: Store) -> None:
        """Bound the data in `store` by a size such as "10GB". Raises LocalError."""
        self._store = store
        self._max_bytes = size_bytes(max_bytes, "max_bytes") if max_bytes is not None else 0
        self._is_warned = False  # True: the store was nearly full at the last `watch`
        self._refused = 0  # number of refused creates
        if max_bytes is None:
            return
        if not isinstance(store, SqliteStore):
            raise LocalError(
                f"max_bytes needs a store in a file such as sqlite:///chat.db, and the store is {store.name}; leave it "
                "out, and bound the disk of the database"
            )
        if self._max_bytes < LEAST_BYTES:
            raise LocalError(f'max_bytes must be "{LEAST_BYTES // 10**6}MB" or more, got {max_bytes!r}')

    def check(self) -> None:
        """Raise StoreFull if the store has no space for a new message."""
        if self._max_bytes and (used := self._used_bytes()) >= self._max_bytes * FULL_AT:
            self._refused += 1
            self.watch()
            raise StoreFull(
                f"store has {used:,} bytes of data, max_bytes is {self._max_bytes:,}, and the last "
                f"{1 - FULL_AT:.0%} are kept for running answers; delete messages, set retention, or raise max_bytes",
                limit=self._max_bytes,
            )

    def check_create(self, request: CreateMessage | SendCommand, find: Callable[[str], MessageState | None]) -> None:
        """Raise StoreFull if there is no space for options, or for a message. Answers of open turns use the reserve."""
        if isinstance(request, SendCommand):
            if request.options:
                self.check()
        elif self._max_bytes:
            asked = find(request.reply_to) if request.reply_to is not None and request.role != "user" else None
            if asked is None or asked.claim is None or not asked.claim.is_open:
                self.check()

    def watch(self) -> None:
        """Log once when the store is nearly full. Housekeeping calls this, and a refusal before it."""
        if not self._max_bytes:
            return
        used = self._used_bytes()
        if used >= self._max_bytes * WARNED_AT and not self._is_warned:
            logger.warning(
                "store has %d bytes of data, and max_bytes is %d; above %d new messages are refused (store_full): "
                "delete messages, set retention, or raise max_bytes",
                *(used, self._max_bytes, self._max_bytes * FULL_AT),
            )
        self._is_warned = used >= self._max_bytes * WARNED_AT

    def stats(self) -> dict[str, int]:
        """Return the bound and the used space in bytes, and the number of refused creates; none without a bound."""
        if not self._max_bytes:
            return {}
        used = self._used_bytes()
        return {"max_bytes": self._max_bytes, "used_bytes": used, "store_full_refusals": self._refused}

    def _used_bytes(self) -> int:
        counts = self._store.stats()
        return counts["file_bytes"] - counts["free_bytes"] if "file_bytes" in counts else 0  # not opened yet
