"""A real model behind the demo's guide, if the environment names one.

Layer: demo.

The variables are `OPENAI_API_KEY` with `OPENAI_BASE_URL` (any server that speaks Chat Completions), or
`ANTHROPIC_API_KEY`. A key of OpenAI alone is not enough: a key in a user's shell may be there for other programs. The
SDKs are imported on use, and only here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol
from urllib.parse import urlsplit

from tenuto.agents.history import Shape
from tenuto.agents.turn import Turn
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.model import Json

__all__ = ["Model", "model_in", "talk", "who_answers"]

_INSTRUCTIONS = "You are the guide in a small demo chat with several people. Answer briefly, in Markdown."
_MAX_TOKENS = 2_000
_CLAUDE = "claude-haiku-4-5"


class Model(Protocol):
    """A model that writes answers."""

    name: str
    shape: Shape

    @property
    def client(self) -> Any:
        """Return the client of the SDK, which takes seconds to import."""

    async def stream(self, conversation: list[dict[str, Json]]) -> Any:
        """Return the stream of an answer, for `message.pipe`."""

    def text_in(self, chunk: Any) -> str:
        """Return the text of one item of the stream, for a plain stream of it."""


class ModelFailed(Exception):
    """The provider refused the request or sent no answer. People see `public_reason`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.public_reason = type(error).__name__


def model_in(environ: Mapping[str, str]) -> Model | None:
    """Return the model that `environ` names, if any. Raises LocalError if its SDK is not installed."""
    if environ.get("OPENAI_API_KEY") and environ.get("OPENAI_BASE_URL"):
        return ChatCompletions(environ["OPENAI_API_KEY"], environ["OPENAI_BASE_URL"], environ.get("OPENAI_MODEL", ""))
    if environ.get("ANTHROPIC_API_KEY"):
        model, base_url = environ.get("ANTHROPIC_MODEL", _CLAUDE), environ.get("ANTHROPIC_BASE_URL")
        return AnthropicMessages(environ["ANTHROPIC_API_KEY"], base_url, model)
    return None


def who_answers(environ: Mapping[str, str]) -> str:
    """Return a line for people that names the answering model and the reason for it. It contains no secret."""
    if environ.get("OPENAI_API_KEY") and environ.get("OPENAI_BASE_URL"):
        model = environ.get("OPENAI_MODEL") or "the first model"
        return f"{model} of {_host_of(environ['OPENAI_BASE_URL'])} answers: OPENAI_API_KEY and OPENAI_BASE_URL are set."
    if environ.get("ANTHROPIC_API_KEY"):
        return f"{environ.get('ANTHROPIC_MODEL', _CLAUDE)} answers: ANTHROPIC_API_KEY is set."
    wanted = "OPENAI_API_KEY and OPENAI_BASE_URL, or ANTHROPIC_API_KEY"
    if environ.get("OPENAI_API_KEY"):
        wanted = "OPENAI_BASE_URL beside OPENAI_API_KEY"
    return f"No model answers: the agent has nine written answers. To use a model, set {wanted}."


async def talk(turn: Turn, model: Model) -> None:
    """Answer with `model`. Steering that arrives meanwhile gets a second answer: a model cannot change its first."""
    conversation = await turn.history(model.shape)
    while True:
        async with turn.reply(meta={"model": model.name or None, "agent": turn.name}) as message:
            try:
                stream = await model.stream(conversation)
            except TenutoError:
                raise
            except Exception as error:
                raise ModelFailed(error) from error
            piped = await message.pipe(stream)
        steered = await turn.steered(messages=False)
        if not steered:
            return
        conversation += [
            {"role": "assistant", "content": piped.text or "…"},
            {"role": "user", "content": "\n".join(steer.text for steer in steered)},
        ]


class ChatCompletions:
    """A server that speaks Chat Completions."""

    shape: Shape = "text"

    def __init__(self, key: str, base_url: str, model: str) -> None:
        _check_installed("OPENAI_API_KEY", "openai")
        self.name = model
        self._options = {"api_key": key, "base_url": base_url}

    @functools.cached_property
    def client(self) -> Any:
        """Return the client of the SDK, which takes seconds to import."""
        from openai import AsyncOpenAI

        return AsyncOpenAI(**self._options)

    async def stream(self, conversation: list[dict[str, Json]]) -> Any:
        """Return the stream of an answer. Without a model's name, use the first model that the server lists."""
        if not self.name:
            listed = await self.client.models.list()
            if not listed.data:
                raise ModelFailed(
                    LookupError("the server at OPENAI_BASE_URL lists no model; set OPENAI_MODEL to the name of one")
                )
            self.name = listed.data[0].id
        return await self.client.chat.completions.create(
            model=self.name,
            messages=[{"role": "system", "content": _INSTRUCTIONS}, *conversation],
            stream=True,
            stream_options={"include_usage": True},
        )

    def text_in(self, chunk: Any) -> str:
        """Return the text of one item of the stream."""
        return (chunk.choices[0].delta.content or "") if chunk.choices else ""


class AnthropicMessages:
    """The Messages API of Anthropic."""

    shape: Shape = "anthropic"

    def __init__(self, key: str, base_url: str | None, model: str) -> None:
        _check_installed("ANTHROPIC_API_KEY", "anthropic")
        self.name = model
        self._options = {"api_key": key, "base_url": base_url}

    @functools.cached_property
    def client(self) -> Any:
        """Return the client of the SDK, which takes seconds to import."""
        from anthropic import AsyncAnthropic

        return AsyncAnthropic(**self._options)

    async def stream(self, conversation: list[dict[str, Json]]) -> Any:
        """Return the stream of an answer."""
        return await self.client.messages.create(
            model=self.name, system=_INSTRUCTIONS, messages=conversation, max_tokens=_MAX_TOKENS, stream=True
        )

    def text_in(self, chunk: Any) -> str:
        """Return the text of one item of the stream."""
        return chunk.delta.text if chunk.type == "content_block_delta" and chunk.delta.type == "text_delta" else ""


def _host_of(url: str) -> str:
    """Return the host of `url`, the only piece that is safe to show: the rest may contain a password."""
    try:
        return urlsplit(url).hostname or "OPENAI_BASE_URL"
    except ValueError:
        return "OPENAI_BASE_URL"


def _check_installed(variable: str, package: str) -> None:
    """Raise LocalError if the SDK in `package` is not installed."""
    if find_spec(package) is None:
        raise LocalError(
            f"{variable} is set, so the demo answers with that model; that needs the package {package}: "
            f"{sys.executable} -m pip install {package} (or unset the key, and its written answers do)"
        )
