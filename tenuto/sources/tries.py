"""Tries: `await message.pipe(make, retries=3)` calls the model again after a failure that may pass.

Layer: sources.

Each try is an attempt of the message: if it fails, the text of the next one supersedes its text. With
`on_break="continue"` a text that broke off stays, and the next try continues it. Errors are told apart by the names of
their classes, their status and their type, because no SDK is imported; `docs/retries.md` lists them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import get_args

from tenuto.core.errors import LocalError, TenutoError, causes_of, shown
from tenuto.core.model import Part
from tenuto.core.outgoing import text_of
from tenuto.portal import Attempt, OnBreak, Piped, Writer
from tenuto.sources.reading import (
    CALLED,
    INPUT,
    LASTING_CODES,
    LOST,
    NotKept,
    UpstreamEnded,
    UpstreamError,
    code_of,
    codes_of,
    get,
    is_from_sdk,
    items,
    word,
)
from tenuto.sources.writing import SHORTEST_OVERLAP, Kept, Writing, lengths_known, reading

logger = logging.getLogger("tenuto.agents")

RETRIES, RETRY_S, STALL_S = 3, 1.0, 120.0
LONGEST_WAIT_S = 30.0  # of the backoff
LONGEST_RETRY_AFTER_S = 120.0  # a provider that asks for a longer wait fails the answer at once (OpenAI's SDK: 120 s)

# Classes of the SDKs and of their HTTP clients for a connection or a server that failed (a base class stands for all;
# some servers name them in a stream), codes of an error inside a stream, and statuses below 500.
_PASSING = frozenset(
    (
        *LOST,
        *("RateLimitError", "InternalServerError", "OverloadedError", "ServiceUnavailableError", "ServerError"),
        *("ModelConnectionError", "ModelTimeoutError", "ModelRateLimitError", "ModelOverloadedError"),
        *("ModelServerError", "StreamChunkTimeoutError", "ServerTimeoutError"),
        *("overloaded_error", "overloaded", "rate_limit_error", "rate_limit_exceeded", "server_error", "api_error"),
        *("internal_server_error", "internal_error", "service_unavailable", "timeout_error", "timeout"),
        *("vector_store_timeout", "UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"),
        *("408", "409", "425", "429"),
    )
)
_COMMON = {"ConnectionError", "Timeout"}  # names that an app's own exceptions may have, too
_LASTING = LASTING_CODES | {"LocalProtocolError", "UnsupportedProtocol", "InvalidURL"}

# Text that is structured output: JSON, bare or in a code fence, or a fence that is named for it.
_STRUCTURED = re.compile(r"(?:[`~]{3,}[^\S\n]*\n\s*)?[{\[]|[`~]{3,}[^\S\n]*json", re.IGNORECASE)


def jitter() -> float:
    """Return the part of a backoff that is waited, from 0.5 to 1. Tests replace it."""
    return random.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class SoFar:
    """What a message holds of an answer when the model is called again: nothing, unless the text is continued."""

    text: str = ""
    parts: list[Part] = field(default_factory=list)
    response_id: str | None = None  # the provider's id of the response that broke off, if it was continued or restarted
    attempt: int = 1  # number of the try, from 1


def is_maker(stream: object) -> bool:
    """Return whether `stream` is a function that makes a stream."""
    return inspect.isroutine(stream) or isinstance(stream, partial)


class Tries:
    """The tries of one call of `pipe`. `write` writes one stream."""

    def __init__(
        self,
        writer: Writer,
        make: Callable[..., object],
        write: Callable[[Callable[[], object], Writing], Awaitable[Piped]],
        *,
        retries: int | None,
        retry_s: float | None,
        on_break: OnBreak,
    ) -> None:
        """Raises LocalError for settings that are not valid."""
        self.retries = RETRIES if retries is None else retries
        self.retry_s = RETRY_S if retry_s is None else retry_s
        if type(self.retries) is not int or self.retries < 0:
            raise LocalError(f"retries must be an integer from 0 on, got {shown(retries)}")
        if not isinstance(self.retry_s, int | float) or not self.retry_s >= 0:
            raise LocalError(f"retry_s must be a number of seconds from 0 on, got {shown(retry_s)}")
        if on_break not in get_args(OnBreak):
            raise LocalError(f"on_break must be one of {', '.join(get_args(OnBreak))}, got {shown(on_break)}")
        self._writer = writer
        self._make = make
        self.write = write
        self.takes_left = True  # False: `write` takes up what an earlier process left in the message
        self._on_break = on_break
        self.is_exact = on_break == "prefix"
        self._so_far_as = _so_far_as(make)
        if on_break in ("continue", "prefix") and self._so_far_as is None:
            raise LocalError(
                f'on_break="{on_break}" needs a function with the parameter `so_far`, to show its text to the model'
            )
        self._number = 0  # number of the try, from 1
        self._last: object = None  # what `make` returned
        self._may_be_empty = True  # False: a try has shown that the app wraps the stream of an SDK
        self._kept: Kept | None = None  # the text that the next try continues
        self._response_id: str | None = None  # id of the last response that broke off
        self._wait_s = 0.0  # wait before the next try

    async def run(self) -> Piped:
        """Return the summary of the first try that succeeds. Raises the error of the last one."""
        while True:
            last: BaseException | None = None
            with suppress(_Restart):
                async with Attempt(self._writer) as attempt:
                    if self.takes_left:
                        self._take_left(attempt)
                    try:
                        return await self._within_attempt(attempt)
                    except (Exception, asyncio.CancelledError) as error:
                        if isinstance(error, _Restart) or self._on_break == "restart":
                            raise
                        last = error  # raised behind the block, which would supersede the text that is to stay
            if last is not None:
                raise last
            await wait_to_retry(self._writer, self._wait_s)

    def _take_left(self, attempt: Attempt) -> None:
        """Continue the text that an earlier process left in the message, or supersede it if it cannot be continued.

        Of several texts the last may be that of another stream, one that ran beside this one or came after it.
        """
        left = [*attempt.outgoing.reopen_left(attempt.owner).items()]
        if self._so_far_as is not None and sum(part["type"] == "text" for _, part in left) == 1:
            self._kept = continuable(left, is_exact=self.is_exact)
        if left and self._kept is None:
            attempt.supersede()

    async def _within_attempt(self, attempt: Attempt) -> Piped:
        """Try until a try succeeds, as long as the text stays. Raises _Restart if it cannot be continued."""
        while True:
            self._number += 1
            writing = Writing(self._writer, attempt, self._kept)
            writing.may_be_empty = self._may_be_empty
            writing.can_go_on = partial(self._can_go_on, attempt, writing)
            try:
                with reading(self._writer, writing):
                    return await self.write(self._make_stream, writing)
            except Exception as error:
                has_content = writing.has_content
                try:
                    self._wait_s = self._wait_after(error, is_broken=has_content)
                except Exception:
                    with suppress(TenutoError):  # `error` is raised
                        await writing.end(is_broken=True)
                    raise
                self._response_id = writing.response_id or self._response_id
                self._may_be_empty = self._may_be_empty and not (writing.source and writing.source.is_of_sdk)
                logger.warning(
                    "try %d at message %s failed; the next one begins in %.1f s: %r",
                    *(self._number, self._writer.id, self._wait_s, error),
                )
                if has_content or self._kept is None:  # else the kept text is still as it was
                    is_continued = self._on_break in ("continue", "prefix")
                    self._kept = continuable(writing.written(), is_exact=self.is_exact) if is_continued else None
                    if self._kept is None:
                        attempt.supersede()
                        raise _Restart from error
            await wait_to_retry(self._writer, self._wait_s)

    def _can_go_on(self, attempt: Attempt, writing: Writing) -> bool:
        """Return whether the next process could continue the text: only texts of ended streams may stand beside it."""
        parts = writing.written()
        known = [*lengths_known(self._writer), *(len(text_of(part)) for _, part in parts)]
        has_no_others = sorted(known) == sorted(attempt.outgoing.lengths())
        return self.is_exact and has_no_others and continuable(parts) is not None

    def _make_stream(self) -> object:
        """Return what the app's function makes for this try: a stream, or an awaitable or a context manager of one."""
        make = self._make
        if self._so_far_as is not None:
            text, parts = (self._kept.text, self._kept.parts) if self._kept is not None else ("", [])
            given = SoFar(text, [one for _, one in parts], response_id=self._response_id, attempt=self._number)
            make = partial(make, **{self._so_far_as: given}) if self._so_far_as else partial(make, given)
        last, self._last = self._last, make()
        if self._last is last and (hasattr(last, "__anext__") or hasattr(last, "__next__")):
            raise LocalError("the function given to pipe returned the stream of an earlier try; begin a new one in it")
        return self._last

    def _wait_after(self, error: Exception, *, is_broken: bool) -> float:
        """Return the time to wait after `error`. Raises it if no other try may succeed, or none is left."""
        after_s = retry_after_s(error)
        is_final = not may_pass(error) or after_s > LONGEST_RETRY_AFTER_S
        if is_final or self._number > self.retries or (is_broken and self._on_break == "fail"):
            raise error
        return max(backoff_s(self.retry_s, self._number), after_s)


