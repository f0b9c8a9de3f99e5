"""The interface of the hub that message writers use.

Layer: hub.

`MessageWriter` needs this interface alone; `writers.Writers` implements it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tenuto.core.limits import Limits
from tenuto.core.requests import Caller, Request
from tenuto.hub.channel import Channel
from tenuto.hub.pace import Begin
from tenuto.hub.pending import Item
from tenuto.hub.results import Done, Result


class OpenWriter(Protocol):
    """The interface of a writer that the hub uses while the message streams."""

    channel: str

    @property
    def id(self) -> str:
        """Return the id of the message."""

    @property
    def generation(self) -> int:
        """Return the generation of this writer."""

    async def flush(self) -> None:
        """Store the text that the writer has accepted."""


class WriterHub(Protocol):
    """The methods of the hub that a writer uses. All but `start` and `caller` need a running hub."""

    limits: Limits
    # returns the reason to store for a message that an exception ended
    reason_of: Callable[[BaseException], str | None]

    @property
    def node(self) -> str:
        """Return the name of this run of the hub."""

    @property
    def is_draining(self) -> bool:
        """Return whether the hub is shutting down."""

    async def start(self) -> None:
        """Start the hub, if it does not run."""

    def caller(self, author: str | None) -> Caller:
        """Return the caller for requests of code in this process."""

    def submit(self, channel: str, key: str, request: Request, caller: Caller, done: Done, *, is_repeat: bool) -> None:
        """Submit `request`; `done` is called with its result. Raises Busy, Draining.

        With `is_repeat` the same request was submitted before, and may have been stored although it failed.
        """

    async def ask(self, channel: str, key: str, request: Request, caller: Caller) -> Result:
        """Submit `request` and return its result. Raises the refusal."""

    def queue(self, item: Item, caller: Caller, *, is_urgent: bool) -> None:
        """Queue `item` for the next commit, as `Committer.submit` does. Raises Busy, Draining, Fenced."""

    def hurry_commit(self) -> None:
        """Begin the next commit without a gap, because a caller waits for a queued item."""

    def schedule_commit(self, channel: Channel, callback: Callable[[], None]) -> Begin:
        """Return when to commit new text for the viewers of `channel`, as `Pace.begin` does."""

    def register_writer(self, writer: OpenWriter) -> None:
        """Register `writer`. Raises IdConflict if another one in this process writes the same message."""

    def unregister_writer(self, writer: OpenWriter) -> None:
        """Forget `writer`, which has ended."""
