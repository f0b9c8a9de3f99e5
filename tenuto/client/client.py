"""The client, which offers the calls of a hub over the network.

Layer: client. `Client` combines the modules beside it: `connection` and `link` (the server), `feed` (following
channels), `writer` and `work`. A client has one link for its requests, and more as its channels need them. Public names
without an underscore are the API and are documented in `docs/client.md`.

A present member belongs to a socket, so `Presence` enters again on each new one. The server's grace period hides the
change.

A `SyncClient` is for threads and scripts: it runs a `Client` on its own event loop in a daemon thread. All threads may
use it, also at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random as system
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Self, TypeVar

from msgspec import UNSET, Struct, UnsetType, ValidationError, convert

from tenuto.client.connection import (
    Dial,
    Http,
    ServerAccess,
    Timing,
    TokenProvider,
    Unreachable,
    decode_response,
    given,
    websocket_dial,
)
from tenuto.client.feed import ChannelView, EventConsumer, Feed, Subscription
from tenuto.client.link import Link, Outcome, Retry
from tenuto.client.work import OnTurn, RemoteWorker, Signals, TurnOffer
from tenuto.client.writer import RemoteWriter
from tenuto.core.decide import check_meta
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.events import Batch, CommandReply, Page, ServerEvent
from tenuto.core.limits import Limits
from tenuto.core.model import Command, Json, Member, Message, Part, check_json, check_part, plain
from tenuto.core.names import check_channel, check_id
from tenuto.core.text import whole_text
from tenuto.core.turns import ATTEMPTS, WhenBusy
from tenuto.portal import Portal, Run, SyncWriter, blocking, run_on, writing

if TYPE_CHECKING:
    import httpx2

    from tenuto.agents.running import Handler
    from tenuto.agents.turn import OnCrash
    from tenuto.client.agents import Agents
logger = logging.getLogger("tenuto.client")


LEASE_S = 15.0  # lease of a writer, unless the app gives another
FRAME_FACTOR = 8  # a frame may hold the largest message with each character escaped


class _Stored(Struct, frozen=True, kw_only=True):
    message: Message
    cursor: str = ""  # from which to follow the message; only a read returns it


class Commanded(Struct, frozen=True, kw_only=True):
    """The response to a command."""

    command: Command
    reply: CommandReply | None = None  # the stored reply, if the command already has one


class _Members(Struct, frozen=True, kw_only=True):
    members: list[Member]


class Client:
    """A hub in another process. `async with Client("https://host/tenuto", token=…) as client`.

    The client connects in the background, reconnects by itself, and repeats requests without a response. A call takes
    at most `timeout_s` for that, before the first connection `connect_s`, and then raises Unreachable. A refusal by the
    server is raised as the same TenutoError that the hub raises in process.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        token_provider: TokenProvider | None = None,
        client_id: str | None = None,
        timeout_s: float = 30.0,
        connect_s: float = 5.0,
        limits: Limits | None = None,
        timing: Timing | None = None,
        random: Random | None = None,
        now: Callable[[], float] = time.time,
        dial: Dial | None = None,
        http_transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._access = ServerAccess(url, token=token, token_provider=token_provider, client_id=client_id, now=now)
        self._limits = limits or Limits()
        self._timing = timing or Timing(request_s=timeout_s, connect_s=connect_s)
        self._random = random or system.SystemRandom()
        self._now = now
        self._http = Http(self._access, self._timing, self._random, http_transport)
        dial = dial or websocket_dial(frame_bytes=FRAME_FACTOR * self._limits.message_bytes)
        self._new_link = partial(
            Link, self._access, dial, timing=self._timing, random=self._random, limits=self._limits
        )
        self._links: list[Link] = []  # the first one carries the requests
        self._runs: set[asyncio.Task[None]] = set()  # the tasks of the links, also of one that ends
        self._is_closed = False
        self._views: dict[str, ChannelView] = {}
        self._workers: list[RemoteWorker] = []
        self._is_draining = False  # True: the client takes no more turns
        self._agents: Agents | None = None

    # -- opening and closing ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to connect; entering the block calls this. It does not wait for a connection, but calls do."""
        if not self._links:
            self._open_link()

    async def close(self) -> None:
        """Close all connections and views. Requests without a response are given up."""
        self._is_closed = True
        for view in tuple(self._views.values()):
            view.close()
        for link in self._links:
            link.end()
        if self._runs:
            await asyncio.wait(self._runs)
        await self._http.close()

    @property
    def is_connected(self) -> bool:
        """Return whether there is a connection now."""
        return bool(self._links) and self._links[0].is_live

    @property
    def error(self) -> TenutoError | None:
        """Return why the client has stopped connecting; None while it connects."""
        return self._links[0].error if self._links else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- messages ----------------------------------------------------------------------------------------------

    async def create(
        self,
        channel: str,
        *,
        text: str | None = None,
        id: str | None = None,
        role: str = "user",
        parts: list[Part] | None = None,
        meta: dict[str, Json] | None = None,
        parent: str | UnsetType | None = UNSET,
        reply_to: str | None = None,
    ) -> Message:
        """Store a complete message. With your own `id` the call may be repeated. Raises IdConflict."""
        fields = self._create_fields(id, role, parts, meta, parent, reply_to)
        if text is not None:
            fields["text"] = whole_text(text)
        return decode_response(await self._ask("create", channel, fields), _Stored).message

    async def update(
        self,
        channel: str,
        message_id: str,
        *,
        text: str | None = None,
        parts: list[Part] | None = None,
        meta: dict[str, Json] | None = None,
        if_version: int | None = None,
    ) -> Message:
        """Change a finished message; `meta` is merged. Raises StillStreaming, VersionConflict, NotFound, Deleted."""
        fields = given(text=whole_text(text) if text is not None else None, if_version=if_version)
        fields |= {"id": check_id(message_id), "request": self._new_id(), **self._content(parts, meta)}
        return decode_response(await self._ask("update", channel, fields), _Stored).message

    async def finish(
        self,
        channel: str,
        message_id: str,
        *,
        status: str = "complete",
        reason: str | None = None,
        meta: dict[str, Json] | None = None,
        generation: int | None = None,
    ) -> None:
        """End a streaming message that this client writes. Raises Finished, Fenced, NotWriter, NotFound, Deleted."""
        fields = given(status=status, reason=reason, generation=generation, request=self._new_id())
        await self._ask("finish", channel, {"id": check_id(message_id), **fields, **self._content(None, meta)})

    async def delete(self, channel: str, message_id: str) -> None:
        """Delete a message. Raises NotFound."""
        await self._ask("delete", channel, {"id": check_id(message_id)})

    async def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        """Return a message, and the cursor from which to follow it. Raises NotFound, Deleted."""
        path = ("v1", "channels", check_channel(channel), "messages", check_id(message_id))
        response = decode_response(await self._http.get(*path), _Stored)
        return response.message, response.cursor

    async def history(self, channel: str, *, before: int | None = None, limit: int | None = None) -> Page:
        """Return a page of messages, newest first.

        `before` is the field `created` of the oldest message that you have.
        """
        return decode_response(await self._ask("history", channel, given(before=before, limit=limit)), Page)

    def message(
        self,
        channel: str,
        *,
        id: str | None = None,
        role: str = "assistant",
        parts: list[Part] | None = None,
        meta: dict[str, Json] | None = None,
        parent: str | UnsetType | None = UNSET,
        reply_to: str | None = None,
        lease_s: float = LEASE_S,
    ) -> RemoteWriter:
        """Return a writer of a new message: `async with client.message("chat:1") as m: await m.append("…")`."""
        fields = self._create_fields(id, role, parts, meta, parent, reply_to)
        fields |= {"status": "streaming", "lease_s": lease_s}
        return self._writer(channel, fields.pop("id"), lease_s, fields)

    def take_over(self, channel: str, message_id: str, *, lease_s: float = LEASE_S) -> RemoteWriter:
        """Return a writer that continues an interrupted message at its end.

        Entering raises Finished, StillStreaming, NotFound, Deleted. The server fences the previous writer.
        """
        return self._writer(channel, check_id(message_id), lease_s, None)

    # -- watching ----------------------------------------------------------------------------------------------

    def subscribe(
        self, channel: str, *, since: str | None = None, history: int | None = None, flush_ms: int | None = None
    ) -> Subscription:
        """Return the channel's events: `async for event in client.subscribe("chat:1")`. It reconnects by itself."""
        check_channel(channel)
        return Subscription(channel, since, lambda consumer: self._feed(channel, consumer, history, flush_ms))

    def channel(self, name: str, *, history: int | None = None, flush_ms: int | None = None) -> ChannelView:
        """Return the current state of the channel, kept up to date: the same object until it is closed."""
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = ChannelView(
                name,
                open_feed=lambda consumer: self._feed(name, consumer, history, flush_ms),
                when_closed=lambda: self._views.__delitem__(name),
            )
        return view

    # -- people, agents and commands ---------------------------------------------------------------------------

    async def command(
        self,
        channel: str,
        name: str,
        *,
        target: str | None = None,
        data: Json = None,
        expires_s: float | None = None,
        id: str | None = None,
    ) -> Command:
        """Send a command: `cancel`, `steer`, `approve`, or one that the app defines. Its reply comes as an event."""
        command_id = self._new_id() if id is None else check_id(id)
        fields = given(name=name, target=target, data=self._data(data), expires_s=expires_s)
        return (await self._send(channel, command_id, **fields)).command

    async def reply(
        self, channel: str, command_id: str, *, ok: bool = True, data: Json = None, error: Json = None
    ) -> None:
        """Reply to a command. Raises AlreadyAnswered if another client has replied before."""
        await self._reply(channel, command_id, ok=ok, data=self._data(data), error=self._data(error))

    async def _send(self, channel: str, command_id: str, **fields: Any) -> Commanded:
        """Send a command; a repeat returns the stored one with its reply."""
        return decode_response(await self._ask("command", channel, {"id": command_id, **fields}), Commanded)

    async def _reply(self, channel: str, command_id: str, **fields: Any) -> None:
        fields = given(**fields, request=self._new_id())
        await self._ask("reply", channel, {"id": check_id(command_id), **fields})

    def presence(self, channel: str, data: dict[str, Json] | None = None, *, member: str | None = None) -> Presence:
        """Return a presence: `async with client.presence("chat:1", {"name": "Ada"}) as here: await here.update(…)`."""
        if member is not None:
            check_id(member, "a member's id")
        return Presence(self._link, check_channel(channel), data or {}, member)

    async def members(self, channel: str) -> list[Member]:
        """Return the present members, at most the first hundred."""
        response = await self._http.get("v1", "channels", check_channel(channel), "presence")
        return decode_response(response, _Members).members

    async def signal(self, channel: str, name: str, data: Json = None) -> None:
        """Send a signal, such as `typing`, to the present clients. Without a connection it is lost without an error."""
        fields = {"channel": check_channel(channel), **given(name=name, data=self._data(data))}
        try:
            await self._link.request("signal", fields, is_repeatable=False)
        except Unreachable:
            logger.debug("a signal to %s was lost", channel)

    async def work(
        self, pattern: str, *, on_turn: OnTurn, slots: int = 1, when_busy: str | None = None, name: str | None = None
    ) -> None:
        """Take turns of channels that match `pattern`, at most `slots` at a time, until cancelled or drained.

        `on_turn(turn)` works on one turn. Its claim is renewed meanwhile, and it is cancelled if the claim is lost.
        `name` is the member that people see, `when_busy` is as of `hub.agent`. Raises the server's refusal.
        """
        link = self._link
        if self._is_draining:
            return
        worker = RemoteWorker(link, pattern, slots=slots, when_busy=when_busy, name=name, on_turn=on_turn)
        link.when_turn = self._take_turn
        self._workers.append(worker)
        try:
            await worker.run()
        finally:
            self._workers.remove(worker)

    async def take_waiting(self, channel: str, message_id: str, *, turn: str) -> bool:
        """Take a waiting user message into this client's turn of message `turn`. Return False if another turn has it.

        Without a response the request is repeated, and the response is the same.
        """
        response = await self._ask("turn.take", channel, {"message": check_id(message_id), "turn": check_id(turn)})
        return bool(response.get("taken"))

    def agent(
        self,
        pattern: str,
        *,
        name: str | None = None,
        when_busy: WhenBusy = "queue",
        on_crash: OnCrash = "restart",
        timeout_s: float = 3600.0,
        budget_s: float | None = None,
        max_tries: int = ATTEMPTS,
        slots: int = 100,
        debug: bool | None = None,
    ) -> Callable[[Handler], Handler]:
        """Register a handler as `hub.agent` does: `@client.agent("chat:*")`, then `await client.run()`.

        `name` is the member that people see: the client's id (the default), or that with `~` and a suffix. The author
        of the answers is the client's id. It needs `subscribe`, `history`, `publish`, `append`, `command`, `agent`.
        `debug` is as of `Hub`; with None the reason of a failed answer names the exception if the hub's reasons do.
        """
        from tenuto.client.agents import Agents  # imported here: clients that only watch do not need the agents

        if self._agents is None:
            self._agents = Agents(self)
        return self._agents.register(
            pattern,
            name=name,
            when_busy=when_busy,
            on_crash=on_crash,
            timeout_s=timeout_s,
            budget_s=budget_s,
            max_tries=max_tries,
            slots=slots,
            debug=debug,
        )

    async def run(self, *, drain_s: float | None = 30.0) -> None:
        """Connect and run the agents until cancelled. Raises the server's refusal, such as Forbidden.

        At SIGTERM or Ctrl-C it takes no more turns, cancels those that only wait, and gives the running ones `drain_s`
        seconds. Other workers take over the cancelled turns. Then it passes the signal on. A second signal cancels all
        at once. With None it leaves the signals alone.
        """
        if self._agents is None:
            raise LocalError("this client has no agent to run; register one with @client.agent")
        signals: AbstractContextManager[object] = contextlib.nullcontext()
        if drain_s is not None:
            if not drain_s >= 0:  # also for NaN
                raise LocalError(f"drain_s must be 0 or more, got {drain_s}")
            signals = Signals(first=partial(self._drain_within, drain_s), again=self._agents.leave)
        with signals:
            await self.start()
            try:
                await self._agents.run()
            finally:
                await self.close()

    def drain(self) -> None:
        """Take no more turns: `run` and `work` return when the running turns are over."""
        self._is_draining = True
        for worker in self._workers:
            worker.drain()

    # -- links -------------------------------------------------------------------------------------------------

    @property
    def _link(self) -> Link:
        """Return the link for requests. Raises LocalError if the client is not open."""
        if not self._links or self._is_closed:
            raise LocalError("Client is not open, or is closed; use another one: `async with Client(...) as client`")
        return self._links[0]

    def _feed(self, channel: str, consumer: EventConsumer, history: int | None, flush_ms: int | None) -> Feed:
        """Return a feed of `channel` on the first link with room, or on a new one. Raises LocalError."""
        first, limit = self._link, self._limits.socket_channels
        room = (link for link in self._links if channel not in link.receivers and len(link.receivers) < limit)
        link = next(room, None) or self._open_link()

        def let_go() -> None:
            if link is not first and not link.receivers:  # `first` stays: it carries the requests
                self._links.remove(link)
                link.end()

        return Feed(link, channel, consumer, given(history=history, flush_ms=flush_ms), let_go)

    def _open_link(self) -> Link:
        link = self._new_link()
        self._links.append(link)
        run = link.start()
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        return link

    # -- inside ------------------------------------------------------------------------------------------------

    def _take_turn(self, frame: dict[str, Any]) -> None:
        try:
            offer = convert(frame, TurnOffer)
        except ValidationError as error:
            logger.error("the server sent a turn that this version cannot read; upgrade tenuto: %s", error)
            return
        worker = next((one for one in self._workers if one.is_for(offer)), None)
        if worker is not None:  # otherwise the worker has stopped meanwhile, and the claim will end
            worker.take(offer)

    def _drain_within(self, drain_s: float) -> None:
        assert self._agents is not None
        logger.info("no more turns are taken; the running ones have %.0f s, or until a second signal", drain_s)
        self.drain()
        self._agents.leave_at_rest()
        asyncio.get_running_loop().call_later(drain_s, self._agents.leave)

    def _writer(self, channel: str, message_id: str, lease_s: float, create: dict[str, Any] | None) -> RemoteWriter:
        """Return a writer that creates the message with the fields `create`, or with None takes it over."""
        check_channel(channel)
        return RemoteWriter(
            self._link, channel, message_id, lease_s=lease_s, create=create, read=lambda: self.read(channel, message_id)
        )

    async def _ask(self, kind: str, channel: str, fields: dict[str, Any]) -> dict[str, Any]:
        return await self._link.request(kind, {"channel": check_channel(channel), **fields})

    def _create_fields(
        self,
        id: str | None,
        role: str,
        parts: list[Part] | None,
        meta: dict[str, Json] | None,
        parent: str | UnsetType | None,
        reply_to: str | None,
    ) -> dict[str, Any]:
        # The client makes the id, so that the request is safe to repeat.
        fields = {"id": self._new_id() if id is None else check_id(id), "role": role, **self._content(parts, meta)}
        if parent is not UNSET:  # None is sent: the message follows no other one
            fields["parent"] = parent
        return {**fields, **given(reply_to=reply_to)}

    def _content(self, parts: list[Part] | None, meta: dict[str, Json] | None) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if parts is not None:
            fields["parts"] = [check_part(part, self._limits) for part in parts]
        if meta:
            check_meta(meta, self._limits)
            fields["meta"] = plain(meta)
        return fields

    def _data(self, data: Json) -> Json:
        if data is not None:
            check_json(data, self._limits.data_bytes, "data", depth=self._limits.depth)
        return data

    def _new_id(self) -> str:
        """Return an id that is unique in practice: 90 random bits."""
        return f"{self._random.getrandbits(90):018x}"


