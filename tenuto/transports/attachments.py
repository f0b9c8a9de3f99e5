"""The channels that one socket is attached to, and the next frames of events to send to it.

Layer: transports.

Attachments whose feeds have missed events wait in `_ready`, in the order they were woken; each takes all its missed
events in its turn. No event is taken from a feed before the socket can send it, so a slow socket costs no memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from tenuto.core.errors import InvalidRequest, StoreUnusable, TenutoError, TooMany
from tenuto.core.events import parse_cursor
from tenuto.core.names import check_channel
from tenuto.hub.batches import Behind, EncodedBatch
from tenuto.hub.feed import Feed
from tenuto.hub.hub import HubCore
from tenuto.transports.access import allowed_history, check_operation, describe_caller
from tenuto.transports.codec import FAILED, AttachFrame, DetachFrame
from tenuto.transports.operations import BY_NAME
from tenuto.transports.traffic import ResumeLimits, known_since, resume_limits_of

if TYPE_CHECKING:
    from tenuto.transports.session import Session

logger = logging.getLogger("tenuto.transports")

T = TypeVar("T")


class Attachment:
    """A channel that a socket is attached to, or is attaching to."""

    __slots__ = ("_attachments", "_responded", "channel", "feed", "has_response", "is_catching_up", "resume_limits")

    def __init__(self, attachments: Attachments, channel: str) -> None:
        self._attachments = attachments
        self.channel = channel
        self.feed: Feed | None = None  # None until the hub has attached it, and after `close`
        self.is_catching_up = False
        # resume limits of a viewer without the capability `history`; else None
        self.resume_limits: ResumeLimits | None = None
        self.has_response = False  # True: the `attach` frame has its response
        self._responded: asyncio.Future[None] | None = None

    async def wait_for_response(self) -> None:
        """Wait until the `attach` frame has its response.

        Only the channel's next `attach` waits.
        """
        if not self.has_response:
            self._responded = asyncio.get_running_loop().create_future()
            await self._responded

    def responded(self) -> None:
        """Note that the `attach` frame has its response."""
        self.has_response = True
        if self._responded is not None and not self._responded.done():
            self._responded.set_result(None)

    def wake(self) -> None:
        """Queue this attachment, because its channel has new events or the hub drains."""
        self._attachments.feed_woken(self)

    def close(self) -> None:
        """Detach from the channel."""
        if self.feed is not None:
            self.feed.close()
            self.feed = None


class Attachments:
    """All attachments of one session. Every method is called on the hub's event loop."""

    __slots__ = ("_attaching", "_by_channel", "_hub", "_ready", "_rest", "_session")

    def __init__(self, hub: HubCore, session: Session) -> None:
        self._hub = hub
        self._session = session
        self._by_channel: dict[str, Attachment] = {}
        self._attaching: dict[str, Attachment] = {}  # for each channel the newest `attach` that has no response yet
        # attachments with missed events, in the order in which they were woken (a dict as an ordered set)
        self._ready: dict[Attachment, None] = {}
        # an attachment and the remaining frames of its batch, if a batch takes several frames
        self._rest: tuple[Attachment, Iterator[str]] | None = None

    def __len__(self) -> int:
        return len(self._by_channel)

    def __iter__(self) -> Iterator[Attachment]:
        return iter(self._by_channel.values())

    def begin(self, frame: AttachFrame) -> Attachment:
        """Return a new attachment in place of the channel's old one. Raises Forbidden, InvalidRequest, TooMany, …"""
        channel = check_channel(frame.channel)
        check_operation(self._session.identity, BY_NAME["events"], channel)
        limits = self._hub.limits
        if frame.history is not None and frame.history > limits.history:
            raise InvalidRequest(f"history must be a whole number from 0 to {limits.history}, got {frame.history}")
        if channel not in self._by_channel and len(self._by_channel) >= limits.socket_channels:
            limit = limits.socket_channels
            raise TooMany(
                f"this socket is attached to {limit} channels, which is the limit (Limits.socket_channels); open "
                "another one",
                limit=limit,
            )
        self.leave(channel)
        attachment = self._by_channel[channel] = Attachment(self, channel)
        return attachment

    async def attach(self, frame: AttachFrame, attachment: Attachment) -> None:
        """Attach to the hub's channel and send the response, after those to earlier `attach` frames of the channel."""
        channel = attachment.channel
        earlier, self._attaching[channel] = self._attaching.get(channel), attachment
        try:
            if earlier is not None:
                await earlier.wait_for_response()
            await self._attach(frame, attachment)
        finally:
            attachment.responded()
            if self._attaching.get(channel) is attachment:
                del self._attaching[channel]

    async def _attach(self, frame: AttachFrame, attachment: Attachment) -> None:
        session, channel = self._session, attachment.channel
        resume_limits = attachment.resume_limits = resume_limits_of(self._hub, session.identity, channel)
        feed = None
        try:
            if self._by_channel.get(channel) is attachment:
                feed = await self._hub.attach(
                    channel,
                    known_since(resume_limits, parse_cursor(frame.since) if isinstance(frame.since, str) else None),
                    history=allowed_history(session.identity, channel, frame.history),
                    flush_ms=frame.flush_ms,
                    wake=attachment.wake,
                    has_ephemeral=True,
                )
                async with self._hub.viewing.reading():
                    await feed.prepare()  # a channel that cannot be read must not end the socket and its other channels
        except Exception as error:
            if self._by_channel.get(channel) is attachment:
                del self._by_channel[channel]
            session.respond_error(frame.ref, error)
            return
        session.respond({"type": "ok", "ref": frame.ref, "you": describe_caller(self._hub, session.identity, channel)})
        if feed is not None and self._by_channel.get(channel) is attachment:
            attachment.feed = feed
            if session.charge is not None:
                feed.on_first = self._charge
            self.feed_woken(attachment)
        elif feed is not None:  # otherwise the client has attached again or detached meanwhile
            feed.close()

    def _charge(self, batch: EncodedBatch) -> None:
        if self._session.charge is not None:
            self._session.charge(batch.encoded_bytes)

    def detach(self, frame: DetachFrame) -> None:
        """Detach from the channel and send the response."""
        self.leave(frame.channel)
        self._session.respond({"type": "ok", "ref": frame.ref})

    def leave(self, channel: str) -> None:
        """Detach from a channel, if the socket is attached to it."""
        attachment = self._by_channel.pop(channel, None)
        if attachment is None:
            return
        attachment.close()
        self._ready.pop(attachment, None)
        if self._rest is not None and self._rest[0] is attachment:
            self._rest = None

    def close(self) -> None:
        """Detach from all channels."""
        for attachment in self._by_channel.values():
            attachment.close()
        self._by_channel.clear()
        self._ready.clear()
        self._rest = None

    def feed_woken(self, attachment: Attachment) -> None:
        """Queue an attachment whose channel has new events, or close the session if viewers must leave."""
        if self._hub.viewing.is_over:
            self._session.drain()
        elif attachment.feed is not None and not attachment.is_catching_up:
            self._ready[attachment] = None
            self._session.released()

    def next_frame(self) -> str | None:
        """Return the next frame of events; None if no channel has missed events."""
        if self._rest is not None:
            frame = next(self._rest[1], None)
            if frame is not None:
                return frame
            self._rest = None
        while self._ready:
            attachment = next(iter(self._ready))
            del self._ready[attachment]
            frame = self._take(attachment, self._first_frame)
            if frame is not None:
                return frame
        return None

    @property
    def is_due(self) -> bool:
        """Return whether a frame of events may be due."""
        return bool(self._ready) or self._rest is not None

    def next_batch(self) -> EncodedBatch | None:
        """Return the next batch if one stored event is all that the only woken channel has missed; else None.

        Then `next_frame` has the next frame, also of events that were taken here.
        """
        if self._rest is not None or len(self._ready) != 1:
            return None
        attachment, _ = self._ready.popitem()
        return self._take(attachment, self._sole_batch)

    def _take(self, attachment: Attachment, take: Callable[[Attachment, Feed], T | None]) -> T | None:
        """Return the result of `take`, which takes all events that a feed has missed.

        The feed has moved behind the taken events. If they cannot be framed, the session must end, since it would skip
        them.
        """
        feed = attachment.feed
        if feed is None:
            return None
        try:
            return take(attachment, feed)
        except Behind:
            attachment.is_catching_up = True
            self._session.start_task(self._catch_up(attachment, feed))
        except Exception:
            logger.exception("the events of channel %s cannot be sent to a socket", attachment.channel)
            self._session.end(FAILED, "internal")
        return None

    def _batch(self, attachment: Attachment, feed: Feed) -> EncodedBatch | None:
        batch = feed.take()
        if batch is not None and feed.is_behind:  # more is left: take again later
            self._ready[attachment] = None
        return batch

    def _sole_batch(self, attachment: Attachment, feed: Feed) -> EncodedBatch | None:
        batch = self._batch(attachment, feed)
        if batch is None:
            return None
        if len(batch.raw) == 1 and batch.cursor and attachment.resume_limits is None:
            return batch
        self._rest = (attachment, iter(_frames_of(attachment, batch)))
        return None

    def _first_frame(self, attachment: Attachment, feed: Feed) -> str | None:
        batch = self._batch(attachment, feed)
        if batch is None:
            return None
        frames = _frames_of(attachment, batch)
        if len(frames) > 1:
            rest = iter(frames)
            self._rest = (attachment, rest)
            return next(rest)
        return frames[0]

    async def _catch_up(self, attachment: Attachment, feed: Feed) -> None:
        try:
            await feed.catch_up()
        except StoreUnusable as error:  # an attach would be refused; the other channels go on
            logger.warning("channel %r cannot be read, so a socket is detached from it: %s", attachment.channel, error)
            if self._by_channel.get(attachment.channel) is attachment:
                self.leave(attachment.channel)
                self._session.refuse(None, error, channel=attachment.channel)
        except TenutoError as error:
            logger.warning("a channel of a socket cannot be read: %s", error)
            self._session.end(FAILED, error.code)
        except Exception:
            logger.exception("a channel of a socket cannot be read")
            self._session.end(FAILED, "internal")
        else:
            attachment.is_catching_up = False
            self.feed_woken(attachment)


def _frames_of(attachment: Attachment, batch: EncodedBatch) -> tuple[str, ...]:
    resume_limits = attachment.resume_limits
    if resume_limits is None or not batch.cursor:
        return batch.frames
    return batch.frames_with(resume_limits.mark(batch.cursor))
