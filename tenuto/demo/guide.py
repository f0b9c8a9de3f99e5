"""The guide: the handler that answers in the demo's conversations.

Layer: demo.

With a model it passes the model's stream on; without one it sends a written answer at the pace of a model. It continues
answers of an earlier process, asks people before it deletes, and takes up their steering. Wording may change freely.

The environment names the model: `OPENAI_API_KEY` with `OPENAI_BASE_URL` (any server that speaks Chat Completions), or
`ANTHROPIC_API_KEY`. A key of OpenAI alone is not enough: a key in a user's shell may be there for other programs. The
SDKs are imported on use, and only here.

The written answers stand for a model's. Each file in the folder `answers` is one: the question as its title, then the
answer. `[[row: figure]]` is a figure with its row in `docs/benchmarks.md`; a test compares both. The question and the
answer's meta (`Settled`) determine the whole text, so another process continues an answer after its stored text.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import random
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from tenuto.agents.history import Shape
from tenuto.agents.turn import Steer, Turn
from tenuto.core.errors import Deleted, LocalError, TenutoError
from tenuto.core.model import Json
from tenuto.portal import Writer

if TYPE_CHECKING:  # the server needs no client, and the agents need no server
    from tenuto.app import Hub
    from tenuto.client import Client

FASTEST_S, SLOWEST_S = 0.02, 0.09  # bounds of the mean pause between two tokens
LONGEST_S, THINKING_S = 30.0, 1.5  # duration of an answer, and the pause before it: time to press the buttons
LONGEST_STEERING, MOST_STEERING = 200, 10  # in code points, and texts: all must fit into the answer's meta of 16 KiB

_HELLO = "Hello, and welcome! I am the guide of this demo, and I am made to be interrupted.\n\n"
_MENU = """I know nine answers; here they are:

{questions}

Ask one of them, and break it while it runs. I am no model; the last one says how to use one."""
_MAY_I = "This deletes the messages above for good, so I ask first. Everyone in this chat may reply, in any window.\n\n"
# Several scripts, one of them with combining marks: naive transports break when they split such text.
_CLOSING = "That was all. (A tenuto is a note held for its full value: 保持音 · 테누토 · تينوتو · gehalten 🧜🏽‍♀️)"
_GREETING = re.compile(r"\s*(hello|hi|hey|hallo|moin|good (morning|afternoon|evening))\b[\s\w]{0,20}[!.?,]*\s*", re.I)
_ENOUGH = re.compile(r"\b(short|shorter|brief|briefly|enough)\b", re.IGNORECASE)
ASKS_TO_DELETE = re.compile(r"\s*(please,?\s+)?delete\b", re.IGNORECASE)
_FENCE = re.compile(r"^```", re.MULTILINE)
_FIGURE = re.compile(r"\[\[.+?: ([^:\]]+)\]\]")


class WrittenAnswer(NamedTuple):
    """A question, and its answer in Markdown."""

    question: str
    text: str


class Steering(Struct, frozen=True, kw_only=True):
    """A text that a person sent to a running answer; from offset `at` on the answer takes it up."""

    at: int
    text: str
    by: str
    id: str = ""  # of its command


class Deletion(Struct, frozen=True, kw_only=True):
    """Whether `count` messages may be deleted. `by` is None if no person replied, or no reply was needed."""

    ok: bool
    by: str | None = None
    count: int = 0


class Settled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The values that determine an answer, beside its question. The answer's meta stores them."""

    steering: list[Steering] = []
    decision: Deletion | None = None


@functools.cache
def written_answers() -> tuple[WrittenAnswer, ...]:
    """Return the written answers in their order, read once."""
    files = sorted((Path(__file__).parent / "answers").glob("*.md"))
    pairs = (file.read_text(encoding="utf-8").split("\n", 1) for file in files)
    return tuple(WrittenAnswer(title.removeprefix("# "), _FIGURE.sub(r"\1", text.strip())) for title, text in pairs)


def written_answer(question: str) -> str | None:
    """Return the answer to a question with nearly the same words as `question`; None if there is none."""
    wanted = _stems(question)
    known = [(_stems(one.question), one.text) for one in written_answers()]
    score, text = max((len(wanted & stems) / len(wanted | stems), text) for stems, text in known)
    return text if score >= 0.5 else None  # of the stems of both, at least half are the same


