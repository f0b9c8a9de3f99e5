"""A message writer that takes whole streams: what `hub.message` and `turn.reply` give.

You are in `agents`, since `hub` knows nothing of models.
"""

from __future__ import annotations

from holdfast.agents.sources import Piped, pipe
from holdfast.hub.writer import MessageWriter


class AgentWriter(MessageWriter):
    """A `MessageWriter` with `pipe`."""

    async def pipe(self, stream: object, *, source: str | None = None) -> Piped:
        """Write all of a model's stream into this message; see `holdfast.agents.sources.pipe`."""
        return await pipe(self, stream, source=source)
