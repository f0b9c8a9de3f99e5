"""How events travel: HTTP, SSE, long poll, WebSocket, and the ASGI app that holds them together.

You are in `transports`: the shell around the hub. Everything here may wait, and nothing here decides: requests go to
the hub, what comes back is written down as `docs/protocol.md` says.
"""

from holdfast.transports.app import asgi

__all__ = ["asgi"]
