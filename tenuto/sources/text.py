"""Plain text: an (async) iterator of `str`.

| item | becomes |
|---|---|
| a `str` | text of one text part |
| a whole server-sent event, if the caller did not name the kind of the stream | LocalError, which names the remedy |
| the end of the iterator | the end: an iterator that fails must raise |
"""

from __future__ import annotations

from collections.abc import Iterator

from tenuto.core.errors import LocalError, TenutoError
from tenuto.sources.reading import Add, Edit, Source, malformed, translated
from tenuto.sources.sse_text import REMEDY, is_whole_frame


class PlainText(Source):
    name = "text"

    def __init__(self, unnamed: str | None = None) -> None:
        """Read text; `unnamed` is the name of the option for the kind of the stream, if the caller left it out."""
        self._unnamed = unnamed

    def take(self, event: object) -> Iterator[Edit]:
        if not isinstance(event, str):
            raise malformed(f"an iterator of text yielded a value of type {type(event).__name__}")
        if self._unnamed is not None and is_whole_frame(event):
            raise LocalError(
                f"the stream began with text, and a later item is a whole server-sent event; {REMEDY}, or pass "
                f"{self._unnamed}='text' to store such items as they are"
            )
        yield Add("text", event)

    def translate(self, error: BaseException) -> TenutoError | None:
        return translated(error, is_of_sdk=False)

    def end(self) -> Iterator[Edit]:
        return iter(())