async def pause(writer: Writer, wait_s: float) -> None:
    """Wait before the next try. Raises the writer's error if a client has stopped the message meanwhile."""
    await asyncio.sleep(wait_s)
    try:
        await writer.check()
    except TenutoError as error:
        if not error.retry:  # else the next try meets it
            raise


async def wait_to_retry(writer: Writer, wait_s: float) -> None:
    """Wait after a failed try (`pause`), and tell people."""
    writer.on_retry(True)
    await pause(writer, wait_s)
    writer.on_retry(False)


def backoff_s(first_s: float, failures: int) -> float:
    """Return the time to wait after so many failures in a row; `first_s` is that after the first one."""
    return float(min(first_s * 2 ** min(failures - 1, 30), LONGEST_WAIT_S) * jitter())


class _Restart(Exception):
    """A try failed, and the next one is another attempt."""


def continuable(parts: list[tuple[int, Part]], *, is_exact: bool = False) -> Kept | None:
    """Return the text to continue, the last of `parts`; None if a continuation could not join it.

    A tool call that broke off or has no output, hidden reasoning and structured output cannot be continued, nor can a
    short text, in which no repetition would show.
    """
    last = parts[-1][1] if parts else {"type": ""}
    is_calling = any(part["type"] == "tool" and part.get("state") in (INPUT, CALLED) for _, part in parts)
    if last["type"] != "text" or is_calling:
        return None
    text = last["text"].lstrip()
    if len(text) < SHORTEST_OVERLAP or _STRUCTURED.match(text):
        return None
    return Kept(parts, is_exact)


