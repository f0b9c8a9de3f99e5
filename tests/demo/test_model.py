"""With a key in the environment the guide passes a real SDK's stream on; the provider is a fake on loopback.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import sys

import pytest

from tenuto.core.errors import LocalError
from tenuto.core.model import PIPED
from tenuto.demo.app import build
from tenuto.demo.guide import who_answers
from tests.demo.test_app import Demo, demo, text_of
from tests.sources.provider import Provider
from tests.sources.wires import (
    CHAT_USAGE,
    TEXT,
    chat_end,
    chat_said,
    claude_begin,
    claude_end,
    claude_said,
    claude_thought,
)

KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the keys and proxies of the environment that runs the tests."""
    for name in (*KEYS, "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def openai(provider: Provider, **more: str) -> dict[str, str]:
    return {"OPENAI_API_KEY": "sk-none", "OPENAI_BASE_URL": provider.url, "OPENAI_MODEL": "gpt-test", **more}


async def test_a_compatible_server_answers(provider: Provider) -> None:
    provider.will_say([*chat_said("Hello ", "there"), *chat_end()])
    async with demo("memory://", **openai(provider)) as here:
        assert (await here.http.get("/demo/info")).json()["model"] == "gpt-test"
        await here.ask()
        answer = await here.answer()
        assert (text_of(answer), answer["status"], answer["author"]) == ("Hello there", "complete", "guide")
        about = {name: value for name, value in answer["meta"].items() if name != PIPED}
        assert about == {"model": "gpt-test", "agent": "guide", "finish_reason": "stop", "usage": CHAT_USAGE}
        path, body = provider.requests[0]
        assert path == "/chat/completions"
        assert body["messages"][-1] == {"role": "user", "content": "What happens when I press F5?"}


async def test_the_first_listed_model_answers_by_default(provider: Provider) -> None:
    listed = b'{"object": "list", "data": [{"id": "its-own", "object": "model", "created": 1, "owned_by": "x"}]}'
    provider.will_say([listed], [*chat_said("Hi"), *chat_end()])
    async with demo("memory://", **openai(provider, OPENAI_MODEL="")) as here:
        await here.ask()
        assert text_of(await here.answer()) == "Hi"
        assert [path for path, _ in provider.requests] == ["/models", "/chat/completions"]
        assert provider.requests[1][1]["model"] == "its-own"


async def test_anthropic_answers_with_reasoning_in_a_part_of_its_own(provider: Provider) -> None:
    provider.will_say(
        [*claude_begin(), *claude_thought(), *claude_said("Hello \ud83d", "\ude00, world"), *claude_end()]
    )
    async with demo("memory://", ANTHROPIC_API_KEY="sk-none", ANTHROPIC_BASE_URL=provider.url) as here:
        await here.ask()
        answer = await here.answer()
        assert [part["type"] for part in answer["parts"]] == ["reasoning", "text"]
        assert answer["parts"][1]["text"] == TEXT
        path, body = provider.requests[0]
        assert path.startswith("/v1/messages")
        assert body["messages"] == [
            {"role": "user", "content": [{"type": "text", "text": "What happens when I press F5?"}]}
        ]


async def test_steering_gets_a_second_answer(provider: Provider) -> None:
    is_resumed, (first, *rest) = asyncio.Event(), [*chat_said("Long, ", "longer"), *chat_end()]
    provider.will_say([first, is_resumed, *rest], [*chat_said("Short"), *chat_end()])
    async with demo("memory://", **openai(provider)) as here:
        await here.ask()
        await here.answer(status="streaming")
        await here.post("commands", {"name": "steer", "target": "q1", "data": {"text": "shorter"}})
        is_resumed.set()
        assert await answers(here, 2) == ["Long, longer", "Short"]
        assert provider.requests[1][1]["messages"][-2:] == [
            {"role": "assistant", "content": "Long, longer"},
            {"role": "user", "content": "shorter"},
        ]


async def answers(here: Demo, count: int) -> list[str]:
    """Return the texts of the answers when `count` of them are complete."""
    async with asyncio.timeout(60):
        async for _ in here.hub.subscribe("demo:test"):
            found = [one for one in await here.messages() if one.get("reply_to") and one["status"] == "complete"]
            if len(found) >= count:
                return [text_of(one) for one in found]
    raise AssertionError


async def test_a_request_to_delete_is_handled_before_the_model(provider: Provider) -> None:
    async with demo("memory://", **openai(provider)) as here:
        await here.ask(text="Delete this")
        assert text_of(await here.answer()).endswith("There was no message.")
        assert provider.requests == []


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({}, "No model answers: the agent has nine written answers"),
        ({"OPENAI_API_KEY": "sk-secret"}, "nine written answers. To use a model, set OPENAI_BASE_URL"),
        (
            {"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": "https://me:secret@models.example/v1?key=secret"},
            "the first model of models.example answers",
        ),
        ({"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": "http://[::1]/v1", "OPENAI_MODEL": "qwen"}, "qwen of ::1 "),
        ({"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": "http://[secret"}, "the first model of OPENAI_BASE_URL"),
        ({"ANTHROPIC_API_KEY": "sk-secret", "ANTHROPIC_MODEL": ""}, "claude-haiku-4-5 answers: ANTHROPIC_API_KEY"),
        ({"ANTHROPIC_API_KEY": "sk-secret", "ANTHROPIC_MODEL": "claude-x"}, "claude-x answers"),
    ],
)
def test_the_line_about_the_model_contains_no_secret(environ: dict[str, str], text: str) -> None:
    line = who_answers(environ)
    assert text in line
    assert "secret" not in line


@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_a_missing_sdk_is_named_with_its_install_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    environ = {f"{package.upper()}_API_KEY": "sk-none", "OPENAI_BASE_URL": "http://127.0.0.1:1"}
    with pytest.raises(LocalError, match=f"pip install {package}"):
        build("memory://", environ=environ)
