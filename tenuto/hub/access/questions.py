"""Limits of the questions of visitors, which bound the cost of the model.

Layer: hub.

Each question of a visitor takes a token from four buckets: for a minute and for a day, of the visitor and of its
address. An id costs nothing, so the address bounds a peer that takes ever new ones. The counts are those of one
process. A bucket that has filled up again is forgotten, so that visitors who are gone cost no memory.

A route of the app stores a question without naming a request. `route` carries what is known of it to the count.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from itertools import islice
from math import ceil, inf

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import LocalError, TenutoError, TooMany, shown
from tenuto.core.requests import Caller, Request
from tenuto.core.visitor_ids import is_question, visitor_of
from tenuto.hub.access.hosts import address_group
from tenuto.hub.access.rates import Bucket
from tenuto.hub.pending import Result

logger = logging.getLogger("tenuto.hub")

MINUTE_S, DAY_S = 60.0, 86_400.0
MAX_COUNTED = 100_000  # limit of the visitors and addresses that are counted at the same time
FORGET_AT_ONCE = 1_000
LOG_S = 3600.0  # least time between two lines of the log about addresses at their limit


class QuestionLimits(Struct, frozen=True, kw_only=True):
    """How many questions a visitor may ask, and how many times as many all visitors of one address together."""

    per_minute: int = 10
    per_day: int = 100
    address_factor: int = 10

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                setting = name if name == "address_factor" else f"questions_{name}"
                raise LocalError(f"visitors({setting}=...) must be a whole number from 1 on, got {shown(value)}")


class _Allowance:
    """The buckets of one visitor or address."""

    __slots__ = ("buckets", "settings")

    def __init__(self, limits: QuestionLimits, factor: int, now_s: float) -> None:
        self.settings = [  # the size of each bucket, the time in which it fills up, and the name of the time
            (limits.per_minute * factor, MINUTE_S, "minute"),
            (limits.per_day * factor, DAY_S, "day"),
        ]
        self.buckets = [Bucket(size, now_s) for size, _, _ in self.settings]

    def refusal(self, who: str, now_s: float) -> TooMany | None:
        """Return the error for a further question; None if one is possible."""
        for bucket, (size, time_s, period) in zip(self.buckets, self.settings, strict=True):
            level = bucket.level(size, size / time_s, now_s)
            if level < 1:
                wait_s = max(1, ceil((1 - level) * time_s / size))
                return TooMany(
                    f"{who} sent {size} questions within a {period}, which is the limit. Wait {wait_s} s, or raise "
                    f"visitors(questions_per_{period}=...)",
                    limit=size,
                    retry_after_s=wait_s,
                )
        return None

    def take(self, questions: int) -> None:
        """Take tokens for `questions`; a negative number gives them back."""
        for bucket in self.buckets:
            bucket.take(questions)

    def is_full(self, now_s: float) -> bool:
        """Return whether the buckets are as those of a new visitor."""
        return all(
            bucket.level(size, size / time_s, now_s) >= size
            for bucket, (size, time_s, _) in zip(self.buckets, self.settings, strict=True)
        )


class Asked:
    """A question that was counted."""

    def __init__(self, allowances: list[_Allowance]) -> None:
        self._allowances = allowances

    @property
    def is_counted(self) -> bool:
        """Return whether the question still counts."""
        return bool(self._allowances)

    def give_back(self) -> None:
        """Count the question no more, because it was not stored, or was stored before."""
        for allowance in self._allowances:
            allowance.take(-1)
        self._allowances = []

    def settle(self, result: Result | TenutoError, *, may_be_stored: bool) -> None:
        """Give the question back if `result` shows that it was not stored, and it is not unclear either."""
        if not may_be_stored and not (isinstance(result, Result) and result.created):
            self.give_back()


class Route:
    """The route of the app in which code runs: whose request it serves, from where, and its last question."""

    __slots__ = ("asked", "channel", "peer", "refusal", "visitor")

    def __init__(self, visitor: str | None = None, peer: str | None = None, refusal: TenutoError | None = None) -> None:
        self.visitor = visitor  # None: not known
        self.peer = peer  # address of the request
        self.refusal = refusal  # why its request may store no question of the visitor
        self.channel = ""  # that of the question `asked`
        self.asked: Asked | None = None  # a question that the app has stored, and whose answer has not begun

    def answer(self, channel: str) -> bool:
        """Return whether an answer in `channel` is that to a question which counts already; such an answer is one."""
        asked, self.asked = self.asked, None
        return asked is not None and asked.is_counted and self.channel == channel


_route: ContextVar[Route | None] = ContextVar("tenuto_route", default=None)


def enter_route(route: Route) -> None:
    """Note that the code which runs now, and its tasks, are those of `route`."""
    _route.set(route)


def current_route() -> Route:
    """Return the route in which the code runs; a new one if none is known."""
    route = _route.get()
    if route is None:
        route = Route()
        _route.set(route)
    return route


class Questions:
    """Counts the questions of visitors. A call that raises leaves the counts as they are."""

    def __init__(self, limits: QuestionLimits, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._now_s = now_s
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._logged_s = -inf

    def __len__(self) -> int:
        return len(self._allowances)

    def ask(self, visitor: str, peer: str | None) -> Asked:
        """Count a question of `visitor` from the address `peer`, if that is known. Raises TooMany."""
        now_s = self._now_s()
        allowances = {visitor: self._allowance(visitor, 1, now_s)}
        refusal = allowances[visitor].refusal(f"visitor {shown(visitor)} has", now_s)
        if peer is not None and refusal is None:
            group = address_group(peer)
            address = f"/{group}"  # an id contains no slash
            allowances[address] = self._allowance(address, self._limits.address_factor, now_s)
            refusal = allowances[address].refusal(f"all visitors of the address {shown(group)} have", now_s)
            if refusal is not None:
                self._log(refusal, now_s)
        if refusal is not None:
            raise refusal
        for name, allowance in allowances.items():
            allowance.take(1)
            self._allowances[name] = allowance
            self._allowances.move_to_end(name)
        while len(self._allowances) > MAX_COUNTED:
            self._allowances.popitem(last=False)
        return Asked(list(allowances.values()))

    def counted(self, channel: str, request: Request, caller: Caller) -> tuple[Caller, Asked | None]:
        """Count `request` if it is a question of a visitor, and return the caller with whom to submit it.

        The caller has a refusal beyond the limit, and in a route for a page that may store no question. A repeat of a
        stored question still gets its result.
        """
        visitor = visitor_of(channel, caller) if is_question(request, caller) else None
        if visitor is None:
            return caller, None
        route, peer = None, caller.peer
        if caller.is_app:
            route = current_route()
            is_own = route.visitor == visitor  # tasks of the app may run in the context of another request
            if is_own and route.refusal is not None:
                return replace(caller, refusal=route.refusal), None
            peer = route.peer if is_own else None
        try:
            asked = self.ask(visitor, peer)
        except TooMany as error:
            return replace(caller, refusal=error), None
        if route is not None:
            route.channel, route.asked = channel, asked
        return caller, asked

    def forget_full(self) -> None:
        """Look at the next `FORGET_AT_ONCE` visitors and addresses, and forget those whose buckets are full again."""
        now_s = self._now_s()
        for name in list(islice(self._allowances, FORGET_AT_ONCE)):
            if self._allowances[name].is_full(now_s):
                del self._allowances[name]
            else:
                self._allowances.move_to_end(name)  # so that each is looked at in turn

    def _allowance(self, name: str, factor: int, now_s: float) -> _Allowance:
        """Return the allowance of a visitor or address; a new one is kept only with its first question."""
        return self._allowances.get(name) or _Allowance(self._limits, factor, now_s)

    def _log(self, refusal: TooMany, now_s: float) -> None:
        if now_s - self._logged_s >= LOG_S:
            self._logged_s = now_s
            logger.warning(
                "%s. If all visitors seem to have one address, the server does not know the addresses behind its proxy "
                "(docs/deployment.md)",
                refusal,
            )
