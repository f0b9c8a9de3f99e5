"""For the tests of an application: a model that follows a script, and waiting for an answer.

Layer: testing, above `app`. No module of the product imports it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any

from tenuto.agents.local import LocalWatch
from tenuto.core.errors import Draining, LocalError, NotFound
from tenuto.core.model import Message

if TYPE_CHECKING:
    from tenuto.app import Hub

__all__ = ["ScriptedModel", "wait_for_answer"]

_WORD = re.compile(r"\S+\s*|\s+")
_LISTED = 20  # newest messages that are searched for a question


class ScriptedModel:
    """A model that gives the replies of a script, one for each call: `async for piece in model(question): …`.

    A reply is a text, which comes word by word, or its pieces; an exception among them is raised in its place. `asked`
    has what each call was given.
    """

    def __init__(self, *replies: str | Exception | Iterable[str | Exception]) -> None:
        self.asked: list[Any] = []
        self._replies = iter(replies)

    async def __call__(self, asked: Any = None) -> AsyncIterator[str]:
        """Yield the pieces of the next reply. Raises LocalError when the script is over."""
        self.asked.append(asked)
        if (reply := next(self._replies, None)) is None:
            raise LocalError(f"the script has no reply to call {len(self.asked)}; give ScriptedModel another one")
        if isinstance(reply, str):
            reply = _WORD.findall(reply)
        for piece in [reply] if isinstance(reply, Exception) else reply:
            if isinstance(piece, Exception):
                raise piece
            yield piece
            await asyncio.sleep(0)  # as between two pieces of a real model


async def wait_for_answer(hub: Hub, channel: str, question: str | None = None, *, timeout_s: float = 10.0) -> Message:
    """Return the last answer to the message `question`, by default the newest of a user, once its turn is over.

    An interrupted answer does not count: another attempt may follow. Raises TimeoutError after `timeout_s`, Draining if
    the hub closes meanwhile, and Deleted.
    """
    turn, found = None, list[Message]()
    try:
        async with asyncio.timeout(timeout_s):
            await hub.start()
            with closing(LocalWatch(hub, channel)) as watch, ExitStack() as hooks:
                drained = hub.runtime.tasks.drained  # until then the handler may still end its turn
                ending = asyncio.ensure_future(drained.wait())
                ending.add_done_callback(lambda _: watch.wake())
                hooks.callback(ending.cancel)
                await hub.runtime.fresh(channel)  # follows the channel in a store that is shared
                while not drained.is_set():
                    page = await hub.history(channel, limit=_LISTED)
                    found = page.messages
                    while page.more and all(one.role != "user" for one in page.messages):  # a page has at most 2 MiB
                        page = await hub.history(channel, before=page.messages[-1].created, limit=_LISTED)
                    wanted = question or next((one.id for one in page.messages if one.role == "user"), None)
                    if wanted is not None:
                        with suppress(NotFound):  # the question is still to come
                            turn = await hub.turn(channel, wanted)
                            answers = [one for one in turn.answers if one.status != "interrupted"]
                            if turn.state == "over" and answers:
                                return answers[-1]
                    await watch.changed()
            raise Draining(f"hub is shutting down, and the turn in channel {channel!r} has not ended with an answer")
    except TimeoutError:
        states = ", ".join(f"{one.role} {one.id!r} {one.status}" for one in found) or "none"
        raise TimeoutError(
            f"the turn of {question or 'the newest question'!r} in channel {channel!r} has not ended with an answer "
            f"within {timeout_s:g} s; its state: {turn.state if turn else 'none'}; the newest messages: {states}"
        ) from None
