"""Adapters: existing chat clients work on a hub unmodified.

Layer: interop, above `app`. Each adapter translates the turns of a hub into the wire format of another client, through
the public functions of `Hub` and `tenuto.routes` alone, so that an app can write an adapter of its own in the same way
(`docs/python.md`).
"""

from tenuto.interop.agui import AGUI
from tenuto.interop.ai_sdk import AISDK
from tenuto.interop.openai import OpenAI

__all__ = ["AGUI", "AISDK", "OpenAI"]
