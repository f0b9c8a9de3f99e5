"""The parts that both message writers share: properties, checks of their use, and the end after an exception.

Layer: core.

The hub's writer (`hub/writer.py`) and the client's (`client/writer.py`) add to their state machine (`outgoing`) these
members. Wording may change freely.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from tenuto.core.errors import LocalError, TenutoError, public_reason
from tenuto.core.model import Json
from tenuto.core.outgoing import Outgoing

_T = TypeVar("_T")
_W = TypeVar("_W", bound="OutgoingProperties")
_P = ParamSpec("_P")
_Method = Callable[Concatenate[_W, _P], Coroutine[Any, Any, _T]]


class OutgoingProperties:
    """Properties of both writers, and the checks of their use: `async with`, and `await` at the calls that write."""

    __slots__ = ("_appends", "_kept", "_outgoing")

    made_by: ClassVar[str]  # the object whose method `message` returns this writer

    _outgoing: Outgoing
    _appends: int  # number of calls of `append` that were not awaited
    _kept: list[tuple[str, Coroutine[Any, Any, Any]]]  # other calls, some of which have not begun

    @property
    def id(self) -> str:
        """Return the id of the message."""
        return self._outgoing.id

    @property
    def generation(self) -> int:
        """Return the number of this writer among the writers of the message."""
        return self._outgoing.generation

    @property
    def error(self) -> TenutoError | None:
        """Return the refusal of a request, which the next call raises."""
        return self._outgoing.error

    @property
    def meta(self) -> dict[str, Json]:
        """Return the message's meta after all accepted updates."""
        return self._outgoing.meta

    @property
    def is_over(self) -> bool:
        """Return whether the end of the message was accepted or a request was refused."""
        return self._outgoing.is_over

    @property
    def length(self) -> int:
        """Return the accepted code points of the text part that `append` goes to; 0 without one."""
        return self._outgoing.length

    @property
    def unstored_bytes(self) -> int:
        """Return the size of the accepted content that is not stored."""
        return self._outgoing.unstored_bytes

    if not TYPE_CHECKING:  # hidden from type checkers, which report missing methods by themselves

        def __enter__(self):
            call = f"{self.made_by}.message"
            raise LocalError(
                f"{call} needs `async with {call}(...) as message`; without async use "
                "`with hub.sync.message(...) as message`, or SyncClient"
            )

        def __exit__(self, *error):
            raise AssertionError("the block was never entered")

    def _accept_end(self, status: str, reason: str | None, meta: dict[str, Json] | None) -> None:
        """Accept the end of the message. Raises LocalError for `complete` if a call was not awaited."""
        is_whole = status == "complete" and not self._outgoing.is_over
        if is_whole and (misuse := self._not_awaited()) is not None:
            raise misuse
        self._outgoing.accept_end(status, reason=reason, meta=meta)

    def keep(self, call: str, coroutine: Coroutine[Any, Any, _T]) -> Coroutine[Any, Any, _T]:
        """Return `coroutine`, whose `call` is reported at the end of the block if it was not awaited."""
        self._kept.append((call, coroutine))
        if len(self._kept).bit_count() == 1:  # at a power of two: many calls at once would each look at all others
            self._kept = [one for one in self._kept if _is_new(one[1])]
        return coroutine

    def _not_awaited(self) -> LocalError | None:
        """Return an error if a call that writes had no effect, because it was not awaited."""
        call, missing = "append(text)", self._appends
        if missing <= 0:
            # one that is closed is not missing: its task was cancelled before it began
            calls = [call for call, coroutine in self._kept if _is_new(coroutine)]
            if not calls:
                return None
            call, missing = calls[0], calls.count(calls[0])
        self._appends, self._kept = 0, []
        times = "once" if missing == 1 else f"{missing} times"
        name = call.partition("(")[0]
        effect = "its text is missing" if name in ("append", "pipe") else "it had no effect"
        return LocalError(
            f"the {name} to message {self.id!r} was called {times} without await, so {effect}; "
            f"write `await message.{call}`"
        )


def needs_await(call: str) -> Callable[[_Method[_W, _P, _T]], _Method[_W, _P, _T]]:
    """Return a decorator for an async method of a writer, whose block then fails if a `call` was not awaited."""

    def decorate(method: _Method[_W, _P, _T]) -> _Method[_W, _P, _T]:
        @functools.wraps(method)
        def begin(self: _W, /, *args: _P.args, **kwargs: _P.kwargs) -> Coroutine[Any, Any, _T]:
            return self.keep(call, method(self, *args, **kwargs))

        return begin

    return decorate


def _is_new(coroutine: Any) -> bool:
    """Return whether the coroutine has neither begun nor been closed."""
    return coroutine.cr_frame is not None and not coroutine.cr_running and not coroutine.cr_suspended


def end_for(error: BaseException) -> tuple[str, str | None]:
    """Return the status and the public reason of a message whose `async with` block raised `error`."""
    return (error.ends_as, error.code) if isinstance(error, TenutoError) else ("failed", public_reason(error))
