"""The target `identities`: a hub with a verifier, and callers with limited rights.

Layer: fuzz.

An input is `{setup, steps}`. A step is a request (as in `requests`), or a `socket` with frames (as in `frames`, and
`{auth, ref}`), or `wait_s`. `as` is the caller: the claims of a token (`sub`, `can`, `exp` in seconds from the
beginning, `nbf`, `aud`), how it is presented (`by`, `line`), and how it is damaged (`sign`, `spoil`). `ticket` puts an
issued ticket into the query, `cursor` an issued cursor, counted from the first.

A `Town` has the invariants. `rights`, which does not use the product, must allow each grant: by a token that is valid
now, or by a ticket for that stream. No caller is shown a message that it may not see. Without `history`, a cursor
counts only for the caller to whom it was issued. No connection outlives its identity, the hub holds no resource in the
end, and no error or log line contains a token.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, MutableMapping
from random import Random
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote

from proof.fuzz import mutate
from proof.fuzz.engine import Finding, Guided
from proof.fuzz.frames import FRAME_WORDS, FRAMES, Peer
from proof.fuzz.mutate import Json, to_bytes
from proof.fuzz.requests import HEADER_LINES, REQUESTS, SPOILS, spoiled
from proof.fuzz.rights import (
    AUDIENCE,
    CAPABILITIES,
    COOKIE,
    EVERYWHERE,
    START_S,
    Needs,
    Rights,
    needs_of_frame,
    needs_of_request,
    rights_in,
    token_of,
)
from proof.fuzz.world import (
    HOLD_S,
    Exchange,
    World,
    as_dict,
    as_list,
    as_number,
    as_text,
    headers_of,
    pages,
    path_of,
    until_returned,
    world_of,
)
from proof.wirecheck import SseParser
from tests.transports.permissions import OPEN_FRAMES

MAX_STEPS = 50
MAX_ENDS_S = 400.0  # the longest wait for an identity to end
SLACK_S = 6.0  # a socket checks its timers every five seconds
TICKET_S = 60.0
CHANNELS = ("chat:a", "chat:b", "user:ada", "room")
OWN = ("past", "live")  # the world's own messages in each channel: one is complete, one streams
READ = ["subscribe", "history"]
_SEALED = re.compile(r"([A-Za-z0-9_-]{1,32}:[0-9]+):(k.{22})?(h.{22})?")


class IssuedCursor(NamedTuple):
    """An issued cursor."""

    text: str
    sub: str
    channel: str
    may_look_back: bool


class Issued:
    """An issued ticket."""

    def __init__(self, text: str, channel: str, rights: Rights, at_s: float) -> None:
        self.text = text
        self.channel = channel
        self.rights = rights.narrowed(channel, frozenset(READ))
        self.at_s = at_s
        self.seals: set[str] = set()  # the seals in the cursors of its streams


class Seen(NamedTuple):
    """One of the world's own messages, as shown to a caller."""

    channel: str
    id: str
    by: tuple[Rights, ...]
    where: str


class Visit:
    """A request, its sender, and its result so far."""

    def __init__(
        self, exchange: Exchange, method: str, headers: list[list[bytes]], needs: Needs | None, rights: Rights | None
    ) -> None:
        self.exchange = exchange
        self.method = method
        self.headers = headers
        self.needs = needs
        self.rights = rights
        self.since = ""  # the cursor of the request
        self.is_by_ticket = False
        self.ticket: Issued | None = None
        self.is_judged = False
        self.is_counted = False
        self.streamed = ""  # the text that the stream of one message has sent
        self._parser = SseParser()
        self._read = 0

    def events(self) -> list[Any]:
        """Return the events of a stream since the last call."""
        body = self.exchange.response.body
        data, self._read = bytes(body[self._read :]), len(body)
        return self._parser.receive(data)

    @property
    def is_granted(self) -> bool:
        """Return whether the request succeeded."""
        response = self.exchange.response
        if response.is_stream and response.body:
            return bool(re.search(rb"event: (channel\.attached|answer|thinking|done)\n", response.body))
        return 200 <= response.status < 400


