"""A real model behind the demo's guide, if the environment names one.

Layer: demo.

The variables are `OPENAI_API_KEY` with `OPENAI_BASE_URL` (any server that speaks Chat Completions), or
`ANTHROPIC_API_KEY`. A key of OpenAI alone is not enough: a key in a user's shell may be there for other programs. The
SDKs are imported on use, and only here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from tenuto.agents.history import Shape
from tenuto.agents.turn import Turn
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.model import Json

_INSTRUCTIONS = "You are the guide in a small demo chat with several people. Answer briefly, in Markdown."
_CLAUDE, _MAX_TOKENS = "claude-haiku-4-5", 2_000


class ModelFailed(Exception):
    """The provider refused the request or sent no answer. People see `public_reason`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.public_reason = type(error).__name__


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
        self._options: dict[str, Any] = {"api_key": key, "base_url": base_url}

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
                raise ModelFailed(LookupError("the server at OPENAI_BASE_URL lists no model; set OPENAI_MODEL to one"))
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
        return Model("anthropic", environ.get("ANTHROPIC_MODEL", _CLAUDE), key, environ.get("ANTHROPIC_BASE_URL"))
    return None


def who_answers(environ: Mapping[str, str]) -> str:
    """Return a line for people that names the answering model and the reason for it. It contains no secret."""
    if environ.get("OPENAI_API_KEY") and environ.get("OPENAI_BASE_URL"):
        host = None
        with contextlib.suppress(ValueError):  # the only piece that is safe to show: the rest may contain a password
            host = urlsplit(environ["OPENAI_BASE_URL"]).hostname
        which = f"{environ.get('OPENAI_MODEL') or 'the first model'} of {host or 'OPENAI_BASE_URL'}"
        return f"{which} answers: OPENAI_API_KEY and OPENAI_BASE_URL are set."
    if environ.get("ANTHROPIC_API_KEY"):
        return f"{environ.get('ANTHROPIC_MODEL', _CLAUDE)} answers: ANTHROPIC_API_KEY is set."
    wanted = "beside OPENAI_API_KEY" if environ.get("OPENAI_API_KEY") else "and OPENAI_API_KEY, or ANTHROPIC_API_KEY"
    return f"No model answers: the agent has nine written answers. To use a model, set OPENAI_BASE_URL {wanted}."


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
        if not (steered := await turn.steered(messages=False)):
            return
        conversation.append({"role": "assistant", "content": piped.text or "…"})
        conversation.append({"role": "user", "content": "\n".join(steer.text for steer in steered)})
