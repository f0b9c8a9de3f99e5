"""Responses that go on without their reader: `await message.pipe(make, attach=…)` attaches to the same one again.

Layer: sources.

The message's `meta` keeps the id of each response from before its first text on. After a break in this process the
stream goes on behind its last event; the next process gets all events, and writes what the message does not hold yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec

from tenuto.core.errors import Deleted, Finished, LocalError, causes_of, shown
from tenuto.core.model import RESPONSES, Json, Part
from tenuto.portal import Attempt, Piped, Writer
from tenuto.sources.google_genai import events_of_interaction
from tenuto.sources.openai import events_of
from tenuto.sources.reading import UpstreamEnded, UpstreamError, get
from tenuto.sources.tries import LONGEST_RETRY_AFTER_S, Tries, backoff_s, may_pass, pause, retry_after_s, wait_to_retry
from tenuto.sources.upstream import called
from tenuto.sources.writing import Differs, Kept, Writing, record_of, streams_of, used

logger = logging.getLogger("tenuto.agents")

POLL_S, CALL_S, CANCEL_S = 3.0, 30.0, 2.0  # time limits of calls; the end of a stopped answer waits for the cancel
QUEUED_S = 60.0  # OpenAI never begins some responses whose stream broke at once, so a longer wait is in vain
SILENT_S = 3600.0  # longest time without an event, which is that of a turn
NOTES = 32  # responses that a message keeps; they must fit into its `meta`
NOT_STREAMED, GONE = 400, 404  # OpenAI's statuses for a response that is older than five minutes, and an expired one

Make = Callable[[], object]


class _Note(NamedTuple):
    """What a message keeps of a response. It is found by its step, because the next process may skip steps."""

    step: str  # key of the step that called `pipe`; "": none did
    number: int  # of the call in the step, from 0
    id: str
    after: int  # number of parts that count before those of the response
    usage: dict[str, int]  # token usage of the streams before it
    kept: list[int] | None = None  # of a text that it continues: the number of its parts, and the length of the last


class Attaching:
    """The responses that the tries of one call of `pipe` write; each but the first follows one that was lost."""

    def __init__(self, writer: Writer, tries: Tries, attach: object, step: str, number: int) -> None:
        """Take up the response that an earlier process has begun here. Raises LocalError if `attach` is not valid."""
        self._is_openai = hasattr(attach, "retrieve")  # else the methods are Google's
        self._has_methods = hasattr(attach, "cancel") and (self._is_openai or hasattr(attach, "get"))
        if not self._has_methods and not callable(attach):
            raise LocalError(
                "attach must be OpenAI's `client.responses`, Google's `client.aio.interactions`, or a function, got "
                f"{shown(attach)}"
            )
        self._writer, self._attach = writer, cast("Any", attach)  # `Any`: an object of an SDK
        self._retries, self._retry_s, self._is_exact = tries.retries, tries.retry_s, tries.is_exact
        self._write: Callable[[Make, Writing], Awaitable[Piped]] = tries.write  # writes one stream
        self._now_s = asyncio.get_running_loop().time
        self._failures, self._moved_s = 0, self._now_s()  # failures in a row, and the time of the last event
        self._step, self._number, notes = step, number, _notes(writer)
        self.found = next((one for one in notes if one.step == step and one.number == number), None)
        after = self.found.after if self.found is not None else 0
        # where the parts of a later response begin, those of this one end
        later = [one.after for one in notes if one.after > after or (one.step == step and one.number > number)]
        self._until = min(later, default=None)  # number of the parts that count before the next response

    async def write(self, make: Make, writing: Writing) -> Piped:
        """Write one response to its end. Raises UpstreamEnded if it is lost, and its error if it has failed."""
        writing.note_response = partial(self._store_note, writing)
        self._may_stream = True  # until the service refuses a stream of the response (`NOT_STREAMED`)
        kept, attempt = writing.kept, writing.attempt
        # before all parts that are continued: a step may be shown between them and those of the response
        self._after = len(attempt.outgoing.lengths(None if kept is None else kept.parts[0][0]))
        try:
            if self.found is not None:
                note, self.found = self.found, None  # the try after this one makes another response
                writing.response_id, writing.usage_before, self._after = note.id, note.usage, note.after
                # of a response that had ended: other text behind it stays in view until its successor begins
                ended, lengths, until = record_of(self._writer), dict[int, int](), self._until
                if ended is not None and (end := attempt.outgoing.end_of(ended.lengths, ended.content)) is not None:
                    lengths, until = ended.lengths, end
                left = [*attempt.outgoing.reopen_left(attempt.owner, note.after, until, lengths).items()]
                number, length = note.kept or (0, 0)  # of the parts that it continues, and of the text of the last one
                kept = _kept_text(attempt, left[:number], number, length, is_exact=self._is_exact) if number else None
                writing.replay(left[number:], kept, notes_join=True)
                self._report_attached(writing)
                make = await self._rest_of_response(writing, None, has_moved=True)
            while True:
                place = writing.place
                try:
                    return await self._write(make, writing)
                except Exception as error:
                    if writing.response_id is None or isinstance(error, Differs):
                        raise
                    make = await self._rest_of_response(writing, error, has_moved=writing.place != place)
        except (asyncio.CancelledError, Finished, Deleted):
            status, reason = self._writer.cancelled_as
            if writing.response_id is not None and (status == "cancelled" or reason == "timeout"):
                await self._cancel(writing.response_id)
            raise

    async def _rest_of_response(self, writing: Writing, error: Exception | None, *, has_moved: bool) -> Make:
        """Wait, and return the rest of the response: its stream, or its events if it has ended or may not be streamed.

        `error` broke its last stream, if any; `has_moved`: it had brought events. Raises UpstreamEnded if the response
        is lost; else UpstreamError, or `error` if it is no break.
        """
        id = writing.response_id or ""
        if has_moved:
            self._failures, self._moved_s = 0, self._now_s()
        if error is not None:
            await self._wait_after(error)
        # a stream that brought events is read on at once; of another one the response may have ended
        while not self._may_stream or (self._has_methods and not (has_moved and writing.has_content)):
            asked_s = self._now_s()
            try:
                async with asyncio.timeout(CALL_S):
                    response = await self._get(id)
            except Exception as failure:
                await self._wait_after(failure)
                has_moved = False
                self._moved_s += self._now_s() - asked_s  # events may have come meanwhile
                continue
            self._failures = 0
            status, silent_s = get(response, "status"), self._now_s() - self._moved_s
            if status not in ("queued", "in_progress", "cancelled"):
                writing.rewind()
                return partial(events_of if self._is_openai else events_of_interaction, response)
            # vLLM calls a response queued until it has ended, so only its stream shows whether it goes on
            if status == "queued" and silent_s > QUEUED_S:
                await self._cancel(id)
                status = "cancelled"
            if status == "cancelled" or silent_s > SILENT_S:
                raise UpstreamEnded(f"the model's response is {status}, and will not end")
            if self._may_stream:  # try its stream again
                await asyncio.sleep(min(silent_s, POLL_S))
                break
            await pause(self._writer, POLL_S)
        writing.go_on()
        place = writing.place
        if not self._has_methods:  # the app's function opens the stream
            return partial(self._attach, id, place)
        if self._is_openai:
            return partial(self._get, id, stream=True, starting_after=place or 0)
        return partial(self._get, id, stream=True, **({} if place is None else {"last_event_id": place}))

    def _get(self, id: str, **options: Any) -> Awaitable[object]:
        """Return the response, or a stream of it."""
        return called(partial(self._attach.retrieve if self._is_openai else self._attach.get, id, **options))

    async def _wait_after(self, error: Exception) -> None:
        """Wait until the next call. Raises as `_rest_of_response`, and `error` if it is no break."""
        statuses = {getattr(one, "status_code", None) for one in causes_of(error)}
        if GONE in statuses or (NOT_STREAMED in statuses and not self._has_methods):
            raise UpstreamEnded("the model's provider does not have the response any more") from None
        if NOT_STREAMED in statuses and self._may_stream:
            self._may_stream = False  # so `_rest_of_response` asks for it as a whole
            return
        has_failed = isinstance(error, UpstreamError) and error.__cause__ is None  # an event has said so
        if has_failed or not may_pass(error):
            raise error
        self._failures += 1
        after_s = retry_after_s(error)
        if self._failures > self._retries or after_s > LONGEST_RETRY_AFTER_S:
            raise UpstreamError("the model's response goes on, but its provider is out of reach") from None
        wait_s = max(backoff_s(self._retry_s, self._failures), after_s)
        logger.warning("response of message %s broke off; reading on in %.1f s: %r", self._writer.id, wait_s, error)
        await wait_to_retry(self._writer, wait_s)

    async def _cancel(self, id: str) -> None:
        """End a response that will not be read."""
        if self._has_methods:
            with suppress(Exception):  # then its provider completes it
                async with asyncio.timeout(CANCEL_S):
                    await called(partial(self._attach.cancel, id))

    async def _store_note(self, writing: Writing, id: str, kept: Kept | None) -> None:
        """Store the id of the response, ahead of its text."""
        # later calls follow from another response now
        notes = [one for one in _notes(self._writer) if one.step != self._step or one.number < self._number]
        if len(notes) < NOTES:
            place = [len(kept.parts), len(kept.text)] if kept is not None else None
            notes.append(_Note(self._step, self._number, id, self._after, used(self._writer), place))
            stored: list[Json] = [[one for one in note if one is not None] for note in notes]
            await self._writer.update(meta={RESPONSES: stored})
            self._report_attached(writing)

    def _report_attached(self, writing: Writing) -> None:
        """Report that the next process could read the response on, until it is read no more (`reading`)."""
        writing.is_attached = True
        self._writer.on_attach(True)


def _kept_text(attempt: Attempt, left: list[tuple[int, Part]], number: int, length: int, *, is_exact: bool) -> Kept:
    """Return the text that a response continues, the last of `left`. Raises Differs if the message does not hold it."""
    if len(left) == number and left[-1][1]["type"] == "text":  # its note has the `number` of parts and `length`
        kept = Kept(left, is_exact, length)  # `is_exact`: the model goes on at the last character of the text
        if len(kept.text) == length and (not kept.is_continued or length in kept.part.get("joins", [])):
            return kept
    attempt.outgoing.reopen_left(attempt.owner)  # all that was left is superseded with it
    raise Differs("the message does not hold the text that the model's response continues")


@contextmanager
def attaching(writer: Writer, tries: Tries, attach: object) -> Iterator[None]:
    """Let `tries` attach to the response. Raises LocalError if another such block is open in the same step."""
    step, running = writer.open_step(), streams_of(writer).attaching
    if step in running:
        raise LocalError(
            f"message {writer.id!r} has two calls of pipe with attach= at once, and after a crash the next "
            "attempt could not tell their responses apart; await one after the other, or put each into a step of "
            "its own"
        )
    one = Attaching(writer, tries, attach, step, count_call(writer))
    tries.write, tries.takes_left = one.write, one.found is None
    running.add(step)
    try:
        yield
    finally:
        running.remove(step)


def count_call(writer: Writer) -> int:
    """Return the number of a call of `pipe` with `attach` in its step, from 0."""
    numbers, step = streams_of(writer).attached, writer.open_step()
    numbers[step] += 1
    return numbers[step] - 1


def _notes(writer: Writer) -> list[_Note]:
    """Return what the message keeps of its responses."""
    with suppress(msgspec.ValidationError):
        return msgspec.convert(writer.meta.get(RESPONSES, []), list[_Note])
    return []
