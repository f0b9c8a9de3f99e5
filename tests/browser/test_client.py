"""The browser client in Chromium: tokens, the choice of a transport, and the reason why it does not connect.

Layer: tests.

The page is served by the hub's own app or by another origin. Faults are those of real components: nginx that buffers
and passes no WebSocket on, a port without a server, a hub that does not allow the page's origin.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import jwt
import pytest
from playwright.async_api import Browser, Page
from playwright.async_api import Route as Interception
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import BaseRoute, Mount, Route

from proof.chaos.processes import free_port
from tenuto.app import Hub
from tenuto.hub.access.tokens import jwt_verifier
from tests.browser.tab import TIMEOUT_MS, script
from tests.conftest import in_long
from tests.nginx import needs_nginx, nginx
from tests.transports.conftest import listening, new_hub, serving

WEB = Path(__file__).parents[2] / "tenuto" / "web"
SECRET = "0123456789abcdef0123456789abcdef"
FIRST_WORDS_S = 15.0  # the client must name the reason of a failure within 5 s; a busy machine is three times slower


FOLLOW = script("follow", "follow")


EMPTY = "<!doctype html><title>test</title><link rel='icon' href='data:,'>"


def page_app(html: str, hub: Hub | None = None, *more: BaseRoute, policy: str = "") -> Starlette:
    """Return an app with a page at /, perhaps under a content security policy, and perhaps with `hub` at /tenuto."""

    async def document(request: object) -> HTMLResponse:
        return HTMLResponse(html, headers={"content-security-policy": policy} if policy else None)

    return Starlette(routes=[Route("/", document), *more, *([Mount("/tenuto", hub)] if hub is not None else [])])


@asynccontextmanager
async def app_with(hub: Hub) -> AsyncIterator[int]:
    """Serve `hub` at /tenuto, beside an empty page; yield the port."""
    async with serving(hub, page_app(EMPTY, hub)) as served:
        yield served.port


async def page_at(browser: Browser, port: int, path: str = "/") -> Page:
    context = await browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    window = await context.new_page()
    await window.goto(f"http://localhost:{port}{path}")
    return window


async def follow(window: Page, channel: str = "chat:1", **options: Any) -> None:
    await window.evaluate(FOLLOW, [options, channel])


async def until_shown(window: Page, text: str) -> list[str]:
    """Wait until the page shows `text`; return all texts that it has shown, each a prefix of the next."""
    await window.wait_for_function("text => window.shown.at(-1) === text", arg=text)
    shown: list[str] = await window.evaluate("window.shown")
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown)), shown
    return shown


async def error_code(window: Page) -> str:
    """Return the code of the client's error, once it is there."""
    await window.wait_for_function("() => window.client.status.error", timeout=FIRST_WORDS_S * 1000)
    code: str = await window.evaluate("window.client.status.error.code")
    return code


def verified(**options: Any) -> Hub:
    return new_hub(authenticate=jwt_verifier(secret=SECRET, audience="chat"), **options)


def token(*, sub: str = "ada", channels: Sequence[str] = ("chat:*",)) -> str:
    rights = {name: ["subscribe", "history", "publish", "presence"] for name in channels}
    claims = {"sub": sub, "aud": "chat", "exp": time.time() + 600, "tenuto": rights}
    return jwt.encode(claims, SECRET, algorithm="HS256")


@asynccontextmanager
async def opened(browser: Browser, hub: Hub | None = None) -> AsyncIterator[tuple[Hub, Page]]:
    """Serve a hub beside an empty page; yield both, and close the client of the page at the end."""
    hub = hub or verified()
    async with app_with(hub) as port:
        window = await page_at(browser, port)
        yield hub, window
        await window.evaluate("window.client?.close()")


# Tokens


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
async def test_page_with_a_token_follows_and_writes_on_each_transport(browser: Browser, transport: str) -> None:
    async with opened(browser) as (hub, window):
        await follow(window, token=token(), transport=transport)
        await window.evaluate("window.channel.create({ id: 'q', text: 'hello' })")
        await until_shown(window, "hello")
        assert await window.evaluate("window.channel.getSnapshot().you.id") == "ada"
        assert (await hub.read("chat:1", "q"))[0].author == "ada"


# Errors, each with its name