class Town:
    """A guarded world whose channels contain messages, with everything that was issued in it."""

    def __init__(self, world: World, setup: dict[str, Any]) -> None:
        self.world = world
        self.origins = [one for one in as_list(setup.get("origins")) if isinstance(one, str)]
        self.cursors: list[IssuedCursor] = []
        self.seen: list[Seen] = []
        self.touched: set[str] = set()  # channels whose own messages were changed, so that they are new events
        self.emptied: set[str] = set()  # channels that may have been deleted
        self.writes: dict[str, int] = {}
        self.authors: dict[str, set[str]] = {channel: {"root"} for channel in CHANNELS}
        self.secrets: set[str] = set()
        self.present_until_s = 0.0
        self._epochs: dict[str, str] = {}
        self._tickets: list[Issued] = []
        self._visits: list[Visit] = []
        self._peers: list[tuple[asyncio.Task[None], JudgedPeer]] = []

    @property
    def now_s(self) -> float:
        return self.world.loop.time()

    async def settle(self) -> None:
        """Store the world's own messages."""
        for channel in CHANNELS:
            path = f"/v1/channels/{channel}/messages"
            await self.world.expect(201, "POST", path, {"id": "past", "text": hidden(channel, "past")})
            live = {"id": "live", "role": "assistant", "status": "streaming", "lease_s": 3_600}
            stored = await self.world.expect(201, "POST", path, {**live, "text": hidden(channel, "live")})
            self._epochs[channel] = stored["cursor"].partition(":")[0]

    async def take(self, step: dict[str, Any]) -> None:
        """Carry out a step. Raises Finding."""
        self._take_responses()
        self._check_one_stream_of_each_ticket()
        if isinstance(step.get("socket"), list):
            await self._open_socket(step)
        elif "path" in step:
            await self._ask(step)
        else:
            await self.world.pass_time(as_number(step.get("wait_s"), 1.0, 100.0))

    # Callers

    def token(self, who: object) -> str:
        """Return the token that `who` describes."""
        known = as_dict(who)
        expiry = known.get("exp", 60)
        is_span = isinstance(expiry, int | float) and not isinstance(expiry, bool)
        begins = known.get("nbf")
        claims = {
            "sub": known.get("sub"),
            "aud": known.get("aud", AUDIENCE),
            "exp": START_S + expiry if is_span and abs(expiry) < 1e12 else expiry,
            "tenuto": known.get("can"),
        }
        if begins is not None:
            claims["nbf"] = START_S + begins if isinstance(begins, int) and abs(begins) < 1e12 else begins
        text = token_of(claims)
        if known.get("sign") == "wrong":
            text = text[:-12] + text[-12:].swapcase()
        text = spoiled(text, known.get("spoil"))
        self._note_secrets(text, *text.split(".")[1:])
        return text

    def _note_secrets(self, *secrets: str) -> None:
        """Forbid these texts in errors and logs from now on. Short texts occur everywhere, so they are left out."""
        self.secrets.update(one for one in secrets if len(one) >= 20)

    def header_lines_of(self, who: object) -> list[list[str]]:
        """Return the header lines that carry its token."""
        known = as_dict(who)
        if not known:
            return []
        if known.get("by") == "cookie":
            return [["Cookie", f"a=b; {COOKIE}={self.token(known)}"]]
        return [["Authorization", as_text(known.get("line"), "Bearer ") + self.token(known)]]

    def rights_by(self, headers: Iterable[tuple[bytes, bytes]]) -> Rights | None:
        """Return the rights of the sender of these header lines, as an upper bound."""
        lines = [(bytes(name), bytes(value).decode("latin-1")) for name, value in headers]
        texts = [value for name, value in lines if name == b"authorization"]
        found = [match[1] for text in texts if (match := re.fullmatch(r"\s*bearer\s+(\S.*)", text, re.I | re.S))]
        if not texts:
            pairs = [pair for name, value in lines if name == b"cookie" for pair in value.split(";")]
            found = [
                text.strip().strip('"')
                for name, _, text in (pair.partition("=") for pair in pairs)
                if name.strip() == COOKIE
            ]
        return next((rights for one in found if (rights := rights_in(one.strip(), self.now_s)) is not None), None)

    def is_foreign(self, headers: list[list[bytes]], method: str) -> bool:
        """Return whether a browser would send this for an unknown page. `method` is "" for a socket."""
        names = {bytes(name): bytes(value).decode("latin-1") for name, value in reversed(headers)}
        by_cookie = b"cookie" in names and b"authorization" not in names
        if method and (not by_cookie or method in ("GET", "HEAD", "OPTIONS")):
            return False
        origins = [bytes(value).decode("latin-1") for name, value in headers if name == b"origin"]
        host = names.get(b"host", "").lower().removesuffix(":80")
        for origin in origins:
            is_listed = origin in self.origins and origin != "*"
            is_anybody = "*" in self.origins and not by_cookie
            is_ours = origin.lower().removesuffix(":80").partition("://")[2] == host and host != ""
            if not (is_listed or is_anybody or is_ours):
                return True
        return by_cookie and bool(method) and not origins and names.get(b"sec-fetch-site") != "same-origin"

    # Requests

    async def _ask(self, step: dict[str, Any]) -> None:
        method = re.sub(r"[^!-~]", "", as_text(step.get("method"), "GET"))[:60]  # no server accepts other characters
        path, raw_path = path_of(as_text(step.get("path"), "/"))
        if path.startswith("/web"):
            return
        lines = [*as_list(step.get("headers")), *self.header_lines_of(step.get("as"))]
        since = self._cursor(step)
        if since is not None:
            lines.append(["Last-Event-ID", since])
        headers = headers_of(lines)
        names = {bytes(name) for name, _ in headers}
        headers += [] if b"host" in names else [[b"host", b"localhost"]]
        headers += [] if b"content-type" in names else [[b"content-type", b"application/json"]]
        query = as_text(step.get("query"), "")[:2_000]
        if isinstance(step.get("ticket"), int) and self._tickets:
            text = spoiled(self._tickets[step["ticket"] % len(self._tickets)].text, step.get("spoil"))
            query = f"{query}&ticket={quote(text, safe='')}"
        data = to_bytes(query).replace(b"#", b"").replace(b" ", b"")
        address = step.get("address") if isinstance(step.get("address"), str) else "127.0.0.1"
        exchange = Exchange(
            self.world, method, path, headers=headers, query=data, raw_path=raw_path, address=str(address)
        )
        body = to_bytes(step["body"]) if "body" in step else json.dumps(step.get("json", {})).encode()
        exchange.pieces = [body]
        needs = needs_of_request(method, _decoded(path, raw_path), _json(body))
        visit = Visit(exchange, method, headers, needs, self.rights_by((one[0], one[1]) for one in headers))
        visit.since = _last(headers, data)
        shown = dict(parse_qsl(data.decode("latin-1"), keep_blank_values=True)).get("ticket")
        if shown is not None and method in ("GET", "HEAD") and path.endswith("/events"):
            visit.is_by_ticket = True
            visit.ticket = self._valid_ticket(shown, needs, _last(headers, b""))
            visit.rights = visit.ticket.rights if visit.ticket is not None else None
        exchange.start()
        if step.get("beside") is True and len(self._visits) < 40:
            await exchange.read_for(0.05)
        else:
            await exchange.read_for(as_number(step.get("hold_s"), HOLD_S, 100.0))
            await exchange.leave()
        self._visits.append(visit)
        self._judge(visit)
        if exchange.is_done and visit.is_granted and path == "/v1/tickets" and method == "POST":
            assert visit.rights is not None
            text = as_text(as_dict(exchange.response.json()).get("ticket"), "")
            self._tickets.append(Issued(text, as_dict(_json(body))["channel"], visit.rights, self.now_s))
            self._note_secrets(text, *text.split("."))
        plain = not set(as_dict(step.get("as"))) & {"line", "sign", "spoil", "by"} and not names & {
            b"cookie",
            b"origin",
        }
        if plain and not visit.is_by_ticket and "authorization" not in as_text(step.get("headers"), "").lower():
            self._check_not_refused(visit)

    def _cursor(self, step: dict[str, Any]) -> str | None:
        at = step.get("cursor")
        if not isinstance(at, int) or not self.cursors:
            return None
        return self.cursors[at % len(self.cursors)].text + as_text(step.get("and"), "")[:50]

    def _valid_ticket(self, text: str, needs: Needs | None, since: str) -> Issued | None:
        """Return the ticket in `text`, if it opens the requested stream now."""
        found = next((one for one in self._tickets if one.text == text), None)
        if found is None or needs is None or needs.channel != found.channel or self.now_s >= found.rights.ends_s:
            return None
        match = _SEALED.match(since)
        is_back = match is not None and match[2] in found.seals
        return found if is_back or self.now_s <= found.at_s + TICKET_S else None

    def _judge(self, visit: Visit) -> None:
        """Check that a success was allowed, and that a valid ticket was not refused. Raises Finding."""
        needs, rights, what = visit.needs, visit.rights, visit.exchange.response.what
        visit.is_judged = visit.is_granted or visit.exchange.is_done
        if not visit.is_granted:
            may = needs is not None and rights is not None and rights.has_all(needs.capabilities, needs.channel)
            refusal = re.search(rb'"(unauthenticated|forbidden)"', visit.exchange.response.body)
            if visit.ticket is not None and may and refusal and self.now_s < visit.ticket.rights.ends_s - 1:
                raise Finding(f"refused: a valid ticket, by {what}: {visit.exchange.response.body[:300]!r}")
            return
        if needs is None:
            raise Finding(f"granted: {what}, which is not an operation: {visit.exchange.response.status}")
        if needs.capabilities and (rights is None or not rights.has_all(needs.capabilities, needs.channel)):
            by = "a ticket" if visit.is_by_ticket else "a token"
            raise Finding(f"granted: {what} by {by} needs {sorted(needs.capabilities)}; {rights}")
        if needs.capabilities and not visit.is_by_ticket and self.is_foreign(visit.headers, visit.method):
            raise Finding(f"foreign: {what} of {visit.headers}")
        self._note_change(needs, what, visit.method, rights)
        if rights is not None and visit.method == "PUT" and "presence" in needs.capabilities:
            self.present_until_s = max(self.present_until_s, rights.ends_s)

    def _note_change(self, needs: Needs, what: str, kind: str, rights: Rights | None) -> None:
        """Note the changes that a successful request may have made."""
        if rights is None or not needs.capabilities & {"publish", "append", "admin"} or kind in ("GET", "HEAD"):
            return
        for channel in CHANNELS if needs.channel == EVERYWHERE else (needs.channel,):
            if any(one in what for one in OWN) or "admin" in needs.capabilities:
                self.touched.add(channel)
            if "admin" in needs.capabilities:
                self.emptied.add(channel)
            self.writes[channel] = self.writes.get(channel, 0) + 1
            self.authors.setdefault(channel, {"root"}).add(rights.sub)

    def _check_not_refused(self, visit: Visit) -> None:
        """Check that a caller with all needed capabilities is not refused, if no other rule applies. Raises Finding."""
        needs, rights, response = visit.needs, visit.rights, visit.exchange.response
        if rights is None or needs is None or not needs.capabilities or response.status not in (401, 403):
            return
        may = needs.is_all and rights.has_all(needs.capabilities, needs.channel)
        if (response.status == 401 or may) and self.now_s < rights.ends_s - 1:
            raise Finding(f"refused: {response.what} of {rights}: {bytes(response.body[:300])!r}")

    # Responses

    def _take_responses(self) -> None:
        """Take the responses to all requests. Raises Finding."""
        for visit in self._visits:
            response = visit.exchange.response
            if not visit.is_judged:
                self._judge(visit)
            if visit.rights is not None:
                self.note_shown(bytes(response.body), (visit.rights,), response.what)
            elif visit.needs is not None and visit.needs.capabilities:
                self.note_shown(bytes(response.body), (), response.what)
            if response.is_stream:
                self._take_stream(visit)
            elif visit.exchange.is_done and not visit.is_counted:
                visit.is_counted = True
                if response.status >= 400:
                    self.check_secrets(bytes(response.body).decode(), response.what)
                elif response.status == 200 and "/poll" in response.what and response.body:
                    self._take_poll(visit)

    def _take_stream(self, visit: Visit) -> None:
        is_channel = "/messages/" not in visit.exchange.response.what
        for event in visit.events():
            if event.event == "channel.attached" and is_channel:
                self._check_resumed(visit, json.loads(event.data)["resumed"])
            if event.event in ("answer", "thinking") and not is_channel:
                visit.streamed += json.loads(event.data)
            if event.id is not None and visit.rights is not None and visit.needs is not None:
                self._note_cursor(event.id, visit.rights, visit.needs.channel)
                match = _SEALED.match(event.id)
                if visit.ticket is not None and match is not None and match[2]:
                    visit.ticket.seals.add(match[2])
        self.check_secrets(bytes(visit.exchange.response.body).decode(), visit.exchange.response.what)

    def _take_poll(self, visit: Visit) -> None:
        polled = visit.exchange.response.json()
        events = polled["events"]
        attached = [event for event in events if event["type"] == "channel.attached"]
        is_resumed = attached[0]["resumed"] if attached else True
        self._check_resumed(visit, is_resumed)
        assert visit.rights is not None
        assert visit.needs is not None
        self._note_cursor(polled["cursor"], visit.rights, visit.needs.channel)
        kinds = {event["type"] for event in events if event["type"].startswith("presence.")}
        position = visit.since.partition("@")[2]
        is_made_up = position != "" and not any(one.text.endswith(f"@{position}") for one in self.cursors)
        is_bound = not visit.rights.has("history", visit.needs.channel) and not attached
        if is_made_up and is_bound and kinds and "presence.sync" not in kinds:
            raise Finding(f"presence: {kinds} sent after the forged position {visit.since!r}")

    def _note_cursor(self, text: str, rights: Rights, channel: str) -> None:
        if len(self.cursors) < 200:
            self.cursors.append(IssuedCursor(text, rights.sub, channel, rights.has("history", channel)))

    def _check_resumed(self, visit: Visit, is_resumed: bool) -> None:
        assert visit.rights is not None
        assert visit.needs is not None
        self.check_resumed((visit.rights,), visit.needs.channel, [visit.since], is_resumed)

    def check_resumed(self, who: Iterable[Rights], channel: str, tried: list[str], is_resumed: bool) -> None:
        """Check that without `history` a caller resumes from a cursor if, and only if, it was issued to it. Raises
        Finding.
        """
        rights = list(who)
        if not rights or any(one.has("history", channel) for one in rights):
            return
        subs = {one.sub for one in rights}
        own = [one for one in self.cursors if one.channel == channel and one.sub in subs]
        marks = {_mark(one.text) for one in own} - {None}
        if is_resumed and not any(_mark(text) in marks for text in tried):
            raise Finding(f"resumed: {sorted(subs)} in {channel} from {tried}")
        is_still = channel not in self.emptied and self.writes.get(channel, 0) < 2
        is_exact = any(one.text == text and not one.may_look_back for one in own for text in tried[-1:])
        if not is_resumed and is_exact and is_still and len(rights) == 1:
            raise Finding(f"not resumed: {sorted(subs)} in {channel} from {tried}")

    def note_shown(self, data: bytes, by: tuple[Rights, ...], where: str) -> None:
        """Note which of the world's own messages the sent bytes contain."""
        if b"hidden" in data:
            for channel in CHANNELS:
                for id in OWN:
                    if hidden(channel, id).encode() in data:
                        self.seen.append(Seen(channel, id, by, where))

    def check_secrets(self, text: str, where: str) -> None:
        """Check that `text` contains no token and no ticket. Raises Finding."""
        for secret in self.secrets:
            if secret in text and not where.startswith("POST '/v1/tickets'"):
                raise Finding(f"secret: {secret[:80]!r} in {where}: {text[:300]!r}")

    # Sockets

    async def _open_socket(self, step: dict[str, Any]) -> None:
        lines = [*as_list(step.get("headers")), *self.header_lines_of(step.get("as"))]
        known = {"steps": self._rendered(step["socket"]), "headers": lines, "query": step.get("query")}
        known |= {name: step[name] for name in ("subprotocols", "extension") if name in step}
        peer = JudgedPeer(self, known, headers_of(lines))
        if step.get("beside") is True and len(self._peers) < 8:
            self._peers.append((asyncio.get_running_loop().create_task(peer.talk()), peer))
            await asyncio.sleep(0.05)
        else:
            await peer.talk()
            peer.check()

    def _rendered(self, steps: list[Any]) -> list[Any]:
        found: list[Any] = []
        for step in steps[:MAX_STEPS]:
            if not isinstance(step, dict):
                continue
            if "auth" in step:
                token = self.token(step["auth"])
                found.append({"json": {"type": "auth", "ref": step.get("ref", 0), "token": token}})
            elif isinstance(step.get("steps"), list):
                found.append({**step, "times": min(5, as_number(step.get("times"), 1, 5)),
                              "steps": self._rendered(step["steps"][:8])})  # fmt: skip
            elif isinstance(step.get("json"), dict) and "cursor" in step:
                found.append({"json": {**step["json"], "since": self._cursor(step)}})
            else:
                found.append(step)
        return found

    # The end

    async def end(self) -> None:
        """Wait until every identity has ended, and check the hub. Raises Finding."""
        for task, peer in self._peers:
            await until_returned(task, "a socket")
            peer.check()
        await asyncio.sleep(1.0)
        self._take_responses()
        self._check_one_stream_of_each_ticket()
        await self._until_over()
        self._take_responses()
        for visit in self._visits:
            await visit.exchange.leave()
        self._take_responses()
        self._check_seen()
        self._check_streamed()
        await self._check_authors()
        for line in self.world.lines:
            self.check_secrets(line, "the log")
        await self._check_nothing_is_held()

    def _check_one_stream_of_each_ticket(self) -> None:
        for ticket in self._tickets:
            running = [one for one in self._visits if one.ticket is ticket and not one.exchange.is_done]
            if len(running) > 1:
                raise Finding(f"twice: one ticket has {len(running)} open streams")

    async def _until_over(self) -> None:
        running = [one for one in self._visits if not one.exchange.is_done and one.rights is not None]
        ends = [one.rights.ends_s for one in running if one.rights is not None]
        ends = [one for one in [*ends, self.present_until_s] if self.now_s < one + SLACK_S < MAX_ENDS_S]
        if ends:
            await self.world.pass_time(max(ends) + SLACK_S - self.now_s)
        for visit in running:
            assert visit.rights is not None
            if self.now_s >= visit.rights.ends_s + SLACK_S and not visit.exchange.is_done:
                raise Finding(f"outlives: {visit.exchange.response.what} of {visit.rights} at {self.now_s:.0f} s")

    def _check_seen(self) -> None:
        for one in self.seen:
            if any(rights.sub == "root" for rights in one.by):
                continue
            is_news = one.id == "live" or one.channel in self.touched
            may = [rights.has("history", one.channel) for rights in one.by]
            may += [rights.may_see(one.channel) for rights in one.by if is_news]
            if not any(may):
                raise Finding(f"shown: {one.id} of {one.channel} to {one.by} by {one.where}")

    def _check_streamed(self) -> None:
        """Check that a message's stream sends all of it, or its rest after a cursor of that log. Raises Finding."""
        for visit in self._visits:
            channel = visit.needs.channel if visit.needs is not None else ""
            about = re.search(r"/messages/(past|live)/events'", visit.exchange.response.what)
            if about is None or channel in self.touched or not visit.streamed:
                continue
            whole = hidden(channel, about[1])
            is_cursor = re.fullmatch(r"([^:]+):[0-9]+:(k.{22})?[md][0-9]+(\.[0-9]+)*", visit.since)
            is_rest = is_cursor is not None and is_cursor[1] == self._epochs.get(channel)
            if visit.streamed != whole and not (is_rest and whole.endswith(visit.streamed)):
                raise Finding(f"streamed: {visit.streamed!r} of {whole!r} from {visit.since!r}")

    async def _check_authors(self) -> None:
        for channel in CHANNELS:
            for message in await pages(self.world, channel):
                if message.get("author", "root") not in self.authors.get(channel, {"root"}):
                    raise Finding(f"written: by {message['author']} in {channel}, without a grant there")
                if message["id"] in OWN and channel not in self.touched:
                    parts = [{"type": "text", "text": hidden(channel, message["id"])}]
                    if message["parts"] != parts:
                        raise Finding(f"changed: {message} in {channel}, without an allowed request")

    async def _check_nothing_is_held(self) -> None:
        """Check that the hub holds no slot, ticket stream, member or agent. Raises Finding."""
        hub = self.world.hub
        await self.world.pass_time(5.0)
        sockets = hub._asgi._sockets  # there is no public counter
        held = {
            "slots": sum(one.connections for one in hub.rates._clients.values()),
            "tickets": len(hub.tickets._open),
            "sockets": len(sockets) + len(sockets._unauthenticated),
            "agents": hub.stats()["agents"],
        }
        if self.now_s >= self.present_until_s + SLACK_S:
            held["members"] = hub.stats()["members"]
        if any(held.values()):
            raise Finding(f"held: {held}")


