"""The outcome of a request, and how it reaches the component that submitted the request.

Layer: hub.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import Deleted, TenutoError
from tenuto.core.events import CommandReply, Cursor
from tenuto.core.model import Command, Message, plain
from tenuto.stores.base import Head


class ChannelInfo(Struct, frozen=True, kw_only=True):
    """The head of a channel: its epoch and last serial."""

    channel: str
    epoch: str
    serial: int
    cursor: str


class Result(Struct, frozen=True, kw_only=True):
    """The outcome of a request; durable when it is returned."""

    serial: int
    cursor: str
    created: bool  # False: the request was a repeat, and stored no entry
    message: Message | None = None  # the message, after a create or update
    command: Command | None = None  # the stored command, after a `SendCommand`
    reply: CommandReply | None = None  # the stored reply, if the command already has one
    generation: int | None = None
    part: int | None = None
    length: int | None = None  # length of the part in code points, after an append
    lengths: list[int] | None = None  # lengths of all parts in code points
    is_blind: bool = False  # the caller may not read the channel, so the result has fewer fields


Done = Callable[[Result | TenutoError], None]


def result_later() -> tuple[asyncio.Future[Result], Done]:
    """Return a future, and a callback that settles it (unless it was cancelled)."""
    outcome: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def done(result: Result | TenutoError) -> None:
        if outcome.done():
            return
        if isinstance(result, TenutoError):
            outcome.set_exception(result)
            # mark the exception as retrieved: asyncio would log it if the caller were cancelled at the same moment
            outcome.exception()
        else:
            outcome.set_result(result)

    return outcome, done


def message_of(result: Result, message_id: str) -> Message:
    """Return the message of a create or update, for the app. Raises Deleted if it was deleted in the same batch."""
    if result.message is None:
        raise Deleted(f"message {message_id!r} was deleted before the hub could return it; create another one")
    return own_copy(result.message)


def info_of(channel: str, head: Head) -> ChannelInfo:
    """Return the position of `channel`, whose head is `head`."""
    return ChannelInfo(channel=channel, epoch=head.epoch, serial=head.serial, cursor=str(Cursor(*head[:2])))


def own_copy(message: Message) -> Message:
    """Return a copy of `message` for the app, which may change the copy without changing the state."""
    return replace(message, meta=plain(message.meta), parts=[plain(part) for part in message.parts])