class Presence:
    """A member that is present while the `async with` block runs."""

    def __init__(self, link: Link, channel: str, data: dict[str, Json], member: str | None) -> None:
        self.channel = channel
        self.error: TenutoError | None = None  # the reason if the member is no longer present; `update` raises it
        self._link = link
        self._member = member
        self._data = self._checked(data)
        self._is_here = False  # True: the app has entered, and has not left
        self._retry = Retry(link)

    async def enter(self) -> Self:
        """Enter the channel. Raises the server's refusal; Unreachable."""
        if not self._is_here:
            await self._link.request("presence", self._frame())
            self._is_here = True
            self._link.add_listener(self, since=self._link.sockets)  # it has entered on the present socket
        return self

    async def update(self, data: dict[str, Json]) -> None:
        """Replace the member's data."""
        if not self._is_here:
            raise LocalError(f"the member has not entered channel {self.channel!r}; use `async with`")
        if self.error is not None:
            raise self.error
        self._data = self._checked(data)
        await self._link.request("presence", self._frame())

    async def leave(self) -> None:
        """Leave the channel."""
        if not self._is_here:
            return
        self._is_here = False
        self._link.remove_listener(self)
        self._retry.cancel()
        # withdraw presence only on an open connection, since members leave with their socket
        if self._link.is_live and self.error is None:
            with contextlib.suppress(Unreachable):
                await self._link.request("presence", {**self._frame(), "leave": True}, is_repeatable=False)

    __aenter__ = enter

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    # Calls of the link

    def opened(self) -> None:
        self._link.begin("presence", self._frame(), self._on_result)

    def broken(self) -> None:
        self._retry.cancel()

    def stopped(self, error: TenutoError) -> None:
        self.error = error

    # Internal

    def _on_result(self, result: Outcome) -> None:
        if not isinstance(result, TenutoError):
            self._retry.succeeded()
        elif isinstance(result, Unreachable):
            pass  # `opened` will enter the channel again
        elif result.retry and self._is_here:
            self._retry.later(self.opened)
        else:
            self.error = result
            logger.warning("the member is no longer present in %s: %s", self.channel, result)

    def _frame(self) -> dict[str, Any]:
        return {"channel": self.channel, **given(member=self._member), "data": self._data}

    def _checked(self, data: dict[str, Json]) -> dict[str, Json]:
        limits = self._link.limits
        check_json(data, limits.data_bytes, "a member's data", depth=limits.depth)
        return plain(data)


