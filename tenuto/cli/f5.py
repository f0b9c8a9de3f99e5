"""`tenuto f5`: ask a chat page in a real browser, break the answer in the middle, and look what is left of it.

Layer: cli. The page may be of any program, so its answer is found by what it does: it grows (`Growth`). Each trial asks
anew, in a browser profile of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from tenuto.core.errors import LocalError, shown, shown_url

try:
    from playwright.async_api import Browser, Error, Frame, Locator, Page, async_playwright
except ImportError:
    raise LocalError("f5 needs the package playwright; install Tenuto with [f5], as its README shows") from None

FIELDS = "textarea, [contenteditable=true], [role=textbox], input[type=text], input:not([type])"
FAULTS = ("reload", "no network", "second window")
OFFLINE_S = 5.0
QUIET_S, READY_S = 2.0, 5.0  # until an answer has ended; longest wait for a page, which may ignore earlier questions
LETTERS, GROWTHS = 40, 12  # by which a text is an answer that streams
AGAIN = GROWTHS // 2  # growths through the same text by which it was asked again; a replay is faster and shows fewer
KEPT, EDGE = 0.95, 12  # of the letters
POLL_MS = 100
LOGIN = "give its cookie as --cookie NAME=VALUE, or a login of HTTP as https://USER:PASSWORD@HOST"
PASSWORDS = "input[type=password]:visible"
REMEDIES = {  # by a part of the browser's message
    "selector": "--input, --send and --answer need selectors of CSS, such as '#question'",
    ".launch:": "for a browser, run playwright install chromium",
    "ERR_INVALID_AUTH_CREDENTIALS": LOGIN,
    "": "check the address",
}
# In place of the list of Playwright, with which a frame of another site has no storage.
SWITCH = "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable"
TEXT = Path(__file__).with_name("f5_text.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Chat:
    """A page, and how to use it. Without selectors, the field and the answer are guessed, and Enter sends."""

    url: str
    question: str
    field: str | None
    send: str | None
    answer: str | None
    cookies: tuple[str, ...]
    patience_s: float


class Result(NamedTuple):
    """What is left after a fault: the question, a share of the text that was shown, and the rest of the answer."""

    fault: str
    has_question: bool
    kept: float
    goes_on: str  # yes, no, with a gap (of the time offline), or asked again (the model writes it anew)


class Growth:
    """The lines of a page that have grown in place, as an answer does; names of buttons and states change at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.times = 0
        self._last: list[str] = []

    def take(self, lines: list[str]) -> list[str]:
        """Return those lines of the page that have grown since the last call."""
        gone = tuple(old for old in self._last if old not in lines)
        grown = [line for line in lines if line not in self._last and line.startswith(gone)]
        self.lines = [one for one in self.lines if not any(line.startswith(one) for line in grown)] + grown
        self.times += bool(grown)
        self._last = lines
        return grown