def _so_far_as(make: Callable[..., object]) -> str | None:
    """Return the name by which `make` gets the answer so far; "": as its first argument; None: not at all."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return None
    kind = inspect.Parameter
    for at, one in enumerate(parameters):
        is_positional = one.kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD)
        if is_positional and (one.default is kind.empty or (one.name == "so_far" and not at)):
            return ""
        is_bound = isinstance(make, partial) and one.name in make.keywords
        if one.name == "so_far" and one.kind in (kind.POSITIONAL_OR_KEYWORD, kind.KEYWORD_ONLY) and not is_bound:
            return "so_far"
    return None


# -- errors ------------------------------------------------------------------------------------------------------------


def may_pass(error: BaseException) -> bool:
    """Return whether another call of the model may succeed where `error` was raised."""
    is_ours = isinstance(error, TenutoError) and not isinstance(error, UpstreamEnded | UpstreamError)
    if is_ours or isinstance(error, NotKept):
        return False  # of the writer or of Tenuto
    is_apps = not (isinstance(error, TenutoError | OSError) or is_from_sdk(error))  # then its causes do not count
    known = [_passes(one) for one in ((error,) if is_apps else causes_of(error))]
    if False in known:
        return False
    return True in known or isinstance(error, UpstreamEnded)


def _passes(error: BaseException) -> bool | None:
    """Return whether `error` passes, as far as it shows by itself; None: it does not show."""
    is_known = isinstance(error, TenutoError) or is_from_sdk(error)
    reported = [error.details.get("reason")] if isinstance(error, TenutoError) else codes_of(error)
    # in the app's own exceptions a text of digits may be any code, so only a number is a status
    codes = [code_of(code) for code in reported if is_known or isinstance(code, int) or not str(code).isdecimal()]
    kinds = {kind.__name__ for kind in type(error).__mro__}
    names = {*codes, *(kinds if is_known else kinds - _COMMON)}
    if names & _LASTING or _headers(error).get("x-should-retry") == "false":
        return False
    # the last one is that of `raise_for_status` of httpx
    statuses = (code_of(get(error, "status_code")), *codes, code_of(get(get(error, "response"), "status_code")))
    if status := next(filter(str.isdecimal, statuses), None):
        return status in _PASSING or status >= "500"
    return True if names & _PASSING or isinstance(error, ConnectionError | TimeoutError | EOFError) else None


def retry_after_s(error: BaseException) -> float:
    """Return the seconds that the provider asks a client to wait; 0 if it asks for nothing."""
    for one in causes_of(error):
        if isinstance(after := getattr(one, "retry_after", None), int | float):
            return float(after)
        headers = _headers(one)
        with suppress(ValueError, TypeError):
            if (ms := headers.get("retry-after-ms")) is not None:
                return float(ms) / 1000
            if (after := headers.get("retry-after")) is not None:
                return _seconds(after)
            body = get(one, "body") or get(one, "details")
            for detail in items(get(body, "error") or body, "details"):  # Google's RetryInfo: `37s`
                if (after := word(detail, "retryDelay")) is not None:
                    return _seconds(after.removesuffix("s"))
    return 0.0


def _seconds(after: str) -> float:
    with suppress(ValueError):  # else it is an HTTP date
        return max(0.0, float(after))
    return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())


def _headers(error: BaseException) -> dict[str, str]:
    """Return the headers of the response that `error` is about, with names in small letters."""
    for one in (getattr(error, "response", None), error):
        headers = getattr(one, "headers", None)
        if headers is not None and hasattr(headers, "items"):
            return {str(name).lower(): str(value) for name, value in headers.items()}
    return {}
