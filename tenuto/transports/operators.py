"""HTTP requests of operators: the removal of a person, the check of the store, the state of the hub.

Layer: transports.

They are the calls of the control socket (`hub.control`) for an operator on another machine. A removal and a check may
work for minutes, so their responses are lines with signs of life. They end with their connection: the next request for
the same person removes what a removal that was cut off has left.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import Response

from tenuto.hub.hub import HubCore
from tenuto.hub.keep.archive import Archive
from tenuto.hub.keep.control import state_of
from tenuto.transports.calls import NO_STORE, Call, ForgetClient, json_response
from tenuto.transports.lines import LinesResponse, with_signs


async def forget(call: Call) -> Response:
    """Remove what a person wrote, and return the counts as the last line."""
    wanted: ForgetClient = await call.body()
    return await _response(call.hub, _forgotten(call.hub.archive, wanted))


async def verify(call: Call) -> Response:
    """Check the store, and return a line for each damaged part of it."""
    await call.body()
    return await _response(call.hub, _damage(call.hub.archive))


async def inspect(call: Call) -> Response:
    """Return the version, the process id and the counters."""
    return json_response(state_of(call.hub))


async def _forgotten(archive: Archive, wanted: ForgetClient) -> AsyncGenerator[object]:
    found = await archive.forget(wanted.client_id, channels=wanted.channels)
    yield {"type": "end", **msgspec.to_builtins(found)}


async def _damage(archive: Archive) -> AsyncGenerator[object]:
    found = 0
    async with aclosing(archive.verify()) as lines:
        async for damage in lines:
            found += 1
            yield {"type": "damage", "detail": damage}
    yield {"type": "end", "damaged": found}


async def _response(hub: HubCore, values: AsyncGenerator[object]) -> Response:
    lines = with_signs(values)
    first = await anext(lines)  # raises the errors that a response can still show
    return LinesResponse(hub.viewing, first, lines, headers=NO_STORE)
