"""The demo's application: a chat page, the hub behind it, and two requests of its own.

You are in `demo`, in the shell: this wires `agent` to a hub and serves `web`. Nobody but the page calls `/ask` and
`/stop`, so both may change together.

An answer belongs to the hub, not to the request that asked for it: a reader who leaves stops nothing. Its id, seed and
fingerprint follow from the question, so asking twice is asking once, in whichever process; and a process that finds
an unfinished answer when it starts goes on with it before anyone is served.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from holdfast.core.errors import HoldfastError, InvalidName, InvalidRequest, TooLarge, UnsupportedMediaType
from holdfast.demo.agent import answer, fingerprint, script
from holdfast.hub import Hub, MessageWriter

__all__ = ["CHANNELS", "LONGEST_QUESTION", "build"]

CHANNELS = "demo:*"
LONGEST_QUESTION = 2_000  # code points; the page's input box has the same limit
_BODY_BYTES = 32 * 1024  # a question of nothing but escapes has 24 KB

_WEB = Path(__file__).parent.parent / "web"
