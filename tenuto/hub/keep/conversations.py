"""The conversations of a caller as a list: their titles, and whether an answer is being written.

Layer: hub. `POST /v1/visitor` and `Access.conversations` show it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from tenuto.core.document import restore
from tenuto.core.model import ChannelSummary, Message
from tenuto.hub.access.identity import Identity
from tenuto.hub.hub import HubCore
from tenuto.hub.keep.archive import MAX_LISTED

MAX_CONVERSATIONS = 50  # on a list
MAX_PAGES = 4  # pages of channels that are read; a caller with more channels gets the newest of these
TITLE_CHARACTERS = 60
_TITLE_MESSAGES, _TITLE_BYTES = 4, 16 * 1024  # the beginning of a chat, in which its first question is looked for


class Conversation(Struct, frozen=True, kw_only=True):
    """A channel in a list of conversations. The title is the first words of its first question; empty without one.

    `is_running`: its newest message is a question that waits or is answered, or an answer that streams.
    """

    channel: str
    title: str
    updated_ms: int
    is_running: bool


async def read_conversations(
    hub: HubCore, identity: Identity, within: Sequence[str], *, limit: int = MAX_CONVERSATIONS
) -> list[Conversation]:
    """Return the conversations that `identity` may read, newest first, in the channels `within` (`Store.summaries`)."""
    found: list[ChannelSummary] = []
    for _ in range(MAX_PAGES if within else 0):
        page = await hub.store.summaries(within, after=found[-1].channel if found else None, limit=MAX_LISTED)
        found += page
        if len(page) < MAX_LISTED:
            break
    readable = [one for one in found if identity.has("history", one.channel)]
    newest = sorted(readable, key=lambda one: (one.updated_ms, one.channel), reverse=True)[:limit]
    return [
        Conversation(
            channel=one.channel,
            title=await _title(hub, one.channel),
            updated_ms=one.updated_ms,
            is_running=await _is_running(hub, one.channel),
        )
        for one in newest
    ]


async def _title(hub: HubCore, channel: str) -> str:
    """Return the first words of the first question of a chat; empty if it has none."""
    page = await hub.store.page(channel, before=None, after=0, limit=_TITLE_MESSAGES, limit_bytes=_TITLE_BYTES)
    messages: list[Message] = [restore(stored).message() for stored in page.messages]
    for message in messages:
        if message.role == "user":
            texts = [str(part["text"]) for part in message.parts if part.get("type") == "text"]
            return _beginning(" ".join(" ".join(texts)[: 8 * TITLE_CHARACTERS].split()))
    return ""


def _beginning(text: str) -> str:
    """Return the first words of `text`, at most `TITLE_CHARACTERS` characters."""
    if len(text) <= TITLE_CHARACTERS:
        return text
    words, _, _ = text[:TITLE_CHARACTERS].rpartition(" ")
    return f"{words or text[: TITLE_CHARACTERS - 1]}…"


async def _is_running(hub: HubCore, channel: str) -> bool:
    page = await hub.store.page(channel, before=None, limit=1, limit_bytes=1)
    return any(one.is_streaming or one.is_open for one in map(restore, page.messages))