def whole(question: str, settled: Settled) -> str:
    """Return the whole text of the answer to `question` that `settled` determines."""
    greeting = _HELLO if _GREETING.fullmatch(question) else ""
    text = _MAY_I if ASKS_TO_DELETE.match(question) else greeting + (written_answer(question) or _menu())
    text += _outcome(settled.decision) if settled.decision is not None else ""
    for steering in settled.steering:
        before = text[: steering.at]
        end_of_code = "\n```" if len(_FENCE.findall(before)) % 2 else ""
        text = f"{before}{end_of_code}\n\n{steering.by} says: {steering.text}\n\n"
        text += _CLOSING if _ENOUGH.search(steering.text) else written_answer(steering.text) or _menu()
    return text


def paced(text: str, start: int, chance: random.Random) -> Iterator[tuple[str, float]]:
    """Yield `text` from offset `start` on: tokens, which may split emoji and accents, and the delay before each."""
    tokens = max(1.0, len(text) / 4.5)
    mean_s = min(SLOWEST_S, max(FASTEST_S, LONGEST_S / tokens))
    if start == 0:
        yield "", THINKING_S
    for run in re.findall(r" ?\w+| ?[^\w\s]+|\s+", text[start:]):
        at = 0
        while at < len(run):
            size = 12 if run.isspace() else chance.randint(3, 7) if run.isascii() else chance.randint(1, 3)
            yield run[at : at + size], mean_s * chance.uniform(0.6, 1.4)
            at += size


def _menu() -> str:
    return _MENU.format(questions="\n".join(f"{n}. {one.question}" for n, one in enumerate(written_answers(), 1)))


def _outcome(decision: Deletion) -> str:
    if not decision.ok:
        return f"{f'{decision.by} said no' if decision.by else 'No reply came in time'}, so all messages stay."
    deleted = f"{decision.by} said yes. {decision.count} message{'s' if decision.count != 1 else ''} deleted"
    return f"{deleted}, in every window." if decision.count else "There was no message."


_STOP_WORDS = (
    " a an and are as at by can could do does for from get happen happened happens has have how i if in is it many may "
    "me much my of on one or our own run runs should tell that the their this to us use was we what when while who why "
    "will with would you your "
)
_SYNONYMS = {"refr": "f5", "relo": "f5", "die": "kill", "dead": "kill", "cras": "kill", "canc": "stop", "pric": "cost"}


def _stems(text: str) -> frozenset[str]:
    """Return the first letters of the words of `text` that tell questions apart, with one of them for synonyms."""
    words = (word[:4] for word in re.findall(r"\w+", text.casefold()) if f" {word} " not in _STOP_WORDS)
    return frozenset(_SYNONYMS.get(word, word) for word in words)


AGENTS = ("guide~1", "guide~2")  # names of the agents; they share one client id, so their answers have one author
CHANNELS = "demo:*"  # pattern of the channels that the agents serve
LONGEST_QUESTION = 2_000  # in code points; the rest is ignored
APPROVE_S, MOST_DELETED = 120.0, 50  # limits of the wait for people, and of the messages to delete when they agree
MOST_CRASHES = 20  # limit of those that the answer's meta records
OTHER_TEXT = "\n\nI stop here: the written answers changed meanwhile, so my text would not continue this one."

Sleep = Callable[[float], Awaitable[object]]  # a function that waits for a number of seconds


