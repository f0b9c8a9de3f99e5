"""`tenuto f5`: ask a chat page in a real browser, break the answer in the middle, and look what is left of it.

Layer: cli. The page may be of any program: its answer is what grows. Each trial has a browser profile of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from tenuto.client.connection import check_address
from tenuto.core.errors import LocalError, shown, shown_url

try:
    from playwright.async_api import Browser, Error, Frame, Locator, Page, async_playwright
except ImportError:
    raise LocalError("f5 needs the package playwright; install Tenuto with [f5], as its README shows") from None

FIELDS = "textarea, [contenteditable=true], [role=textbox], input[type=text], input:not([type])"
FAULTS = ("reload", "no network", "second window")
OFFLINE_S = 5.0
QUIET_S = 2.0  # a text without a change for this time has ended
READY_S = 5.0  # longest wait for a page that is not ready: it may ignore a question, which is then asked again
LETTERS, GROWTHS = 40, 12  # length of a text, and number of its changes, from which it is an answer that streams
KEPT, EDGE = 0.95, 12  # share of an answer that counts as all of it; letters at the end of a text that may not be final
POLL_MS, FIELD_MS = 100, 1000  # between two looks; for a field in one frame
LOGIN = "give its cookie as --cookie NAME=VALUE, or a login of HTTP as https://USER:PASSWORD@HOST"
SIGN_IN = f"asks for a sign-in; {LOGIN}"
LONGER = "give --input, --send and --answer, a --question with a longer answer, or a longer --patience-s"
PASSWORDS = "input[type=password]:visible"
REMEDIES = {  # by a part of the browser's message
    "selector": "--input, --send and --answer need selectors of CSS, such as '#question'",
    ".launch:": "for a browser, run playwright install chromium",
    "ERR_INVALID_AUTH_CREDENTIALS": LOGIN,
    "": "check the address, its server and --patience-s",
}
# In place of the list of Playwright, with which a frame of another site has no storage.
FEATURES = "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable"
TEXT = Path(__file__).with_name("f5_text.js").read_text(encoding="utf-8")


class Chat(NamedTuple):
    """A page, and how to use it. Without selectors, the field and the answer are guessed, and Enter sends."""

    url: str
    question: str
    field: str | None
    send: str | None
    answer: str | None
    cookies: tuple[str, ...]
    patience_s: float
    screenshots: Path


class Result(NamedTuple):
    """What is left after a fault: the question, a share of the text that was shown, and the rest of the answer."""

    fault: str
    has_question: bool
    kept: float
    goes_on: str  # yes, no, with a gap (of the time offline), or asked again (the model writes it anew)


class Growth:
    """The lines of a page that have grown in place, as an answer does, without `others`, which grew before it."""

    def __init__(self, others: list[str]) -> None:
        self.others, self.times = tuple(others), 0  # `times`: calls of `take` that found growth
        self.lines, self._last = list[str](), list[str]()

    def take(self, lines: list[str]) -> list[str]:
        """Return those lines of the page that have grown since the last call."""
        gone = tuple(old for old in self._last if old not in lines)  # a line that grows is gone as it was
        grown = [line for line in lines if line not in self._last and line.startswith(gone)]
        grown = [line for line in grown if not line.startswith(self.others)]
        self.lines = [one for one in self.lines if not any(line.startswith(one) for line in grown)] + grown
        self.times += bool(grown)
        self._last = lines
        return grown


async def survey(chat: Chat) -> list[Result]:
    """Return what survives each fault. Raises LocalError for a page that cannot be tested, with the remedy."""
    check_address(chat.url, name="URL", example="http://127.0.0.1:8000")
    if not re.search(r"\w", chat.question):  # the question is found by its words
        raise LocalError(f"--question must have a word, got {shown(chat.question)}")
    cut = asyncio.Event()
    path = os.environ.get("TENUTO_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    proxy = await asyncio.start_server(lambda *ends: _proxied(cut, *ends), "127.0.0.1", 0)
    # "<-loopback>": without it, Chromium would not ask the proxy for pages of this machine
    via: Any = {"server": f"socks5://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", "bypass": "<-loopback>"}
    async with proxy, async_playwright() as playwright:
        try:
            async with await playwright.chromium.launch(proxy=via, executable_path=path, args=[FEATURES]) as browser:
                return [await _trial(browser, cut, chat, fault) for fault in FAULTS]
        except Error as error:
            problem = error.message.splitlines()[0].partition(" at http")[0]  # an address may have secrets
            remedy = next(text for part, text in REMEDIES.items() if part in problem)
            raise LocalError(f"{shown_url(chat.url)} cannot be tested: {problem}; {remedy}") from None


async def _proxied(cut: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry a connection of the browser by SOCKS until `cut`: its own offline switch leaves open streams alone."""
    with closing(writer), suppress(OSError, EOFError):
        await reader.readexactly((await reader.readexactly(2))[1])  # the ways to sign in: none is needed
        writer.write(b"\x05\x00")  # version 5, no sign-in
        host = await reader.readexactly((await reader.readexactly(5))[4])  # Chromium names each host
        port = int.from_bytes(await reader.readexactly(2), "big")
        upstream, sink = await asyncio.open_connection(host.decode(), port)
        with closing(sink):
            writer.write(b"\x05\x00\x00\x01" + bytes(6))  # connected
            ends = [asyncio.create_task(one) for one in (cut.wait(), _pump(reader, sink), _pump(upstream, writer))]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _trial(browser: Browser, cut: asyncio.Event, chat: Chat, fault: str) -> Result:
    """Ask in a new profile of the browser, cause `fault` while the answer grows, and return what is left after it."""
    address = urlsplit(chat.url)
    login: Any = {"username": unquote(address.username or ""), "password": unquote(address.password or "")}
    url = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()  # a page at one with a login cannot fetch
    context = await browser.new_context(http_credentials=login if address.username else None)
    cookies = (one.partition("=") for one in chat.cookies)
    await context.add_cookies([{"name": name, "value": value, "url": url} for name, _, value in cookies])
    page, pictures = await context.new_page(), str(chat.screenshots / fault.replace(" ", "-"))
    page.set_default_timeout(chat.patience_s * 1000)
    sent = list[str | bytes]()  # by the page: the question may be in it
    page.on("request", lambda one: sent.extend((one.url, one.post_data_buffer or b"")))
    page.on("websocket", lambda one: one.on("framesent", lambda data: sent.append(data)))
    response = await page.goto(url, wait_until="domcontentloaded")
    if response is not None and (status := response.status) >= 400:
        raise await _problem(page, chat, SIGN_IN if status == 401 else f"has status {status}; check the address")
    growth, is_framed = await _answer(page, chat, sent, f"{pictures}-before.png")
    if fault == "reload":
        await page.reload(wait_until="domcontentloaded")
    elif fault == "no network":
        cut.set()
        await page.wait_for_timeout(OFFLINE_S * 1000)
        cut.clear()
    else:
        url, page = page.url, await context.new_page()
        await page.goto(url, wait_until="domcontentloaded")
    kept, goes_on = await _after_fault(page, chat, growth, is_framed)
    await page.screenshot(path=f"{pictures}-after.png")
    has_question = chat.question in " ".join(await _lines(page, None, is_framed))
    if goes_on == "yes" and fault == "no network":
        continued = await _continued(page, chat, growth.lines[-1], is_framed)
        await page.reload(wait_until="domcontentloaded")
        whole = continued[-1:] + (await _continued(page, chat, growth.lines[-1], is_framed))[-1:]
        if any(_lacks(one, other) for one in continued for other in whole):  # one of its states had a gap
            goes_on = "with a gap"
    await context.close()
    return Result(fault, has_question, kept, goes_on)


