"""The client says why it does not connect: an https page with an http hub, a newer protocol, token callbacks.

Layer: tests.

`test_client.py` has the other error codes of `docs/browser.md`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from playwright.async_api import Browser, Page, async_playwright
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.browser.tab import TIMEOUT_MS, chromium_path
from tests.browser.test_client import _FOLLOW, app_with, error_code, follow, page, page_at, token, verified
from tests.conftest import ARGUMENTS, IS_LONG, in_long
from tests.proxy import FaultProxy
from tests.transports.conftest import listening

WEB = Path(__file__).parents[2] / "tenuto" / "web"
HUB_HOST = "hub.test"  # to a browser a name of loopback would be as secure as https

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the event loop that the browser uses


def certificate_for(host: str, folder: Path) -> dict[str, str]:
    """Write a certificate that no browser trusts; return the options of uvicorn for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    return {"ssl_keyfile": str(folder / "key.pem"), "ssl_certfile": str(folder / "certificate.pem")}


async def test_secure_page_learns_that_the_browser_blocks_a_hub_without_https(tmp_path: Path) -> None:
    app = Starlette(routes=[Route("/", page), Mount("/web", StaticFiles(directory=WEB))])
    rules = f"--host-resolver-rules=MAP {HUB_HOST} 127.0.0.1"
    async with (
        async_playwright() as playwright,
        listening(app) as plain,
        listening(app, **certificate_for("localhost", tmp_path)) as secure,
        app_with(verified(allowed_origins=["*"])) as port,
    ):
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=[*ARGUMENTS, rules])
        context = await browser.new_context(ignore_https_errors=True)
        context.set_default_timeout(TIMEOUT_MS)
        windows: list[Page] = []
        for origin in (f"http://localhost:{plain}", f"https://localhost:{secure}"):
            windows.append(await context.new_page())
            await windows[-1].goto(origin)
            options = {"url": f"http://{HUB_HOST}:{port}/tenuto", "token": token()}
            await windows[-1].evaluate(_FOLLOW, ["/web/client.js", options, "chat:1"])
        await windows[0].wait_for_function("() => window.channel.state === 'live'")
        assert await error_code(windows[1]) == "mixed_content"
        detail = await windows[1].evaluate("window.client.status.error.message")
        assert f"http://{HUB_HOST}:{port}/tenuto" in detail
        assert "serve Tenuto over https" in detail
        assert await windows[1].evaluate("window.client.status.state") == "connecting"
        await browser.close()


def newer_server() -> Starlette:
    """Return a server as a later release could be: another protocol at `/v1`, and other paths."""

    async def about(request: Any) -> JSONResponse:
        return JSONResponse({"server": "tenuto", "protocol": 2})

    async def unknown(request: Any) -> JSONResponse:
        return JSONResponse({"code": "not_found", "status": 404, "detail": "no such path"}, 404)

    web = Mount("/tenuto/web", StaticFiles(directory=WEB))
    rest = Route("/tenuto/v1/{path:path}", unknown, methods=["GET", "POST"])
    return Starlette(routes=[Route("/", page), web, Route("/tenuto/v1", about), rest])


@pytest.mark.parametrize("transport", ["auto", *(("websocket", "sse", "poll") if IS_LONG else ())])
async def test_server_of_a_newer_protocol_is_named_as_such(browser: Browser, transport: str) -> None:
    async with listening(newer_server()) as port:
        window = await page_at(browser, port)
        await follow(window, port, transport=transport)
        assert await error_code(window) == "unsupported_protocol"
        detail = await window.evaluate("window.client.status.error.message")
        assert f"localhost:{port}/tenuto speaks protocol 2, this client 1" in detail
        assert await window.evaluate("window.channel.state") == "connecting"  # the server may be changed again
        await window.evaluate("window.client.close()")


async def test_token_callback_that_hangs_or_throws_counts_as_a_failed_attempt(browser: Browser) -> None:
    async with app_with(verified()) as port:
        window = await page_at(browser, port)
        await window.clock.install()
        await window.reload()
        options = {"url": "/tenuto", "token": token()}
        await window.evaluate(
            """async ([module, options]) => {
              const { connect } = await import(module)
              const faults = ["hangs", "throws", "hangs"]
              window.calls = []
              const token = (why) => {
                const fault = faults[calls.push(why) - 1]
                if (fault === "hangs") return new Promise(() => {})
                if (fault === "throws") throw new Error("no network")
                return options.token
              }
              window.errors = [] // each one may be the client's for a moment only
              window.client = connect({ ...options, token })
              client.subscribe(() => errors.push(client.status.error?.message ?? ""))
              window.channel = client.channel("chat:1")
            }""",
            [f"http://localhost:{port}/tenuto/web/client.js", options],
        )
        await window.wait_for_function("() => calls.length === 1")
        assert await window.evaluate("client.status.error") is None
        await window.clock.fast_forward(10_000)
        await window.wait_for_function(
            "() => errors.some((one) => one.includes('Error: no network'))"
        )  # the second call
        assert await window.evaluate("client.status.error.code") == "token_unavailable"
        await window.evaluate("errors.length = 0")
        await window.clock.fast_forward(500)  # the longest first back-off
        await window.wait_for_function("() => calls.length === 3")
        await window.clock.fast_forward(10_000)
        await window.wait_for_function("() => errors.some((one) => one.includes('no response within 10 s'))")
        await window.clock.fast_forward(1_000)
        await window.wait_for_function("() => channel.state === 'live'")
        assert await window.evaluate("calls") == ["start"] * 4
        status = await window.evaluate("client.status")
        assert (status["error"], status["transport"]) == (None, "websocket")
        await window.evaluate("client.close()")


@in_long
async def test_port_that_accepts_connections_and_never_responds_is_unreachable(browser: Browser) -> None:
    """Such as the port of a database, or an address that a firewall silences."""
    async with app_with(verified(allowed_origins=["*"])) as port, FaultProxy("127.0.0.1", port) as proxy:
        proxy.black_hole()
        window = await page_at(browser, port)
        await follow(window, port, url=f"http://localhost:{proxy.port}/tenuto", token=token())
        assert await error_code(window) == "unreachable"
        await window.goto("about:blank")
