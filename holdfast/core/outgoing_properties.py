"""The parts that both message writers share: properties, checks of their use, and the end after an exception.

Layer: core.

The hub's writer (`hub/writer.py`) and the client's (`client/writer.py`) add to their state machine (`outgoing`) these
members. Wording may change freely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.core.errors import HoldfastError, LocalError, public_reason
from holdfast.core.model import Json
from holdfast.core.outgoing import Outgoing


class OutgoingProperties:
    """Properties of both writers, and the checks of their use: `async with`, and `await` at `append` and `pipe`."""

    __slots__ = ("_appends", "_outgoing", "unawaited_pipes")

    made_by: ClassVar[str]  # the object whose method `message` returns this writer

    _outgoing: Outgoing
    _appends: int  # number of calls of `append` that were not awaited
    unawaited_pipes: list[Any]  # the coroutines of calls of `pipe` that have not begun

    @property
    def id(self) -> str:
        """Return the id of the message."""
        return self._outgoing.id

    @property
    def generation(self) -> int:
        """Return the number of this writer among the writers of the message."""
        return self._outgoing.generation

    @property
    def error(self) -> HoldfastError | None:
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

    def _not_awaited(self) -> LocalError | None:
        """Return an error if the text of a call of `append` or `pipe` is missing, because the call was not awaited."""
        call, missing = "append(text)", self._appends
        if missing <= 0:
            # one without a frame was closed: its task was cancelled before it began
            call, missing = "pipe(stream)", sum(one.cr_frame is not None for one in self.unawaited_pipes)
        if missing <= 0:
            return None
        self._appends = 0
        self.unawaited_pipes.clear()
        times = "once" if missing == 1 else f"{missing} times"
        return LocalError(
            f"the {call.partition('(')[0]} to message {self.id!r} was called {times} without await, so its text is "
            f"missing; write `await message.{call}`"
        )


def end_for(error: BaseException) -> tuple[str, str | None]:
    """Return the status and the public reason of a message whose `async with` block raised `error`."""
    return (error.ends_as, error.code) if isinstance(error, HoldfastError) else ("failed", public_reason(error))
