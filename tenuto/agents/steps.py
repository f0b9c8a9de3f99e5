"""The steps of a turn: results that are stored once, so that a later attempt does not call their functions again.

Layer: agents.

A step is a command of the name `turn.step`, which viewers never get: its id follows from its name, it is stored before
the function is called, and its one reply is the result. So a step is its name, not its position: steps under `gather`
may come in another order after a crash, and a deploy may add some. The hub refuses the steps of an older attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Literal

import msgspec

from tenuto.agents.backend import Backend, Sent, patiently
from tenuto.core.errors import AlreadyAnswered, InvalidRequest, InvalidText, LocalError, TooLarge, TooMany, shown
from tenuto.core.model import STEP_NAME, Json, Part, check_json, check_text
from tenuto.core.turns import STEP_MARK, attempt_of, step_id
from tenuto.portal import Try, current_try

logger = logging.getLogger("tenuto.agents")

NAME_CHARS = 200
LONGEST_SLEEP_S = 30 * 24 * 3600  # steps leave the store after that time
UNSTORABLE = (InvalidRequest, InvalidText, TooLarge)  # errors of a result
LONGEST_RETRY_S = 60.0  # longest wait between two calls of a step with `retries`

Kind = Literal["step", "sleep", "ask", "time", "input"]


class Allowance:
    """The time that an attempt may still take. It stands still while the turn waits for a person."""

    def __init__(self, left_s: float, over: Callable[[], None]) -> None:
        """Call `over` when `left_s` seconds have passed."""
        self._loop = asyncio.get_running_loop()
        self._over = over
        self._timer = self._loop.call_later(left_s, over)
        self._left_s = 0.0  # while it stands still
        self.waits = 0  # number of questions and sleeps in which the turn waits
        self._rested_s = 0.0  # time at which it last went on

    def pause(self) -> bool:
        """Stand still until `resume` is called as often. Return whether the time went on before."""
        self.waits += 1
        if self.waits == 1:
            self._left_s = self._timer.when() - self._loop.time()
            self.cancel()
        return self.waits == 1

    def resume(self) -> bool:
        """Go on, unless the turn waits for another reply. Return whether it goes on."""
        self.waits -= 1
        if not self.waits:
            self._rested_s = self._loop.time()
            self._timer = self._loop.call_later(self._left_s, self._over)
        return not self.waits

    @property
    def rested_s(self) -> float:
        """Return the time until which it stood still: now, if it does."""
        return self._loop.time() if self.waits else self._rested_s

    def cancel(self) -> None:
        """Call `over` no more."""
        self._timer.cancel()


# the step whose function runs: the steps of its turn, and its name
_open: ContextVar[tuple[Steps | None, str]] = ContextVar("tenuto_open_step", default=(None, ""))


class Steps:
    """The steps of one attempt at a turn. Each name has one kind, and is used once, but for tries that have failed."""

    def __init__(self, backend: Backend, channel: str, message_id: str, generation: int) -> None:
        self._backend = backend
        self._channel = channel
        self._message_id = message_id
        self._generation = generation
        self._names: dict[str, Kind] = {}
        self._uses: dict[str, Try | None] = {}  # names of steps and ids of questions, with the tries that used them
        self._running: set[str] = set()  # steps whose functions run
        self._ran_s = 0.0  # time at which a step last ended
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by step, each held while it runs
        self.interrupted: set[str] = set()  # steps that an earlier attempt has begun without storing a result
        self._sizes: dict[str, int] = {}  # of the results of this attempt, as JSON
        self._noting = asyncio.Lock()
        self._notes = 0  # number of the next note about the time
        self._inputs = 0  # number of the next note about input
        # last note of the time: used until then; when it went on (None: it stands still); the most that counts since
        self._used: tuple[int, int | None, int] = (0, None, 0)

    def key(self, name: str) -> str:
        """Return the key of the step `name`, which is the same in all attempts. Raises LocalError."""
        return self._id(name).removeprefix(STEP_MARK)

    def is_shown_as(self, part: Part) -> bool:
        """Return whether the part shows a step of this turn."""
        shown = step_id(self._channel, self._message_id, self._generation, str(part.get("name")))
        return STEP_MARK + str(part.get("call")) == shown

    @property
    def is_running(self) -> bool:
        """Return whether a step has begun whose result is not stored yet."""
        return any(lock.locked() for lock in self._locks.values())

    async def idle(self) -> None:
        """Wait until no step runs, also no step that the handler has left running."""
        while running := [lock for lock in self._locks.values() if lock.locked()]:
            async with running[0]:
                pass

    @property
    def ran_s(self) -> float:
        """Return the time until which a step ran: now, if one does."""
        return asyncio.get_running_loop().time() if self.is_running else self._ran_s

    @property
    def open_name(self) -> str:
        """Return the name of the step whose function runs. Raises LocalError if none does."""
        if (name := self._outer) is None:
            raise LocalError("no step runs here; call this in the function of a step")
        return name

    @property
    def open_key(self) -> str:
        """Return the key of the step whose function runs; an empty text if none does."""
        return "" if (name := self._outer) is None else self.key(name)

    @property
    def _outer(self) -> str | None:
        """Return the name of the step whose function has led here, and still runs; a task may outlive it."""
        steps, name = _open.get()
        return name if steps is self and name in self._running else None

    async def run(
        self, name: str, call: Callable[[], object], function: object, *, retries: int, retry_s: float
    ) -> Json:
        """Return the stored result of the step `name`; without one, that of `call`, once it is stored."""
        if type(retries) is not int or retries < 0 or not (isinstance(retry_s, int | float) and retry_s >= 0):
            raise LocalError(f"retries and retry_s must be 0 or more, got {shown(retries)} and {shown(retry_s)}")
        taken = self._use_name(name, "step")
        try:
            async with self._locks[name]:  # a try that has failed may have left the function running
                stored = await self._begin(name, "step", taken, function=_name_of(function))
                if stored.reply is not None:
                    if not isinstance(data := stored.reply.data, dict):
                        raise _lost(name)
                    self._count_result(name, len(msgspec.json.encode(data)))
                    return data["result"]
                token = _open.set((self, name))
                self._running.add(name)
                try:
                    result = await _called(name, call, retries, retry_s)
                finally:
                    self._running.discard(name)
                    _open.reset(token)
                return await self._store(name, stored, result)
        finally:
            self._ran_s = asyncio.get_running_loop().time()

    async def begin_sleep(self, name: str, seconds: float) -> int:
        """Store the beginning of a wait, unless an earlier attempt has; return the time of its end, in ms."""
        if not (isinstance(seconds, int | float) and 0 <= seconds <= LONGEST_SLEEP_S):
            raise LocalError(f"seconds must be a number from 0 to {LONGEST_SLEEP_S} (30 days), got {shown(seconds)}")
        until_ms = self._backend.now_ms() + round(seconds * 1000)
        stored = await self._begin(name, "sleep", self._use_name(name, "sleep"), until_ms=until_ms)
        return int(stored.command.data["until_ms"])

    async def ask(self, name: str) -> None:
        """Store that `name` is that of questions. Raises LocalError if it is that of a step; also TooMany, Fenced."""
        if self._names.get(name) != "ask":
            await self._begin(name, "ask", self._use_name(name, "ask"))

    async def note_time(self) -> None:
        """Store the time used again and again, because the time after the last note of a dead attempt is not known."""
        while True:
            await asyncio.sleep(_interval_ms(self._used[0]) / 1000)
            if self._used[1] is not None and not self._noting.locked():  # the time does not stand still, nor will it
                await self.time_used_ms()

    async def time_used_ms(self, *, now_is_used: bool = True) -> int:
        """Return the time that all attempts have used, and store that it goes on, or with False that it stands still.

        The last of these notes counts, found by its number: each attempt begins with the first. After the last note of
        a dead attempt at most the interval to its next one counts.
        """
        async with self._noting:
            while True:
                used_ms, since_ms, most_ms = self._used
                now_ms = self._backend.now_ms()
                if since_ms is not None:
                    used_ms += min(max(0, now_ms - since_ms), most_ms)
                from_ms = now_ms if now_is_used else None
                data = {"kind": "time", "attempt": self._generation, "used_ms": used_ms, "since_ms": from_ms}
                known = (await self._store_note(str(self._notes), data)).command.data
                self._notes += 1
                is_ours = known["attempt"] == self._generation  # then all time since counts: less than `now_ms`
                self._used = known["used_ms"], known["since_ms"], now_ms if is_ours else _interval_ms(known["used_ms"])
                if known == data:  # else that of another attempt, or one whose sending was cancelled
                    return used_ms

    async def note_input(self, note: dict[str, Json], content: Json = None) -> list[Sent]:
        """Store the next note about input, with its content as the reply; return those before, and this one.

        One `of` None is about the attempt itself, and has no content.
        """
        data = {"kind": "input", "attempt": self._generation, **note}
        notes: list[Sent] = []
        while True:
            notes.append(sent := await self._store_note(f"input {self._inputs}", data))
            self._inputs += 1
            if sent.command.data == data:  # of this call, or of one that was cancelled
                break
        if note["of"] is not None:
            reply = partial(self._backend.reply, self._channel, sent.command.id, ok=True, data=content, error=None)
            with contextlib.suppress(AlreadyAnswered):
                await patiently(reply)
        return notes

    async def _store_note(self, name: str, data: dict[str, Json]) -> Sent:
        """Store a note, unless an attempt has; return the stored one."""
        name = name.rjust(NAME_CHARS + 1)  # longer than the name of a step may be
        id = step_id(self._channel, self._message_id, self._generation, name)
        return await self._send_step(id, data, is_new=True)

    def is_free(self, name: str) -> bool:
        """Return whether no try has used `name`, a step's name or a question's id, but for tries that have failed."""
        return name not in self._uses or ((used_in := self._uses[name]) is not None and used_in.has_failed)

    def use(self, name: str) -> None:
        """Note that the try that leads here uses `name`."""
        self._uses[name] = current_try.get()

    def release(self, name: str) -> None:
        """Note that `name` may be used again."""
        self._uses.pop(name, None)

    def _use_name(self, name: str, kind: Kind) -> tuple[str, bool]:
        """Use `name`; return its id, and whether it is new. Raises LocalError if it cannot be used, TooMany."""
        if kind != "ask" and (outer := self._outer) is not None:
            raise LocalError(f"step {name!r} was begun inside of step {outer!r}; call it after that one")
        id = self._id(name)  # raises for an invalid one
        used_as = self._names.get(name)
        if used_as not in (None, kind):
            raise _renamed(name, kind, f"this attempt has used it for `{used_as}`")
        if not self.is_free(name):
            raise LocalError(
                f"step {name!r} was used before in this turn, and a step is its name; give each call a name of its "
                f'own, such as f"{name}:{{i}}"'
            )
        if used_as is None and len(self._names) >= (limit := self._backend.limits.steps):
            raise TooMany(f"the turn has {limit} steps, which is the limit (Limits.steps); join some", limit=limit)
        self._names[name] = kind
        self.use(name)
        return id, used_as is None

    async def _begin(self, name: str, kind: Kind, taken: tuple[str, bool], **fields: Json) -> Sent:
        """Store the beginning of a step, or return the stored one. Raises LocalError if that has another kind.

        `taken` is what `_use_name` has returned: the id, and whether this handler uses the name for the first time.
        """
        id, is_new = taken
        data = {"kind": kind, "name": name, "attempt": self._generation, **fields}
        stored = await self._send_step(id, data, is_new=is_new)
        known = stored.command.data
        if not isinstance(known, dict):
            raise _lost(name)
        if known["kind"] != kind:
            raise _renamed(name, kind, f"an earlier attempt at this turn stored it for `{known['kind']}`")
        if known.get("function") != data.get("function"):
            logger.warning(
                "step %r of %s called %s in an earlier attempt and calls %s now: a stored result is of the former",
                *(name, self._channel, known.get("function"), data.get("function")),
            )
        if stored.reply is None and known["attempt"] != self._generation:
            self.interrupted.add(name)
        return stored

    async def _send_step(self, id: str, data: dict[str, Json], *, is_new: bool) -> Sent:
        """Store the command of a step or note, or return the stored one. `is_new`: this attempt knows of none."""
        if is_new and attempt_of(self._generation) == 1:  # no earlier attempt of this round can have sent it
            self._backend.note_new(self._channel, id)
        send = partial(self._backend.command, self._channel, STEP_NAME, id=id, target=self._message_id, data=data)
        return await patiently(lambda: send(expires_s=1.0))  # that has no effect on a step

    async def _store(self, name: str, stored: Sent, result: object) -> Json:
        """Store `result`, and return it as a later attempt would get it. Raises InvalidRequest, TooLarge."""
        limits, what = self._backend.limits, f"the result of step {name!r}"
        try:
            json.dumps(result)  # refuses what would be stored as another type: bytes, sets, dates, structs
            # texts and numbers of subclasses become those of their bases
            result = msgspec.to_builtins(result, enc_hook=lambda one: json.loads(json.dumps(one)))
        except TypeError as error:
            raise InvalidRequest(
                f"{what} is no JSON: {error}; return JSON, such as `msgspec.to_builtins(result)` or "
                '`result.model_dump(mode="json")`'
            ) from None
        except (ValueError, RecursionError):
            pass  # the next check names it
        try:
            size = check_json({"result": result}, limits.step_bytes, what, depth=limits.depth)
        except TooLarge as error:
            detail = f"{error.detail}, or return a reference to it (Limits.step_bytes)"
            raise TooLarge(detail, **error.details) from None
        self._count_result(name, size)
        kept = msgspec.json.decode(msgspec.json.encode({"result": result}))
        # It has a reply if that of this attempt was stored and the response to it was lost: no other may reply.
        with contextlib.suppress(AlreadyAnswered):
            reply = partial(self._backend.reply, self._channel, stored.command.id, ok=True, data=kept, error=None)
            await patiently(reply)
        return kept["result"]

    def _count_result(self, name: str, size: int) -> None:
        self._sizes[name] = size  # also of a stored result: the limit is that of the turn
        if (total := sum(self._sizes.values())) > (limit := self._backend.limits.turn_bytes):
            raise TooLarge(
                f"with step {name!r} the results of this turn have {total} bytes as JSON, the limit is {limit} "
                "(Limits.turn_bytes); return references to large results",
                limit=limit,
            )

    def _id(self, name: str) -> str:
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS:
            raise LocalError(f"the name of a step must be a text of 1 to {NAME_CHARS} characters, got {shown(name)}")
        return step_id(self._channel, self._message_id, self._generation, check_text(name))


def _interval_ms(used_ms: int) -> int:
    """Return the time between two notes: a tenth of the time used, so that a turn of a day has less than 100."""
    return max(15_000, used_ms // 10)


async def _called(name: str, call: Callable[[], object], retries: int, retry_s: float) -> object:
    """Return the result of `call`, and call it again after an exception, up to `retries` times."""
    for left in range(retries, -1, -1):
        try:
            result = call()
            return await result if inspect.isawaitable(result) else result
        except LocalError:
            raise
        except (Exception, SystemExit) as error:
            if not left and isinstance(error, SystemExit):  # such as of `argparse`: it would end the process
                raise RuntimeError(f"step {name!r} raised {error!r}") from error
            if not left:
                raise
            wait_s = min(LONGEST_RETRY_S, retry_s * 2 ** (retries - left))
            logger.warning("step %r is tried again in %g s: %r", name, wait_s, error)
        await asyncio.sleep(wait_s)
    raise AssertionError


def check_function(name: str, function: object) -> None:
    """Raise LocalError if `function` is none, such as the coroutine that a call has returned."""
    if not callable(function):
        getattr(function, "close", int)()  # no warning that a coroutine was never awaited
        raise LocalError(f"step {shown(name)} needs a function and its arguments, got a {type(function).__name__}")


def input_of(call: partial[object]) -> str:
    """Return the arguments of a call by their names, as JSON; an empty text if they are not JSON."""
    try:
        bound = inspect.signature(call.func).bind(*call.args, **call.keywords)
        return msgspec.json.encode(bound.arguments).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return ""


def _renamed(name: str, kind: Json, before: str) -> LocalError:
    return LocalError(f"{name!r} is used for `{kind}` now, and {before}; give it a new name")


def _lost(name: str) -> LocalError:
    return LocalError(f"the result of step {name!r} is older than 30 days and has left the store; ask again")


def _name_of(function: object) -> str:
    """Return the qualified name of a function, at most `NAME_CHARS` long."""
    while (inner := getattr(function, "func", None)) is not None:  # of a `functools.partial`
        function = inner
    module = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}.{name}"[:NAME_CHARS]