T = TypeVar("T")
STOP_S = 5.0  # longest time of each step of `SyncClient.close`


class SyncClient:
    """A blocking `Client` with the same arguments: `with SyncClient("http://127.0.0.1:8000") as client`."""

    def __init__(self, url: str, **options: Any) -> None:
        self._target = Client(url, **options)
        self._portal = Portal("tenuto-client")
        self._pid = 0  # that of the process with the thread, which a forked child lacks

    def start(self) -> None:
        """Begin to connect. Entering the block calls this."""
        if self._portal.loop is None:
            self._portal.start()
            self._pid = os.getpid()
            self._run(self._target.start())

    def close(self) -> None:
        """Close the connections and end the thread."""
        if self._pid == os.getpid():
            self._portal.stop(self._target.close, STOP_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def error(self) -> TenutoError | None:
        """Return why the client has stopped connecting (`Client.error`)."""
        return self._target.error

    create = blocking(Client.create)
    update = blocking(Client.update)
    finish = blocking(Client.finish)
    delete = blocking(Client.delete)
    read = blocking(Client.read)
    history = blocking(Client.history)
    command = blocking(Client.command)
    reply = blocking(Client.reply)
    members = blocking(Client.members)
    signal = blocking(Client.signal)

    def message(self, channel: str, **fields: Any) -> AbstractContextManager[SyncWriter]:
        """Return a writer, as `Client.message` does: `with client.message("chat:1") as m: m.append("…")`."""
        return writing(self._run, lambda: self._open(Client.message, channel, **fields))

    def take_over(self, channel: str, message_id: str, **fields: Any) -> AbstractContextManager[SyncWriter]:
        """Return a writer that continues a message, as `Client.take_over` does."""
        return writing(self._run, lambda: self._open(Client.take_over, channel, message_id, **fields))

    @contextmanager
    def presence(
        self, channel: str, data: dict[str, Json] | None = None, *, member: str | None = None
    ) -> Iterator[SyncPresence]:
        """Return a presence, for `with client.presence("chat:1", {"name": "Ada"}) as here: here.update(…)`."""

        async def enter() -> Presence:
            return await self._target.presence(channel, data, member=member).enter()

        presence = self._run(enter())
        try:
            yield SyncPresence(self._run, presence)
        finally:
            self._run(presence.leave())

    def subscribe(
        self, channel: str, *, since: str | None = None, history: int | None = None, flush_ms: int | None = None
    ) -> SyncSubscription:
        """Return the channel's events, as `Client.subscribe` does: `for event in client.subscribe("chat:1")`."""
        subscription = self._target.subscribe(channel, since=since, history=history, flush_ms=flush_ms)
        return SyncSubscription(self._run, subscription)

    async def _open(self, make: Callable[..., RemoteWriter], *names: str, **fields: Any) -> RemoteWriter:
        return await make(self._target, *names, **fields).open()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run `call` on the client's loop and return its result. Calls limit their time; a subscription may wait."""
        loop = self._portal.loop
        if loop is None or self._pid != os.getpid():
            call.close()
            raise LocalError("SyncClient is not open in this process; open one: `with SyncClient(...) as client`")
        return run_on(loop, call, remedy="use `Client` and await its methods there")


class SyncPresence:
    """The blocking version of `Presence`."""

    def __init__(self, run: Run, presence: Presence) -> None:
        self._run = run
        self._target = presence
        self.channel = presence.channel

    update = blocking(Presence.update)


class SyncSubscription:
    """The blocking version of `Subscription`."""

    def __init__(self, run: Run, subscription: Subscription) -> None:
        self._run = run
        self._subscription = subscription
        self.channel = subscription.channel

    @property
    def cursor(self) -> str | None:
        """Return the cursor to resume from (`Subscription.cursor`)."""
        return self._subscription.cursor

    def __iter__(self) -> Iterator[ServerEvent]:
        for batch in self.batches():
            yield from batch.events

    def batches(self) -> Iterator[Batch]:
        """Yield the events in batches, as `Subscription.batches` does."""
        batches = self._subscription.batches()

        async def call(step: Callable[[], Awaitable[T]]) -> T:  # on the client's loop, to which the generator belongs
            return await step()

        try:
            while True:
                yield self._run(call(batches.__anext__))
        finally:
            with contextlib.suppress(LocalError):  # the client is closed, and so is the subscription
                self._run(call(batches.aclose))