class Network:
    """A SOCKS proxy between the browser and its network: the offline switch of a browser leaves open streams alone."""

    def __init__(self) -> None:
        self.is_cut, self._open = False, set[asyncio.StreamWriter]()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Yield the address of the proxy while the block runs."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"socks5://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self.cut()

    def cut(self) -> None:
        """Close all connections, and refuse others while `is_cut`."""
        self.is_cut = True
        for writer in self._open:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        with suppress(OSError, EOFError):
            await reader.readexactly((await reader.readexactly(2))[1])  # the ways to sign in: none is needed
            writer.write(b"\x05\x00")
            host = await reader.readexactly((await reader.readexactly(5))[4])  # Chromium names each host
            port = int.from_bytes(await reader.readexactly(2), "big")
            if not self.is_cut:
                upstream, sink = await asyncio.open_connection(host.decode(), port)
                ends.add(sink)
                self._open |= ends
                writer.write(b"\x05\x00\x00\x01" + bytes(6))
                await asyncio.gather(_pump(reader, sink), _pump(upstream, writer))
        self._open -= ends
        for one in ends:
            one.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def survey(chat: Chat, screenshots: Path) -> list[Result]:
    """Return what survives each fault. Raises LocalError for a page that cannot be tested, with the remedy."""
    if not re.match(r"https?://[^/]", chat.url):
        raise LocalError(f"URL must be a page's, such as http://127.0.0.1:8000, got {shown_url(chat.url)}")
    network = Network()
    chromium = os.environ.get("TENUTO_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    async with network.served() as proxy, async_playwright() as playwright:
        try:
            via: Any = {"server": proxy, "bypass": "<-loopback>"}
            async with await playwright.chromium.launch(proxy=via, executable_path=chromium, args=[SWITCH]) as browser:
                return [await _trial(browser, network, chat, fault, screenshots) for fault in FAULTS]
        except Error as error:
            problem = error.message.splitlines()[0].partition(" at http")[0]  # an address may have secrets
            remedy = next(text for part, text in REMEDIES.items() if part in problem)
            raise LocalError(f"{shown_url(chat.url)} cannot be tested: {problem}; {remedy}") from None


async def _trial(browser: Browser, network: Network, chat: Chat, fault: str, screenshots: Path) -> Result:
    address = urlsplit(chat.url)
    login: Any = {"username": unquote(address.username or ""), "password": unquote(address.password or "")}
    url = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()  # a page at one with a login cannot fetch
    context = await browser.new_context(http_credentials=login if address.username else None)
    for one in chat.cookies:
        name, _, value = one.partition("=")
        await context.add_cookies([{"name": name, "value": value, "url": url}])
    page, file = await context.new_page(), fault.replace(" ", "-")
    page.set_default_timeout(chat.patience_s * 1000)
    sent = bytearray()
    page.on(
        "request", lambda one: sent.extend(unquote_to_bytes(one.url) + unquote_to_bytes(one.post_data_buffer or b""))
    )
    page.on("websocket", lambda one: one.on("framesent", lambda data: sent.extend(unquote_to_bytes(data))))
    response = await page.goto(url, wait_until="domcontentloaded")
    if response is not None and (status := response.status) >= 400:
        text = f"asks for a sign-in; {LOGIN}" if status == 401 else f"has status {status}; check the address"
        raise await _problem(page, text, screenshots / f"{status}.png")
    answer, is_framed = await _answer(page, chat, sent, screenshots / f"{file}-before.png")
    if fault == "reload":
        await page.reload(wait_until="domcontentloaded")
    elif fault == "no network":
        network.cut()
        await page.wait_for_timeout(OFFLINE_S * 1000)
        network.is_cut = False
    else:
        url, page = page.url, await context.new_page()
        await page.goto(url, wait_until="domcontentloaded")
    kept, goes_on, after, again, is_past = 0.0, "no", Growth(), set[str](), False
    deadline_s = time.monotonic() + chat.patience_s
    while time.monotonic() < deadline_s and goes_on == "no":
        lines = await _lines(page, chat.answer, is_framed)
        grown = after.take(lines)
        kept = max(kept, _share(answer, "\n".join(lines)))
        is_past = is_past or any(line.startswith(answer[-1]) for line in grown)
        if not is_past:  # later, a line may begin like one before it
            again |= {line for line in grown if any(one.startswith(line) for one in answer)} - {*answer}
        is_longer = any(line.startswith(answer[-1]) and len(line) >= len(answer[-1]) + LETTERS for line in lines)
        if kept >= KEPT and (is_longer or after.times >= GROWTHS):
            goes_on = "yes"
        await page.wait_for_timeout(POLL_MS)
    if len(again) >= AGAIN:
        goes_on = "asked again"
    await page.screenshot(path=screenshots / f"{file}-after.png")
    has_question = chat.question in " ".join(await _lines(page, None, is_framed))
    if goes_on == "yes" and fault == "no network":
        continued = await _continued(page, chat, answer[-1], is_framed)
        await page.reload(wait_until="domcontentloaded")
        whole = continued[-1:] + (await _continued(page, chat, answer[-1], is_framed))[-1:]
        if any(_lacks(one, other) for one in continued for other in whole):
            goes_on = "with a gap"
    await context.close()
    return Result(fault, has_question, kept, goes_on)


async def _lines(page: Page, selector: str | None, is_framed: bool) -> list[str]:
    """Return the lines of the page, or those of the frames in it, which change when the page is loaded again."""
    lines = list[str]()
    for frame in page.frames:
        if is_framed == (frame != page.main_frame) and frame.url:  # without one it has not loaded, and calls wait
            with suppress(Error):  # it has gone, or loads another page
                lines += await frame.evaluate(TEXT, selector)
    return lines


async def _continued(page: Page, chat: Chat, text: str, is_framed: bool) -> list[str]:
    """Return the lines that began with `text`, each time they had changed, until none has for two seconds."""
    seen, now_s = list[str](), time.monotonic()
    deadline_s, quiet_s = now_s + chat.patience_s, now_s + chat.patience_s
    while time.monotonic() < min(deadline_s, quiet_s):
        for line in await _lines(page, chat.answer, is_framed):
            if line.startswith(text) and line not in seen:
                seen.append(line)
                quiet_s = time.monotonic() + QUIET_S
        await page.wait_for_timeout(POLL_MS)
    return seen


def _lacks(line: str, whole: str) -> bool:
    """Return whether `line` goes on with a later place of `whole`; its end may be in the making."""
    same = next((at for at, (one, other) in enumerate(zip(line, whole, strict=False)) if one != other), len(line))
    rest = line[same:-EDGE]
    return len(rest) >= EDGE and rest in whole[same:]


async def _answer(page: Page, chat: Chat, sent: bytearray, screenshot: Path) -> tuple[list[str], bool]:
    """Ask; return the lines of the answer under way, and whether a frame has it. Raises LocalError if none comes."""
    with suppress(Error):  # a page with a stream never stops
        await page.wait_for_load_state("networkidle", timeout=READY_S * 1000)
    await page.keyboard.press("Escape")  # closes a welcome
    await page.evaluate(TEXT, chat.answer)  # raises for a wrong selector, as the next lines do
    for selector in (chat.field, chat.send):
        await page.locator(selector or FIELDS).count()
    frame, field = await _field(page, chat, screenshot)
    is_framed, growth = frame != page.main_frame, Growth()
    before, asked_s, deadline_s = -1, float("-inf"), time.monotonic() + chat.patience_s
    while (now_s := time.monotonic()) < deadline_s:
        if now_s > asked_s + READY_S and not growth.times:
            count = " ".join(await _lines(page, None, is_framed)).count(chat.question)  # also by earlier trials
            is_sent = before >= 0 and all(word.encode() in sent for word in re.findall(r"\w+", chat.question))
            before, asked_s = count, now_s if before in (-1, count) and not is_sent else float("inf")
        if asked_s == now_s:  # or again: the page has ignored the question, or its button waits
            with suppress(Error):
                await field.fill(chat.question)
                await field.press("End")  # a page may wait for keys
                sent.clear()
                await (field.press("Enter") if chat.send is None else frame.click(chat.send, timeout=READY_S * 1000))
        await page.wait_for_timeout(POLL_MS)
        growth.take(await _lines(page, chat.answer, is_framed))
        if growth.times >= GROWTHS and len("".join(growth.lines)) >= LETTERS:
            await page.screenshot(path=screenshot)
            growth.take(await _lines(page, chat.answer, is_framed))
            return growth.lines, is_framed
    raise await _problem(
        page,
        f"showed too little text that grows within {chat.patience_s:g} s after the question; name field, button and "
        "answers by --input, --send and --answer, ask for a longer answer with --question, or set --patience-s",
        screenshot,
    )


async def _field(page: Page, chat: Chat, screenshot: Path) -> tuple[Frame, Locator]:
    """Return the first field of the page, or else of a frame in it. Raises LocalError if none can be written into."""
    deadline_s = time.monotonic() + chat.patience_s
    while time.monotonic() < deadline_s:
        for frame in [one for one in page.frames if one.url]:
            with suppress(Error):
                if chat.field is None and await frame.locator(PASSWORDS).count():  # a question is no user name
                    raise await _problem(page, f"asks for a sign-in; {LOGIN}", screenshot)
                field = frame.locator(chat.field or FIELDS).locator("visible=true").first
                if await field.count():
                    await field.fill("", timeout=READY_S * 1000)
                    return frame, field
        await page.wait_for_timeout(POLL_MS)
    what = "field for text" if chat.field is None else f"visible {shown(chat.field)}"
    raise await _problem(page, f"has no {what}; check the address, or give --input", screenshot)


async def _problem(page: Page, text: str, screenshot: Path) -> LocalError:
    await page.screenshot(path=(seen := screenshot.with_name("problem.png")))
    if await page.locator(PASSWORDS).count():
        text = f"asks for a sign-in; {LOGIN}"
    return LocalError(f"{shown_url(page.url)} {text}; {seen} shows the page")


def _share(shown: list[str], text: str) -> float:
    """Return the share of the letters of `shown` that `text` has, of each line up to the first difference."""
    found = (next((size for size in range(len(line), 0, -1) if line[:size] in text), 0) for line in shown)
    return sum(found) / len("".join(shown))
