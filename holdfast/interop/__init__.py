"""Adapters: existing chat clients work on a hub unmodified.

Layer: interop, above `app`.

Each adapter translates the turns of a hub into the wire format of another client, through the public functions of
`Hub` and `holdfast.routes` alone, so that an app can write an adapter of its own in the same way (`docs/interop.md`).
"""

from holdfast.interop.agui import AGUI
from holdfast.interop.ai_sdk import AISDK
from holdfast.interop.openai import OpenAI

__all__ = ["AGUI", "AISDK", "OpenAI"]