async def _after_fault(page: Page, chat: Chat, growth: Growth, is_framed: bool) -> tuple[float, str]:
    """Wait until the answer that has grown before a fault goes on. Return `Result.kept` and `Result.goes_on`."""
    answer, after, again = growth.lines, Growth([*growth.others]), set[str]()  # again: beginnings of it that grow anew
    kept, goes_on = 0.0, "no"
    deadline_s = time.monotonic() + chat.patience_s
    while time.monotonic() < deadline_s and goes_on == "no":
        lines = await _lines(page, chat.answer, is_framed)
        grown = after.take(lines)
        kept = max(kept, sum(_kept(line, "\n".join(lines)) for line in answer) / len("".join(answer)))
        if not any(line.startswith(answer[-1]) for line in after.lines):  # later, a line may begin like one before it
            again |= {line for line in grown if any(one.startswith(line) for one in answer)} - {*answer}
        is_longer = any(line.startswith(answer[-1]) and len(line) >= len(answer[-1]) + LETTERS for line in lines)
        if kept >= KEPT and (is_longer or after.times >= GROWTHS):
            goes_on = "yes"
    # a replay of stored text is faster, so that fewer stages of it are seen
    return kept, "asked again" if len(again) >= GROWTHS // 2 else goes_on


async def _lines(page: Page, selector: str | None, is_framed: bool) -> list[str]:
    """Return the lines of the page, or those of the frames in it, which change when the page is loaded again."""
    await page.wait_for_timeout(POLL_MS)
    lines = list[str]()
    for frame in page.frames:
        if is_framed == (frame != page.main_frame) and frame.url:  # without one it has not loaded, and calls wait
            with suppress(Error):  # it has gone, or loads another page
                lines += await frame.evaluate(TEXT, selector)
    return lines


