"""Plain text: an (async) iterator of `str`.

| item | becomes |
|---|---|
| a `str` | text of one text part |
| the end of the iterator | the end: whoever writes the iterator raises when something went wrong |
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.agents.sources.errors import malformed, translated
from holdfast.agents.sources.vocabulary import Said, Source, Text
from holdfast.core.errors import HoldfastError


class PlainText(Source):
    name = "text"

    def take(self, event: object) -> Iterator[Said]:
        if not isinstance(event, str):
            raise malformed(f"a {type(event).__name__} among text")
        yield Text("text", event)

    def translate(self, error: BaseException) -> HoldfastError | None:
        return translated(error, is_of_sdk=False)

    def end(self) -> Iterator[Said]:
        return iter(())