class Guide:
    """The handler, in the hub's process or over the network: `hub` may be a client. `model` answers if it is given."""

    def __init__(self, hub: Hub | Client, model: Model | None, sleep: Sleep = asyncio.sleep) -> None:
        self._hub, self._model, self._sleep = hub, model, sleep

    async def answer(self, turn: Turn) -> None:
        """Answer one message."""
        before = turn.previous
        if self._model is not None and not ASKS_TO_DELETE.match(turn.text):
            await talk(turn, self._model)
            return
        question = turn.text[:LONGEST_QUESTION]
        async with turn.reply(meta={"agent": turn.name}) as message:
            settled = Settled()
            if before is not None and before.id == message.id:  # this attempt continues that answer
                settled = msgspec.convert(before.meta, Settled)
                await message.update(meta=continued(before.meta, message.length, turn.name))
                if not whole(question, settled).startswith(before.text):
                    await message.append(OTHER_TEXT)
                    return
            await self._write_rest(turn, message, question, settled)

    async def _write_rest(self, turn: Turn, message: Writer, question: str, settled: Settled) -> None:
        """Write the missing text, and the text that steering and decisions add."""
        await self._delete(turn, settled.decision)
        while True:
            known = {one.id for one in settled.steering}
            steered = await self._write(turn, message, whole(question, settled), known)
            if steered:
                steering = [*settled.steering, *steered][:MOST_STEERING]
                settled = msgspec.structs.replace(settled, steering=steering)
            elif ASKS_TO_DELETE.match(question) and settled.decision is None:
                settled = msgspec.structs.replace(settled, decision=await self._decide(turn))
            else:
                return
            # Stored before the first token that depends on it, so that another process continues with the same text.
            await message.update(meta=msgspec.to_builtins(settled))
            await self._delete(turn, settled.decision)

    async def _write(self, turn: Turn, message: Writer, text: str, known: set[str]) -> list[Steering]:
        """Write the rest of `text` after the stored text. Return early with steering that arrives meanwhile.

        After a crash what is `known`, by ids, arrives again.
        """
        for token, delay_s in paced(text, message.length, random.Random(turn.message.id)):
            await self._sleep(delay_s)
            steered = await turn.steered(messages=False)  # False, so that another question waits for a turn of its own
            if new := [one for one in steered if one.id not in known]:
                return [await self._steering(turn.channel, steer, message.length) for steer in new]
            if token:
                await message.append(token)
        return []

    async def _earlier_ids(self, turn: Turn) -> list[str]:
        page = await self._hub.history(turn.channel, before=turn.message.created, limit=MOST_DELETED)
        return [message.id for message in page.messages if message.status != "streaming"]

    async def _decide(self, turn: Turn) -> Deletion:
        """Ask the people in the channel whether the earlier messages may be deleted."""
        count = len(await self._earlier_ids(turn))
        if not count:
            return Deletion(ok=True)
        question = f"Delete the {count} messages above?" if count > 1 else "Delete the message above?"
        reply = await turn.ask("approve", {"question": question}, timeout_s=APPROVE_S)
        by = await self._name(turn.channel, reply.data, reply.by) if reply.error is None else None
        return Deletion(ok=reply.ok, by=by, count=count)

    async def _delete(self, turn: Turn, decision: Deletion | None) -> None:
        for message_id in await self._earlier_ids(turn) if decision is not None and decision.ok else ():
            with suppress(Deleted):
                await self._hub.delete(turn.channel, message_id)

    async def _steering(self, channel: str, steer: Steer, at: int) -> Steering:
        text = " ".join(steer.text.split())[:LONGEST_STEERING] or "…"
        return Steering(at=at, text=text, by=await self._name(channel, steer.data, steer.by), id=steer.id)

    async def _name(self, channel: str, data: Json, by: str | None) -> str:
        """Return the name that a person sent with `data`, or has as a member of the channel, or else their id."""
        found = _name_in(data)
        with suppress(TenutoError):  # an agent may have no connection at this moment
            present = [] if found else await self._hub.members(channel)
            members = present if isinstance(present, list) else present.members  # a client returns a list
            found = found or next((_name_in(member.data) for member in members if member.id == by), "")
        return found or by or "a person"


def _name_in(data: Json) -> str:
    name = data.get("name") if isinstance(data, dict) else None
    return " ".join(name.split())[:40] if isinstance(name, str) else ""


def continued(meta: dict[str, Json], at: int, successor: str) -> dict[str, Json]:
    """Return the meta that records, for the page, at which offset one agent ended and another one continued."""
    known = meta.get("continued")
    breaks = known if isinstance(known, list) else []
    one: Json = {"at": at, "by": meta.get("agent"), "successor": successor}
    return {"agent": successor, "continued": [*breaks, one][-MOST_CRASHES:]}


_INSTRUCTIONS = "You are the guide in a small demo chat with several people. Answer briefly, in Markdown."
_CLAUDE, _MAX_TOKENS = "claude-haiku-4-5", 2_000


