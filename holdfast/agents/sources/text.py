"""Plain text: an (async) iterator of `str`.

| item | becomes |
|---|---|
| a `str` | text of one text part |
| the end of the iterator | the end: an iterator that fails must raise |
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.agents.sources.errors import malformed, translated
from holdfast.agents.sources.vocabulary import Add, Edit, Source
from holdfast.core.errors import HoldfastError


class PlainText(Source):
    name = "text"

    def take(self, event: object) -> Iterator[Edit]:
        if not isinstance(event, str):
            raise malformed(f"an iterator of text yielded a value of type {type(event).__name__}")
        yield Add("text", event)

    def translate(self, error: BaseException) -> HoldfastError | None:
        return translated(error, is_of_sdk=False)

    def end(self) -> Iterator[Edit]:
        return iter(())