async def test_module_that_is_not_loaded_at_first_is_loaded_later(browser: Browser) -> None:
    hub, missing, failures = new_hub(), ["fallback.js", "probe.js"], list[str]()

    async def serve(route: Interception) -> None:
        name = route.request.url.rpartition("/")[2]
        await (route.abort() if name in missing else route.continue_())

    async with opened(browser, hub) as (_, window):
        window.on("pageerror", lambda error: failures.append(str(error)))
        await window.route(re.compile("/web/"), serve)
        await follow(window)
        await window.wait_for_function("() => window.channel.state === 'live'")
        await window.evaluate("window.client.close()")

        await follow(window, transport="sse")
        assert await error_code(window) == "unreachable"
        words: str = await window.evaluate("window.client.status.error.message")
        assert words.startswith("transport sse was not loaded: Failed to fetch")
        missing.remove("fallback.js")
        async with hub.message("chat:1", id="a") as message:
            await message.append("one")
        await until_shown(window, "one")
        assert await window.evaluate("window.client.status.error") is None
        await window.evaluate("window.client.close()")

        async with window.expect_event("requestfailed", lambda request: request.url.endswith("/probe.js")):
            await follow(window, url=f"http://localhost:{free_port()}/tenuto")
        missing.clear()
        assert await error_code(window) == "unreachable"
        assert not failures


async def test_foreign_page_learns_the_setting_that_allows_its_origin(browser: Browser) -> None:
    warnings: list[str] = []
    async with app_with(new_hub()) as port, listening(page_app(EMPTY)) as elsewhere:
        window = await page_at(browser, elsewhere)
        window.on("console", lambda line: warnings.append(line.text) if line.type == "warning" else None)

        async def own_file(route: Any) -> None:
            name = route.request.url.partition("/client-of-the-page/")[2]
            await route.fulfill(path=WEB / name, content_type="text/javascript")

        await window.route("**/client-of-the-page/**", own_file)
        own, at = "/client-of-the-page/client.js", "http://localhost:{}/tenuto"
        await window.evaluate(FOLLOW, [{"url": at.format(port)}, "chat:1", own])
        assert await error_code(window) == "origin_refused"
        detail = await window.evaluate("window.client.status.error.message")
        assert f'allowed_origins=["http://localhost:{elsewhere}"]' in detail
        assert [line for line in warnings if "origin_refused" in line] != []
        # The setting that the reason names works as it is written there.
        origins = json.loads(re.findall(r"allowed_origins=(\[.*?\])", detail)[0])
        allowing = new_hub(allowed_origins=origins)
        async with app_with(allowing) as allowed_port:
            await window.evaluate(FOLLOW, [{"url": at.format(allowed_port)}, "chat:1", own])
            await window.evaluate("window.channel.create({ id: 'q', text: 'hello' })")
            await until_shown(window, "hello")
            await window.evaluate("window.client.close()")


async def test_content_security_policy_that_blocks_the_server_is_named(browser: Browser) -> None:
    hub, policy = new_hub(), "default-src 'self'; script-src 'self' 'unsafe-eval'; connect-src 'none'"
    async with serving(hub, page_app("<!doctype html><title>test</title>", hub, policy=policy)) as served:
        window = await page_at(browser, served.port)
        await follow(window)
        assert await error_code(window) == "blocked_by_csp"
        assert "connect-src" in await window.evaluate("window.client.status.error.message")


# Proxies

# Compression without a flush is the usual way in which a proxy holds a stream back. No upgrade passes this proxy.
_LOCATION = """
  proxy_pass http://hub; proxy_http_version 1.1; proxy_set_header Host $host:$server_port;
  proxy_set_header Connection ""; proxy_set_header X-Forwarded-For ""; proxy_ignore_headers X-Accel-Buffering;
  gzip GZIP; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;
"""


@needs_nginx
@pytest.mark.parametrize(("is_buffering", "transport"), [(False, "sse"), pytest.param(True, "poll", marks=in_long)])
async def test_page_behind_a_proxy_uses_the_best_transport_that_the_proxy_lets_through(
    browser: Browser, tmp_path: Path, is_buffering: bool, transport: str
) -> None:
    hub = verified()
    async with app_with(hub) as upstream:
        location = _LOCATION.replace("GZIP", "on" if is_buffering else "off")
        with nginx(tmp_path, upstream, location, user="root") as port:
            window = await page_at(browser, upstream)
            await window.goto(f"http://localhost:{port}/")
            async with hub.message("chat:1", id="a") as message:
                await message.append("one ")
                await follow(window, token=token())
                # A proxy that holds streams back is noticed within 10 s; then comes the first poll.
                await until_shown(window, "one ")
                await message.append("two")
                await until_shown(window, "one two")
            assert await window.evaluate("window.client.status.transport") == transport
            await window.evaluate("window.client.close()")
