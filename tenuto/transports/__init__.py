"""How events travel: HTTP, SSE, long poll, WebSocket, and the ASGI app that holds them together.

Layer: transports, the shell around the hub. Code here may wait, but it decides on no message: it checks access, passes
requests to the hub, and encodes results and events in the form of `docs/protocol.md`.
"""
