"""A person in a cluster: a viewer that is present and types.

Layer: chaos.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from proof.chaos.viewer import Viewer, end
from proof.wirecheck import SseViewer, WsViewer

__all__ = ["Person", "wrong_signals"]

TYPES_EVERY_S = 0.3


class Person(Viewer):
    """A viewer on a WebSocket that is present under its name, and sends a numbered signal again and again."""

    typed = 0  # number of its signals, over all connections

    async def _follow(self, viewer: SseViewer | WsViewer) -> None:
        assert isinstance(viewer, WsViewer)
        typing = asyncio.get_running_loop().create_task(self._type(viewer))
        try:
            await super()._follow(viewer)
        finally:
            await end(typing)

    async def _type(self, viewer: WsViewer) -> None:
        channel = self.watching.channel
        while not (self.checker.has_attached or viewer.is_over):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the viewer gives no event for it
        viewer.session.request("presence", channel=channel)
        with contextlib.suppress(OSError):  # the connection is cut
            while not viewer.is_over:
                self.typed += 1
                data: dict[str, Any] = {"n": self.typed}
                viewer.session.request("signal", channel=channel, name="typing", data=data)
                await viewer.flush()
                await asyncio.sleep(TYPES_EVERY_S)  # the pace of a person


def wrong_signals(people: list[Person], viewers: list[Viewer]) -> str | None:
    """Return the first signal that no person sent, or that a viewer got twice; None if all are right."""
    sent = {one.watching.client: one for one in people}
    for viewer in viewers:
        seen: set[tuple[str, int]] = set()
        for signal in viewer.notices.signals:
            if signal["name"] != "typing":
                continue
            person, number = sent.get(signal["from"]), signal["data"]["n"]
            if person is None or not 0 < number <= person.typed or person.watching.channel != viewer.watching.channel:
                return f"viewer {viewer.name} got {signal}, which no person sent in its channel"
            if (signal["from"], number) in seen:
                return f"viewer {viewer.name} got {signal} twice"
            seen.add((signal["from"], number))
        viewer.notices.signals.clear()
    return None
