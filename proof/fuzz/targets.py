"""All targets by name, in the order of a run.

Layer: fuzz.
"""

from __future__ import annotations

from collections.abc import Callable

from proof.fuzz.cursors import Cursors
from proof.fuzz.documents import Documents
from proof.fuzz.engine import Target
from proof.fuzz.frames import Frames
from proof.fuzz.identities import Identities
from proof.fuzz.requests import Requests
from proof.fuzz.stored import Stored
from proof.fuzz.tokens import Tokens
from proof.fuzz.wire import RawHttp, RawSocket

TARGETS: dict[str, Callable[[], Target]] = {
    one.name: one for one in (Requests, Frames, Identities, Cursors, Tokens, Stored, Documents, RawHttp, RawSocket)
}
