"""Exceptions of the client: refusals by the server, and an unreachable server.

Layer: client.

The server's codes become the classes of `core.errors`, so that code runs unchanged in process and over the network. An
unknown code becomes an UnknownProblem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from tenuto.core.errors import LocalError, TenutoError

T = TypeVar("T")

# text fields of each problem; all other fields are numbers that help the client
_TEXT_FIELDS = ("type", "title", "status", "detail", "code", "ref")


class Unreachable(TenutoError):
    """The server did not respond in time. The outcome of the request is unknown; it is safe to repeat it."""

    code, status, retry, title = "unreachable", 503, True, "Unreachable"


class NotTenuto(TenutoError):
    """A server responds at the address, but not as a Tenuto server does: another port, path or program."""

    code, status, title = "not_tenuto", 502, "Not a Tenuto server"


class UnknownProblem(TenutoError):
    """The server refused with a `code` that this client does not know."""

    def __init__(self, detail: str, *, code: str, status: int, title: str, **details: Any) -> None:
        super().__init__(detail or title, **details)
        # Codes of errors whose class has these values as attributes.
        vars(self).update(code=code, status=status, title=title, retry=status in (429, 502, 503, 504))


def error_of(problem: dict[str, Any]) -> TenutoError:
    """Return the exception for a problem object or an `error` frame."""
    code, detail = str(problem.get("code", "internal")), str(problem.get("detail", ""))
    details = {name: value for name, value in problem.items() if name not in _TEXT_FIELDS}
    known = _KNOWN.get(code)
    if known is not None:
        return known(detail, **details)
    status = problem.get("status")
    status = status if isinstance(status, int) else 500
    return UnknownProblem(detail, code=code, status=status, title=str(problem.get("title", code)), **details)


def decode_response(response: dict[str, Any], kind: type[T]) -> T:
    """Return the fields `response` as an object of type `kind`.

    Raises TenutoError if they do not follow the protocol.
    """
    try:
        return msgspec.convert(response, kind)
    except msgspec.ValidationError as error:
        raise TenutoError(
            f"the server's response is not valid: {error}; check that client and server are of compatible versions"
        ) from None


def _classes(base: type[TenutoError]) -> Iterator[type[TenutoError]]:
    yield base
    for one in base.__subclasses__():
        if one.__module__ == TenutoError.__module__ and one is not LocalError:
            yield from _classes(one)


_KNOWN: dict[str, type[TenutoError]] = {one.code: one for one in _classes(TenutoError)}
_KNOWN[Unreachable.code] = Unreachable