class SentFrame(NamedTuple):
    """A frame, the callers that may have sent it, and the time."""

    frame: dict[str, Any]
    who: list[Rights]
    at_s: float


class JudgedPeer(Peer):
    """A peer whose every reply is checked against its rights."""

    close_codes = (1012, 4000, 4001, 4002, 4003, 4200, 4201, 4300, 4301)

    def __init__(self, town: Town, known: dict[str, Any], headers: list[list[bytes]]) -> None:
        super().__init__(town.world, known)
        self._town = town
        headers = [*headers, [b"host", b"localhost"]]
        rights = town.rights_by((one[0], one[1]) for one in headers)
        self._is_foreign = town.is_foreign(headers, "")
        self._who: list[Rights] = [rights] if rights is not None else []
        self._before: list[Rights] = []  # the earlier identities, until the reply to the latest `auth`
        self._sent_frames: dict[str, list[SentFrame]] = {}
        self._since: dict[str, list[str]] = {}  # the cursors of its attach frames, by channel
        self._must_narrow = False
        self._left_s: float | None = None

    async def _receive(self) -> MutableMapping[str, Any]:
        message = await super()._receive()
        if message["type"] == "websocket.disconnect":
            self._left_s = self._town.now_s
        return message

    def _note(self, text: str) -> None:
        super()._note(text)
        frame = _json(text.encode(errors="surrogatepass"))
        if not isinstance(frame, dict):
            return
        sent = SentFrame(frame, list(self._who), self._town.now_s)
        self._sent_frames.setdefault(json.dumps(frame.get("ref")), []).append(sent)
        if frame.get("type") == "attach" and isinstance(frame.get("channel"), str):
            self._since.setdefault(frame["channel"], []).append(as_text(frame.get("since"), ""))

    def _take(self, text: str) -> None:
        super()._take(text)
        frame = json.loads(text)
        town = self._town
        who = tuple(self._who)
        if frame["type"] == "ok":
            self._judge(self._sent_frames.get(json.dumps(frame["ref"]), []), text)
            who = tuple(rights for sent in self._sent_frames.get(json.dumps(frame["ref"]), []) for rights in sent.who)
        elif frame["type"] == "error":
            town.check_secrets(text, "an error frame")
            self._check_not_refused(frame)
        elif frame["type"] == "events":
            channel = frame["channel"]
            if self._must_narrow or not any(one.has("subscribe", channel) for one in who):
                raise Finding(f"granted: events of {channel} to {who}")
            for event in frame["events"]:
                if event["type"] == "channel.attached" and self._is_plain:
                    town.check_resumed(who, channel, self._since.get(channel, []), event["resumed"])
            if frame.get("cursor") and len(who) == 1:
                town._note_cursor(frame["cursor"], who[0], channel)
        town.note_shown(text.encode(), who, f"a frame {frame['type']}")

    def _judge(self, sent: list[SentFrame], text: str) -> None:
        """Take an `ok` to one of these frames. Raises Finding."""
        if self._is_foreign:
            raise Finding(f"foreign: a socket, {text[:200]}")
        auths = [one for one in sent if one.frame.get("type") == "auth"]
        if not auths:
            self._check_granted(sent, text)
        elif len(sent) == 1:
            self._renewed(sent[0], is_sure=True)
        else:  # several frames have this ref, so the reply may belong to any of them
            for one in auths:
                if rights_in(as_text(one.frame.get("token"), ""), one.at_s) is not None:
                    self._renewed(one, is_sure=False)

    def _check_granted(self, sent: list[SentFrame], text: str) -> None:
        """Check that at least one of these frames may be granted. Raises Finding."""
        for one in sent:
            needs = needs_of_frame(one.frame)
            if needs is None:
                continue
            for rights in one.who:
                if one.at_s <= rights.ends_s + 0.1 and rights.has_all(needs.capabilities, needs.channel):
                    self._town._note_change(needs, as_text(one.frame.get("id"), ""), one.frame["type"], rights)
                    return
        raise Finding(f"granted: {[(one.frame, one.who, one.at_s) for one in sent]} got {text[:300]}")

    def _renewed(self, sent: SentFrame, *, is_sure: bool) -> None:
        rights = rights_in(as_text(sent.frame.get("token"), ""), sent.at_s)
        if rights is None:
            raise Finding(f"accepted: {sent.frame} at {sent.at_s:.1f} s")
        if any(one.sub != rights.sub for one in self._who):
            if not is_sure:
                return
            raise Finding(f"other client: {self._who} became {rights}")
        before = self._who
        self._who = [rights] if is_sure else [*self._who, rights]
        for listed in self._sent_frames.values():  # a frame without a reply may be judged by it
            for one in listed:
                one.who.append(rights)
        lost = [
            (capability, channel)
            for capability in CAPABILITIES
            for channel in (*CHANNELS, EVERYWHERE)
            if any(one.has(capability, channel) for one in before) and not rights.has(capability, channel)
        ]
        self._must_narrow = self._must_narrow or (is_sure and len(before) == 1 and bool(lost))

    def _check_not_refused(self, frame: dict[str, Any]) -> None:
        sent = self._sent_frames.get(json.dumps(frame["ref"]), [])
        if len(sent) != 1 or frame["code"] != "forbidden" or len(sent[0].who) != 1:
            return
        needs, rights = needs_of_frame(sent[0].frame), sent[0].who[0]
        if sent[0].frame.get("type") in OPEN_FRAMES or needs is None or not needs.is_all:
            return
        if rights.has_all(needs.capabilities, needs.channel):
            raise Finding(f"refused: {sent[0].frame} of {rights}: {frame}")

    def check(self) -> None:
        """Check that each frame has a reply, and that no subscription outlives its identity. Raises Finding."""
        super().check()
        if not self.is_accepted or self._stalled_s or self.close_code is not None:
            return
        if self._must_narrow:
            raise Finding(f"not narrowed: {self._who}")
        if self._is_cut or self._left_s is None or not self._who:
            return
        if all(self._left_s > one.ends_s + SLACK_S for one in self._who):
            raise Finding(f"outlives: a socket of {self._who} at {self._left_s:.0f} s")


