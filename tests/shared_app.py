"""A server process with a hub on a shared store, whose agent writes until its model is closed.

Layer: tests.

`python -m tests.shared_app URL agent|root --port PORT`: with an agent, or under the root path `/chat`, as by a proxy.
The header `X-Node` of a response is the address of the process that sent it.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse

from tenuto import Hub, allow_everyone
from tenuto.agents.turn import Turn


async def seen(request: Request) -> JSONResponse:
    """Respond with the address of this page, and with that of the client, as the server sees them."""
    assert request.client is not None
    return JSONResponse([str(request.url), request.client.host])


def main(url: str, part: str, _: str, port: str) -> None:
    hub = Hub(url, drain_s=0, authenticate=allow_everyone)
    if part == "agent":

        @hub.agent("chat:*")
        async def answer(turn: Turn) -> None:
            try:
                async with turn.reply() as message:
                    for number in range(10_000):
                        await message.append(f"{number} ")
                        await asyncio.sleep(0.02)  # the pace of a model
            finally:
                print(f"model of {turn.channel} closed", flush=True)

    app = Starlette()
    hub.install(app, "/tenuto")
    app.add_route("/seen", seen)
    uvicorn.run(
        app,
        port=int(port),
        log_level="info",
        root_path="/chat" if part == "root" else "",
        headers=[("X-Node", f"127.0.0.1:{port}")],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
