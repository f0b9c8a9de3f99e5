"""What went wrong, as exceptions: what the server refused, and what a client meets by itself.

Layer: client.

The server's codes come back as the classes of `core.errors`, so that code runs unchanged in
process and over the network; a code that is not known here stays readable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from holdfast.core.errors import HoldfastError, LocalError

T = TypeVar("T")

_SAID = ("type", "title", "status", "detail", "code", "ref")  # of a problem; the rest are numbers that help


class Unreachable(HoldfastError):
    """The server did not answer in time. Whether it did what was asked is not known; asking again is safe."""

    code, status, retry, title = "unreachable", 503, True, "Unreachable"


class NotHoldfast(HoldfastError):
    """A server responds at the address, but not as a Holdfast server does: another port, path or program."""

    code, status, title = "not_holdfast", 502, "Not a Holdfast server"


class UnknownProblem(HoldfastError):
    """The server refused for a reason that this client does not know; `code` is as the server said it."""

    def __init__(self, detail: str, *, code: str, status: int, title: str, **details: Any) -> None:
        super().__init__(detail or title, **details)
        # Of this one refusal, where a known one has them from its class.
        vars(self).update(code=code, status=status, title=title, retry=status in (429, 502, 503, 504))


def error_of(problem: dict[str, Any]) -> HoldfastError:
    """The exception that a problem object, or an `error` frame, stands for."""
    code, detail = str(problem.get("code", "internal")), str(problem.get("detail", ""))
    details = {name: value for name, value in problem.items() if name not in _SAID}
    known = _KNOWN.get(code)
    if known is not None:
        return known(detail, **details)
    status = problem.get("status")
    status = status if isinstance(status, int) else 500
    return UnknownProblem(detail, code=code, status=status, title=str(problem.get("title", code)), **details)


def read_answer(answer: dict[str, Any], kind: type[T]) -> T:
    """`answer` as a `kind`. Raises HoldfastError where the server does not speak our protocol."""
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise HoldfastError(f"the server's answer is not understood: {error}") from None


def _classes(base: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    yield base
    for one in base.__subclasses__():
        if one.__module__ == HoldfastError.__module__ and one is not LocalError:
            yield from _classes(one)


_KNOWN: dict[str, type[HoldfastError]] = {one.code: one for one in _classes(HoldfastError)}
_KNOWN[Unreachable.code] = Unreachable