def hidden(channel: str, id: str) -> str:
    """Return the text of one of the world's own messages."""
    return f"hidden {id} of {channel} 5f0c"


def _mark(text: str) -> tuple[str, str] | None:
    """Return the entry that a cursor names, and the mark of the caller to whom it was issued."""
    match = _SEALED.match(text)
    return (match[1], match[3]) if match is not None and match[3] else None


def _json(data: bytes) -> Json:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _decoded(path: str, raw_path: bytes) -> str:
    """Return the path with decoded segments; an encoded slash within one stays encoded."""
    if b"%2f" not in raw_path.lower():
        return path
    return "/".join(path_of(one)[0].replace("/", "%2F") if one else "" for one in raw_path.decode().split("/"))


def _last(headers: list[list[bytes]], query: bytes) -> str:
    """Return the cursor of a request."""
    last = next((bytes(value).decode("latin-1") for name, value in headers if name == b"last-event-id"), "")
    return last or dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)).get("since", "")


A = "/v1/channels/chat:a"
PEOPLE: list[dict[str, Json]] = [
    {"sub": "ada", "can": {"chat:*": [*READ, "publish", "presence", "command"], "user:{sub}": ["subscribe"]}},
    {"sub": "eve", "can": {"chat:a": ["subscribe"]}},
    {"sub": "bob", "can": {"chat:*": ["publish"]}},
    {"sub": "bot", "can": {"chat:*": ["agent", "append", "publish", *READ]}},
    {"sub": "wri", "can": {"chat:a": ["append", "publish"]}},
    {"sub": "adm", "can": {"chat:a": ["admin", "publish", "subscribe"]}},
    {"sub": "mia", "can": {"*": ["presence"]}},
    {"sub": "nil", "can": {}},
    {"sub": "all", "can": {"*": list(CAPABILITIES)}},
]
EVE, BOT, ALL = PEOPLE[1], PEOPLE[3], PEOPLE[-1]
ODD: list[dict[str, Json]] = [
    {"exp": -5},
    {"exp": -11},
    {"exp": 2},
    {"exp": None},
    {"exp": 1e300},
    {"nbf": 5},
    {"nbf": 30},
    {"aud": "other"},
    {"aud": ["other", "chat"]},
    {"sign": "wrong"},
    {"sub": "ada~1"},
    {"sub": "a" * 65},
    {"sub": None},
    {"can": {"chat*": ["subscribe"]}},
    {"can": {"chat:*": ["subscribe", "everything"]}},
    {"can": {"{sub}:*": ["subscribe"]}},
    {"can": {"chat:a": ["subscribe"], "chat:b": "history"}},
    {"line": "bearer  "},
    {"line": "Basic "},
    {"line": ""},
    {"by": "cookie"},
    *({"spoil": spoil} for spoil in SPOILS),
]
WORDS: list[Json] = [
    *FRAME_WORDS,
    *CAPABILITIES,
    *CHANNELS,
    *OWN,
    *("chat:*", "{sub}", "sub", "can", "exp", "as", "ticket", "cursor", "beside", "ada", "eve", "bot", 5, 20, -11),
]
HEADERS = [
    *HEADER_LINES,
    ["Sec-Fetch-Site", "same-origin"],
    ["Sec-Fetch-Site", "cross-site"],
    ["Origin", "https://page.test"],
    ["Cookie", "token=e30.e30.e30"],
]
SETUPS: list[dict[str, Json]] = [
    {"is_guarded": True},
    {"is_guarded": True},
    {"is_guarded": True, "by_hand": True},
    {"is_guarded": True, "origins": ["https://page.test"]},
    {"is_guarded": True, "origins": ["*"]},
]
TICKETS: dict[str, Json] = {"method": "POST", "path": "/v1/tickets", "json": {"channel": "chat:a"}}
FOLLOW: list[dict[str, Json]] = [
    {"method": "GET", "path": f"{A}/events", "query": "flush_ms=0"},
    {"method": "GET", "path": f"{A}/poll", "query": "wait_s=0"},
    {"method": "GET", "path": f"{A}/messages/live/events"},
]


