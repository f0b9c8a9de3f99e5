"""The message writer that `hub.message` and `turn.reply` return: it also writes whole streams of models.

Layer: agents; `hub` does not know models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from tenuto.core.errors import Deleted, IdConflict
from tenuto.core.model import Message
from tenuto.hub.writer import MessageWriter
from tenuto.sources import Piping, begin_pipe


class AgentWriter(MessageWriter):
    """A `MessageWriter` with the method `pipe`. As the answer of a turn it uses another id if its own is taken."""

    is_begun = False  # True: the beginning of the message is stored
    spare_id: Callable[[], str] | None = None

    def pipe(self, stream: object, *, source: str | None = None, text_field: str | None = None) -> Piping:
        """Write all of a model's stream into this message, as `tenuto.sources.pipe` does.

        The block fails if a call was not awaited: its text would be missing.
        """
        return begin_pipe(self, stream, source=source, text_field=text_field)

    async def open(self) -> Self:
        """Store the beginning of the message (`MessageWriter.open`)."""
        while True:
            try:
                return await super().open()
            except (IdConflict, Deleted):
                if self.spare_id is None:
                    raise
                self.name(self.spare_id())

    def take_up(self, message: Message, generation: int) -> None:
        """Continue a stored message (`MessageWriter.take_up`)."""
        super().take_up(message, generation)
        self.is_begun = True