class Model:
    """A model that writes answers: of Anthropic, or of a server that speaks Chat Completions (`package` openai)."""

    def __init__(self, package: str, name: str, key: str, base_url: str | None) -> None:
        if find_spec(package) is None:
            raise LocalError(
                f"{package.upper()}_API_KEY is set, so the demo answers with that model; that needs the package "
                f"{package}: {sys.executable} -m pip install {package} (or unset the key, and its written answers do)"
            )
        self.name = name
        self.shape: Shape = "text" if package == "openai" else "anthropic"
        self._package = package
        self._options: dict[str, Any] = {"api_key": key, "base_url": base_url, "max_retries": 0}  # `pipe` retries

    @functools.cached_property
    def client(self) -> Any:
        """Return the client of the SDK, which takes seconds to import."""
        module = importlib.import_module(self._package)
        return (module.AsyncOpenAI if self._package == "openai" else module.AsyncAnthropic)(**self._options)

    async def stream(self, conversation: list[dict[str, Json]]) -> Any:
        """Return the stream of an answer. Without a model's name, use the first model that the server lists."""
        if self._package == "anthropic":
            return await self.client.messages.create(
                model=self.name, system=_INSTRUCTIONS, messages=conversation, max_tokens=_MAX_TOKENS, stream=True
            )
        if not self.name:
            listed = await self.client.models.list()
            if not listed.data:
                raise LocalError("the server at OPENAI_BASE_URL lists no model; set OPENAI_MODEL to one")
            self.name = listed.data[0].id
        messages = [{"role": "system", "content": _INSTRUCTIONS}, *conversation]
        return await self.client.chat.completions.create(
            model=self.name, messages=messages, stream=True, stream_options={"include_usage": True}
        )

    def text_in(self, item: Any) -> str:
        """Return the text in one item of the stream, for a plain stream of it."""
        if self._package == "openai":
            return (item.choices[0].delta.content or "") if item.choices else ""
        return item.delta.text if item.type == "content_block_delta" and item.delta.type == "text_delta" else ""


def model_in(environ: Mapping[str, str]) -> Model | None:
    """Return the model that `environ` names, if any. Raises LocalError if its SDK is not installed."""
    if (key := environ.get("OPENAI_API_KEY")) and (base_url := environ.get("OPENAI_BASE_URL")):
        return Model("openai", environ.get("OPENAI_MODEL", ""), key, base_url)
    if key := environ.get("ANTHROPIC_API_KEY"):
        return Model("anthropic", environ.get("ANTHROPIC_MODEL") or _CLAUDE, key, environ.get("ANTHROPIC_BASE_URL"))
    return None


def who_answers(environ: Mapping[str, str]) -> str:
    """Return a line for people that names the answering model and the reason for it. It contains no secret."""
    if environ.get("OPENAI_API_KEY") and environ.get("OPENAI_BASE_URL"):
        host = None
        with suppress(ValueError):  # the only piece that is safe to show: the rest may contain a password
            host = urlsplit(environ["OPENAI_BASE_URL"]).hostname
        which = f"{environ.get('OPENAI_MODEL') or 'the first model'} of {host or 'OPENAI_BASE_URL'}"
        return f"{which} answers: OPENAI_API_KEY and OPENAI_BASE_URL are set."
    if environ.get("ANTHROPIC_API_KEY"):
        return f"{environ.get('ANTHROPIC_MODEL') or _CLAUDE} answers: ANTHROPIC_API_KEY is set."
    wanted = "beside OPENAI_API_KEY" if environ.get("OPENAI_API_KEY") else "and OPENAI_API_KEY, or ANTHROPIC_API_KEY"
    return f"No model answers: the agent has nine written answers. To use a model, set OPENAI_BASE_URL {wanted}."


async def talk(turn: Turn, model: Model) -> None:
    """Answer with `model`. Steering that arrives meanwhile gets a second answer: a model cannot change its first."""
    conversation = await turn.history(model.shape)
    while True:
        async with turn.reply(meta={"model": model.name or None, "agent": turn.name}) as message:
            piped = await message.pipe(functools.partial(model.stream, conversation))
        if not (steered := await turn.steered(messages=False)):
            return
        conversation.append({"role": "assistant", "content": piped.text or "…"})
        conversation.append({"role": "user", "content": "\n".join(steer.text for steer in steered)})