async def _continued(page: Page, chat: Chat, text: str, is_framed: bool) -> list[str]:
    """Return the lines that began with `text`, each time they had changed, until none has for two seconds."""
    seen = list[str]()
    deadline_s = quiet_s = time.monotonic() + chat.patience_s
    while time.monotonic() < min(deadline_s, quiet_s):
        lines = await _lines(page, chat.answer, is_framed)
        if new := [line for line in lines if line.startswith(text) and line not in seen]:
            seen, quiet_s = seen + new, time.monotonic() + QUIET_S
    return seen


def _lacks(line: str, whole: str) -> bool:
    """Return whether `line` leaves out a piece from the middle of `whole`. Its last letters may not be final yet."""
    same = _kept(line, whole)
    rest = line[same:-EDGE]
    return len(rest) >= EDGE and rest in whole[same:]


async def _answer(page: Page, chat: Chat, sent: list[str | bytes], picture: str) -> tuple[Growth, bool]:
    """Ask; return the growth of the answer under way, and whether a frame has it. Raises LocalError if none comes."""
    with suppress(Error):  # a page with a stream never stops
        await page.wait_for_load_state("networkidle", timeout=READY_S * 1000)
    await page.keyboard.press("Escape")  # closes a welcome
    await page.evaluate(TEXT, chat.answer)  # raises for a wrong selector, as the next line does
    await page.locator(chat.field or FIELDS).or_(page.locator(chat.send or FIELDS)).count()
    frame, field = await _field(page, chat)
    is_framed, idle, words = frame != page.main_frame, Growth([]), re.findall(r"\w+", chat.question)
    for _ in range(int(QUIET_S * 1000 / POLL_MS)):
        idle.take(await _lines(page, chat.answer, is_framed))
    growth, found_last, asked_s, deadline_s = Growth(idle.lines), -1, float("-inf"), time.monotonic() + chat.patience_s
    while (now_s := time.monotonic()) < deadline_s:
        if now_s > asked_s + READY_S and not growth.times:
            seen = map(unquote, [*await _lines(page, None, is_framed), *sent])  # also by earlier trials
            found = sum(all(word in text for word in words) for text in seen)
            # ask first (-1), and again if the page has ignored the question, or its button waits; else it has it
            asked_s = now_s if found_last in (-1, found) else float("inf")
            found_last = found
        if asked_s == now_s:
            with suppress(Error):
                await field.fill(chat.question)
                await field.press("End")  # a page may wait for keys
                await (field.press("Enter") if chat.send is None else frame.click(chat.send, timeout=READY_S * 1000))
        growth.take(await _lines(page, chat.answer, is_framed))
        if growth.times >= GROWTHS and len("".join(growth.lines)) >= LETTERS:
            await page.screenshot(path=picture)
            growth.take(await _lines(page, chat.answer, is_framed))
            return growth, is_framed
    text = f"showed too little text that grows within {chat.patience_s:g} s after the question; {LONGER}"
    raise await _problem(page, chat, text)


async def _field(page: Page, chat: Chat) -> tuple[Frame, Locator]:
    """Return the first field of the page, or else of a frame in it. Raises LocalError if none can be written into."""
    deadline_s = time.monotonic() + chat.patience_s
    while time.monotonic() < deadline_s:
        for frame in [one for one in page.frames if one.url]:
            with suppress(Error):
                if chat.field is None and await frame.locator(PASSWORDS).count():  # a question is no user name
                    raise await _problem(page, chat, SIGN_IN)
                field = frame.locator(chat.field or FIELDS).locator("visible=true").first
                await field.fill("", timeout=FIELD_MS)  # waits for it
                return frame, field
    what = "field for text" if chat.field is None else f"visible {shown(chat.field)}"
    raise await _problem(page, chat, f"has no {what}; check the address, or give --input")


async def _problem(page: Page, chat: Chat, text: str) -> LocalError:
    await page.screenshot(path=(picture := chat.screenshots / "problem.png"))
    found = SIGN_IN if await page.locator(PASSWORDS).count() else text
    return LocalError(f"{shown_url(page.url)} {found}; {picture} shows the page")


def _kept(line: str, text: str) -> int:
    """Return how many letters of `line`, up to the first difference, `text` has."""
    return next((size for size in range(len(line), 0, -1) if line[:size] in text), 0)