def _here(step: dict[str, Json], channel: str = "chat:a") -> dict[str, Json]:
    """Return a request of `requests`, moved to a channel of this world."""
    body = as_dict(step.get("json"))
    moved = {**step, "path": as_text(step["path"], "").replace("/channels/c", f"/channels/{channel}")}
    return {**moved, "json": {**body, "channel": channel}} if "channel" in body else moved


HTTP = [_here(one) for one in REQUESTS if "ticket=" not in as_text(one.get("query"), "")]
_MOVED = {"channel": "chat:a", "pattern": "chat:a"}
SOCKET = [{name: _MOVED.get(name, value) for name, value in frame.items()} for frame in FRAMES]
WORK: list[Json] = [
    {"json": {"type": "work", "ref": "w", "pattern": "chat:a"}},
    {"json": {"type": "create", "ref": "q", "channel": "chat:a", "id": "q1", "text": "who answers?"}},
    {"wait_s": 1},
    {"json": {"type": "turn.renew", "ref": "r", "channel": "chat:a", "message": "q1", "generation": 1, "state": {}}},
    {"json": {"type": "turn.done", "ref": "d", "channel": "chat:a", "message": "q1", "generation": 1}},
]
MID_TURN: list[list[Json]] = [
    [],
    [{"auth": {**BOT, "exp": 50}, "ref": 1}],
    [{"auth": {**ALL, "can": {"chat:a": ["subscribe", "append"]}}, "ref": 1}],
    [{"auth": {**ALL, "can": {"chat:a": list(CAPABILITIES)}, "exp": 50}, "ref": 1}],
    [{"wait_s": 35}],
]
STREAMS: list[dict[str, Json]] = [
    {},
    {"path": "/v1/channels/chat:b/messages/live/events"},
    *({"cursor": 0, "and": more} for more in ("", ".3", "x")),
    {"cursor": 1},
    {"headers": [["Last-Event-ID", "e:2:m0.9"]]},
]
ORIGINS: list[Json] = [
    [],
    [["Origin", "https://evil.test"]],
    [["Origin", "http://localhost"]],
    [["Sec-Fetch-Site", "same-origin"]],
    [["Sec-Fetch-Site", "cross-site"], ["Origin", "null"]],
]
EVERY_FRAME = [{"json": {**frame, "ref": ref}} for ref, frame in enumerate(SOCKET)]


