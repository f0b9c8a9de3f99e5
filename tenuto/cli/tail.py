"""`tenuto tail`: a channel in the terminal.

Layer: cli.

It follows the channel with the Python client, whose view begins anew if events are lost, and prints the difference
after each change. So after a broken connection no text is missing and none is printed twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from tenuto.client import Client
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.model import Message
from tenuto.core.names import check_channel

# Control characters are replaced: a terminal obeys them, so they could move the cursor, or type a command.
_CONTROLS = dict.fromkeys([*range(0x20), 0x7F, *range(0x80, 0xA0)], "\N{REPLACEMENT CHARACTER}")
_TEXT = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\n\t"}  # in text these two stay


class Printer:
    """Prints the difference of a view since the last call of `show`."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._shown: dict[str, Message] = {}  # each as it was printed last, by id
        self._current: str | None = None  # id of the message whose text was printed last

    def show(self, messages: Iterable[Message]) -> None:
        """Print the text and the ends that are new in `messages`, which are in view."""
        for message in messages:
            text, before = message.text, self._shown.get(message.id)
            printed = before.text if before is not None else ""
            if before is None or not text.startswith(printed):
                self._begin(message, "" if before is None else " (edited)")
                printed = ""
            elif text != printed and self._current != message.id:
                self._begin(message, " (goes on)")
            self._write(text[len(printed) :].translate(_TEXT))
            if before is not None and before.status == "streaming" and message.status not in ("streaming", "complete"):
                reason = f": {message.reason.translate(_CONTROLS)}" if message.reason else ""
                self._write(f"\n[{message.status}{reason}]")
            self._shown[message.id] = message

    def _begin(self, message: Message, note: str) -> None:
        if self._current is not None:
            self._write("\n\n")
        author = message.role if message.author is None else f"{message.role} {message.author}"
        self._write(f"── {author.translate(_CONTROLS)}{note}\n")
        self._current = message.id


class _Notices(logging.Handler):
    """Prints one line for each outage: the client logs only the first failure of an outage as a warning."""

    def __init__(self, url: str, notices: TextIO) -> None:
        super().__init__(logging.WARNING)
        self._url = url
        self._notices = notices

    def emit(self, record: logging.LogRecord) -> None:
        """Print the log record as one line."""
        print(f"(no response from {self._url}, trying again)", file=self._notices, flush=True)


def follow(url: str, channel: str, *, out: TextIO | None, notices: TextIO, **options: Any) -> None:
    """Print `channel` to `out` as it happens, until interrupted. Raises LocalError, and a refusal as TenutoError."""
    check_channel(channel)
    if out is None:  # closed by the caller
        raise LocalError("tail has no output; give it one, such as > file.txt")
    logger, handler = logging.getLogger("tenuto.client"), _Notices(url, notices)
    does_propagate, logger.propagate = logger.propagate, False  # the notices replace its warnings
    logger.addHandler(handler)
    try:
        asyncio.run(_follow(url, channel, out, **options))
    except LocalError:
        raise
    except TenutoError as error:
        detail = error.detail.replace("Client(..., token=...)", "--token, or TENUTO_TOKEN")
        raise TenutoError(f"{error.code}: {detail}".translate(_CONTROLS)) from None
    finally:
        logger.removeHandler(handler)
        logger.propagate = does_propagate


async def _follow(url: str, channel: str, out: TextIO, since: str | None, history: int, token: str | None) -> None:
    printer = Printer(out.write)
    async with Client(url, token=token) as client:
        view = client.channel(channel, history=history)
        view.cursor = since  # before the first connection
        await view.live(timeout_s=math.inf)
        async for _ in view:
            printer.show(view.messages)
            out.flush()
