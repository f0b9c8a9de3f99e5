"""The WebSocket close codes of the protocol (`docs/protocol.md`, 7.5).

Layer: transports.

The number alone tells a client whether to reconnect: below 4200 it reconnects with its cursors, from 4200 on it gets a
new token first, and from 4300 on it stops.
"""

DRAINED = 1012
FAILED = 4000
SILENT = 4001
CROWDED = 4002
NARROWED = 4003
EXPIRED = 4200
UNAUTHENTICATED = 4201
MISUSED = 4300
FRAME_TOO_LARGE = 4301