class Identities(Guided):
    """Callers with different rights use a hub that verifies their tokens."""

    name = "identities"
    cpu_s = 4.0

    def seeds(self) -> list[Json]:
        """Return stories of tickets, cursors, renewals; odd tokens; operations of callers with few or most rights."""
        found = self._stories()
        for odd in ODD:
            shown = [{**FOLLOW[1], "as": {**ALL, **odd}}, _socket({**ALL, **odd}, EVERY_FRAME[:1])]
            found.append(_input([*shown, _socket(None, [{"auth": {**EVE, **odd}, "ref": 1}, *EVERY_FRAME[:2]])]))
        for at, (few, most) in enumerate(_fews_and_mosts()):
            found.append(
                _input([*({**step, "as": most} for step in HTTP[at::8]), _socket(few, EVERY_FRAME[at % 2 :: 2])])
            )
        return found

    def matrix(self) -> list[Json]:
        """Return all operations for a caller with only one capability, and for a caller with all but one."""
        steps = [{**step, "beside": False, "hold_s": 0.05} for step in HTTP]
        return [
            _input([*({**step, "as": who} for step in steps), _socket(who, EVERY_FRAME)])
            for both in _fews_and_mosts()
            for who in both
        ]

    def _stories(self) -> list[Json]:
        ticket, opened = {**TICKETS, "as": EVE}, {**FOLLOW[0], "ticket": 0}
        back = {**opened, "cursor": 0}
        follow = [{**one, "as": EVE} for one in FOLLOW[:2]]
        auth = {"auth": ALL, "ref": 1}
        attach = EVERY_FRAME[0]
        less = {**ALL, "can": {"chat:b": READ}}
        bob = PEOPLE[2]
        sources = {"method": "PATCH", "path": f"{A}/messages/m2", "json": {"parts": [{"type": "source", "url": "u"}]}}
        stories: list[list[Json]] = [
            [{**one, "as": EVE} for one in HTTP[:3]],
            [{**one, "as": bob} for one in (HTTP[1], HTTP[0], sources)],
            [{**one, "as": bob, "beside": True} for one in FOLLOW] + [{"wait_s": 30}],
            [_socket(bob, [EVERY_FRAME[6], EVERY_FRAME[5]])],
            [_socket({**BOT, "can": {"chat:*": ["agent", "append"]}}, WORK)],
            [{**FOLLOW[1], "as": {**ALL, "sign": "wrong"}}, {**FOLLOW[1], "as": {**ALL, "exp": -11}}],
            *([{**HTTP[0], "headers": line, "as": {**ALL, "by": "cookie"}}] for line in ORIGINS),
            [ticket, opened, {"wait_s": 61}, opened, back, {**back, "and": "x"}],
            [{**TICKETS, "as": {**EVE, "exp": 100}}, {**opened, "beside": True}, {"wait_s": 70}, back],
            [ticket, {**opened, "beside": True}, {**opened, "beside": True}, {"wait_s": 90}],
            [*({**FOLLOW[2], "as": ALL, **which} for which in STREAMS), {**TICKETS, "as": ALL},
             *({**FOLLOW[2], "ticket": 0, **which} for which in (*STREAMS, {"cursor": 3}))],
            [ticket, *({**one, "ticket": 0} for one in FOLLOW), {**opened, "path": "/v1/channels/chat:b/events"}],
            [ticket, {**TICKETS, "as": ALL, "json": {"channel": "chat:b"}}, {**opened, "ticket": 1},
             {**back, "ticket": 1}],
            [ticket, *({**opened, "spoil": spoil} for spoil in SPOILS)],
            [ticket, {**TICKETS, "ticket": 0}, {**HTTP[0], "ticket": 0}, {**opened, "method": "HEAD"}],
            [*follow, *({**one, "cursor": at} for one in follow for at in (0, 1, -1))],
            [*follow, *({**one, "cursor": at, "as": {**EVE, "sub": "ivy"}} for one in follow for at in (0, 1))],
            [*({**one, "as": ALL} for one in FOLLOW[:2]), *({**one, "cursor": at} for one in follow for at in (0, 1))],
            [*follow, _socket(EVE, [{**attach, "cursor": 0}, {**attach, "cursor": 1}, {**attach, "cursor": 7}])],
            [_socket(EVE, [attach]), {**HTTP[0], "as": ALL}, _socket(EVE, [{**attach, "cursor": 0}])],
            [_socket(None, [auth, {"auth": less, "ref": 2}, {"wait_s": 1}])],
            [_socket(None, [auth, attach, {"auth": less, "ref": 2}, attach, {"wait_s": 1}])],
            [_socket(None, [auth, attach, {"auth": EVE, "ref": 2}, EVERY_FRAME[5], {"wait_s": 1}])],
            [_socket({**ALL, "exp": 5}, [attach, {"auth": {**ALL, "exp": 60}, "ref": 2}, {"wait_s": 30}, attach])],
            [_socket({**ALL, "exp": 5}, [attach, {"wait_s": 14}, *EVERY_FRAME[4:9], {"wait_s": 9}])],
            [_socket(None, [{"wait_s": 6}, auth])],
            [_socket(None, [attach, auth])],
            [{**one, "as": {**ALL, "exp": 8}, "beside": True, "headers": line} for one in FOLLOW
             for line in ([], [["Tenuto-Client", "js/1"]])] + [{"wait_s": 30}],
            *([_socket({**who, "exp": 20}, [*WORK, *more, *WORK[2:]])] for who in (ALL, BOT) for more in MID_TURN),
            *([{**_socket({**ALL, "by": by}, [attach]), "headers": line}] for line in ORIGINS for by in ("cookie", "")),
            [{"method": "PUT", "path": f"{A}/presence/all", "json": {"lease_s": 3600}, "as": {**ALL, "exp": 9}}],
        ]  # fmt: skip
        return [_input(steps) for steps in stories]

    def generate(self, draw: Random) -> Json:
        """Return a new input."""
        steps = [self._step(draw) for _ in range(draw.randint(1, 7))]
        if draw.random() < 0.4:
            who = self._who(draw)
            steps[:0] = [{**TICKETS, "as": who}, {**FOLLOW[0], "as": who}]
        return {"setup": draw.choice(SETUPS), "steps": steps}

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change a step, its caller, or the order."""
        new, number = mutate.steps(draw, old, other, self._step, (0.15, 0.3, 0.4), max_steps=MAX_STEPS)
        if number is not None and number < 0.45:
            new["setup"] = draw.choice(SETUPS)
        elif number is not None:
            self._change_step(draw, new["steps"])
        return new

    def _change_step(self, draw: Random, steps: list[Json]) -> None:
        at = draw.randrange(len(steps))
        step = steps[at]
        inner = as_list(step.get("socket"))
        match draw.randrange(8):
            case 0:
                step["as"] = self._who(draw)
            case 1:
                step["ticket"] = draw.randrange(3)
                step["spoil"] = draw.choice((None, None, *SPOILS))
            case 2:
                holder = as_dict(draw.choice(inner)) if inner else step
                holder["cursor"] = draw.randrange(-2, 6)
                holder["and"] = draw.choice(("", "", "x", "@e:1", ":m0.1", "=="))
            case 3:
                step["headers"] = [*as_list(step.get("headers")), draw.choice(HEADERS)]
            case 4:
                step["beside"] = draw.random() < 0.7
            case 5 if inner:
                inner.insert(draw.randint(0, len(inner)), self._frame(draw))
            case 6 if inner:
                inner[draw.randrange(len(inner))] = self._frame(draw)
            case _:
                steps[at] = mutate.value(draw, step, WORDS)

    def _who(self, draw: Random) -> Json:
        choice = draw.random()
        if choice < 0.06:
            return None
        who = mutate.copied(draw.choice(PEOPLE))
        if choice < 0.3:
            who |= draw.choice(ODD)
        elif choice < 0.5:
            who["can"] = {draw.choice(("*", "chat:*", "chat:a", "room")): draw.sample(CAPABILITIES, draw.randint(1, 7))}
        return who

    def _step(self, draw: Random) -> dict[str, Json]:
        choice = draw.random()
        if choice < 0.1:
            return {"wait_s": draw.choice((1, 5, 11, 30, 61))}
        if choice < 0.4:
            frames = [self._frame(draw) for _ in range(draw.randint(1, 6))]
            if draw.random() < 0.4:
                return _socket(None, [{"auth": self._who(draw), "ref": 0}, *frames])
            return {**_socket(self._who(draw), frames), "beside": draw.random() < 0.4}
        made = _here(draw.choice((*REQUESTS, *FOLLOW, TICKETS)), draw.choice(CHANNELS))
        step = {**mutate.copied(made), "query": as_text(made.get("query"), "").replace("ticket=", "x=")}
        step["path"] = step["path"].replace("messages/m1", f"messages/{draw.choice(('m1', 'm1', 'm2', *OWN))}")
        return {**step, "as": self._who(draw)}

    def _frame(self, draw: Random) -> dict[str, Json]:
        choice = draw.random()
        if choice < 0.15:
            return {"auth": self._who(draw), "ref": draw.randrange(1_000_000)}
        if choice < 0.25:
            return {"wait_s": draw.choice((0, 0.05, 1, 6, 12))}
        frame = {**mutate.copied(draw.choice(SOCKET)), "ref": draw.randrange(1_000_000)}
        if "channel" in frame and draw.random() < 0.4:
            frame["channel"] = draw.choice(CHANNELS)
        if draw.random() < 0.25:
            frame = mutate.value(draw, frame, WORDS)
        return {"json": frame}

    def run(self, given: Json) -> None:
        """Carry out the steps. Raises Finding."""
        known = as_dict(given)

        async def job(world: World) -> None:
            town = Town(world, as_dict(known.get("setup")))
            await town.settle()
            for step in as_list(known.get("steps"))[:MAX_STEPS]:
                await town.take(as_dict(step))
            await town.end()

        world_of({**as_dict(known.get("setup")), "is_guarded": True}).run(job)


def _fews_and_mosts() -> list[tuple[Json, Json]]:
    """Return, for each capability, a caller that holds only it, and a caller that holds all others."""
    return [
        (
            {"sub": "few", "can": {"chat:*": [one]}},
            {"sub": "most", "can": {"chat:*": [other for other in CAPABILITIES if other != one]}},
        )
        for one in CAPABILITIES
    ]


def _input(steps: list[Json]) -> Json:
    return {"setup": {"is_guarded": True}, "steps": steps}


def _socket(who: Json, steps: list[Json]) -> dict[str, Json]:
    return {"as": who, "socket": steps}
