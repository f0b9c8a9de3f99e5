"""All targets by name, in the order of a run.

Layer: fuzz.
"""

from __future__ import annotations

from collections.abc import Callable

from fuzz.cursors import Cursors
from fuzz.documents import Documents
from fuzz.engine import Target
from fuzz.frames import Frames
from fuzz.identities import Identities
from fuzz.requests import Requests
from fuzz.stored import Stored
from fuzz.tokens import Tokens
from fuzz.wire import RawHttp, RawSocket

TARGETS: dict[str, Callable[[], Target]] = {
    one.name: one for one in (Requests, Frames, Identities, Cursors, Tokens, Stored, Documents, RawHttp, RawSocket)
}
