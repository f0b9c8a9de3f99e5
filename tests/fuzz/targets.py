"""All targets, by name, in the order in which they are run.

Layer: tests.fuzz.

"""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.cursors import Cursors
from tests.fuzz.documents import Documents
from tests.fuzz.engine import Target
from tests.fuzz.frames import Frames
from tests.fuzz.identities import Identities
from tests.fuzz.requests import Requests
from tests.fuzz.stored import Stored
from tests.fuzz.tokens import Tokens
from tests.fuzz.wire import RawHttp, RawSocket

TARGETS: dict[str, Callable[[], Target]] = {
    one.name: one for one in (Requests, Frames, Identities, Cursors, Tokens, Stored, Documents, RawHttp, RawSocket)
}
