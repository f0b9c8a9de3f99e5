"""What every source says, whatever its SDK calls it: the five changes that `Writing` writes.

Layer: agents.sources.

All of it may change freely; the modules of this folder are its only users.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from holdfast.agents.sources.errors import translated
from holdfast.core.errors import HoldfastError
from holdfast.core.model import Json, Part

# The states of a tool part. A handler that runs tools itself answers those that are `called`.
INPUT, CALLED, DONE, ERROR = "input", "called", "done", "error"


@dataclass(frozen=True, slots=True)
class Open:
    """A part begins. `key` names it within its source from now on; a key that is known opens nothing."""

    key: Hashable
    part: Part


@dataclass(frozen=True, slots=True)
class Text:
    """More text of a part, a tool's input too; an unknown key opens a part of type `kind`."""

    key: Hashable
    text: str
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Change:
    """Other fields of a part that is open; of an unknown key nothing, unless `fields` is a whole part."""

    key: Hashable
    fields: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Drop:
    """A part does not stand, and its key is free again. Messages keep their parts: it becomes an empty text."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class Meta:
    """What goes to the message's meta. The usage of one response (`of`) replaces, those of several are added."""

    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    of: Hashable = None


Said = Open | Text | Change | Drop | Meta


def tool(call: str, name: str, **fields: Json) -> Part:
    """A tool part, its input still to come unless `fields` say otherwise."""
    return {"type": "tool", "call": call, "name": name, "state": INPUT, **fields}


def free(kind: str, **fields: Json) -> Part:
    """A source or file part, without the fields that are not known."""
    return {"type": kind, **{name: value for name, value in fields.items() if value is not None}}


class Source:
    """One provider's stream, understood event by event. A subclass says which events map to which parts."""

    name: ClassVar[str]

    def events(self, stream: object) -> object:
        """The (async) iterator of events behind `stream`."""
        return stream

    def take(self, event: object) -> Iterator[Said]:
        """What `event` means; an unknown one nothing. Raises UpstreamError when it reports an error or is malformed."""
        raise NotImplementedError

    def end(self) -> Iterator[Said]:
        """What the end of the stream means. Raises UpstreamEnded when the provider's own end did not come before."""
        raise NotImplementedError

    def translate(self, error: BaseException) -> HoldfastError | None:
        """What an exception out of the stream means; None when it is the app's own."""
        return translated(error, is_of_sdk=True)

    async def stop(self, stream: object) -> None:
        """Whatever the SDK needs besides closing, when the stream is left early."""
