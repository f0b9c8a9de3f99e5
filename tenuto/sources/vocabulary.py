"""The five edits that every source translates its SDK's events into, and `Writing` writes.

Layer: sources.

This may change freely; the modules of this folder are its only users.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from tenuto.core.errors import TenutoError
from tenuto.core.model import Json, Part
from tenuto.sources.errors import translated

# The states of a tool part. A handler that runs tools itself writes the output of parts in the state `called`.
INPUT, CALLED, DONE, ERROR = "input", "called", "done", "error"


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a part. `key` names the part within its source from now on; for a known key there is no effect."""

    key: Hashable
    part: Part


@dataclass(frozen=True, slots=True)
class Add:
    """Add text to a part, or to a tool's input; for an unknown key first open a part of type `kind`."""

    key: Hashable
    text: str
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Set:
    """Set fields of an open part. An unknown key has no effect, unless `fields` is a whole part."""

    key: Hashable
    fields: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Drop:
    """Withdraw a part, and free its key. A message cannot lose parts, so the part becomes an empty text."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class Meta:
    """Set values in the message's meta.

    Usage of the same response (`of`) replaces the earlier one; that of several responses is added.
    """

    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    of: Hashable = None


Edit = Open | Add | Set | Drop | Meta


def tool(call: str, name: str, **fields: Json) -> Part:
    """Return a tool part. Its input is still to come, unless `fields` contain it."""
    return {"type": "tool", "call": call, "name": name, "state": INPUT, **fields}


def free(kind: str, **fields: Json) -> Part:
    """Return a source or file part without the fields that are None."""
    return {"type": kind, **{name: value for name, value in fields.items() if value is not None}}


class Source:
    """The translator of one provider's stream. A subclass maps the provider's events to edits."""

    name: ClassVar[str]

    def events(self, stream: object) -> object:
        """Return the (async) iterator of events behind `stream`."""
        return stream

    def take(self, event: object) -> Iterator[Edit]:
        """Yield the edits for `event`; none if it is unknown. Raises UpstreamError for a reported error or bad data."""
        raise NotImplementedError

    def end(self) -> Iterator[Edit]:
        """Yield the edits for the end of the stream. Raises UpstreamEnded if the provider's end event is missing."""
        raise NotImplementedError

    def translate(self, error: BaseException) -> TenutoError | None:
        """Return the Tenuto error for an exception of the stream; None if the exception is the app's own."""
        return translated(error, is_of_sdk=True)

    async def stop(self, stream: object) -> None:
        """Do the steps that the SDK needs, besides closing, to end the stream early."""
