"""A hub in memory and a provider on loopback; no SDK connects, or reports anything, to another host."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from tenuto import Hub
from tenuto.sources import tries
from tests.sources.provider import Provider

_QUIET = {
    "NO_PROXY": "127.0.0.1",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "OPENAI_API_KEY": "sk-none",
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _QUIET.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pauses between tries have the lengths that are documented."""
    monkeypatch.setattr(tries, "jitter", lambda: 1.0)


@pytest.fixture
def client(provider: Provider) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="sk-none", max_retries=0)


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub("memory://", hooks_signals=False, drain_s=0.2)
    yield hub
    await hub.close()
