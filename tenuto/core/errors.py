"""The errors that Tenuto raises on purpose, with their codes and HTTP statuses.

Layer: core.

One root, a short tree, and a stable `code` that clients branch on: wording may
change freely, codes and statuses may not (`docs/protocol.md` lists them, and a test compares).
Transports turn these into frames (`problem`), stores turn their driver's exceptions into these.

Each message names the thing, the offending value, the expected value, and the remedy if one exists, as a sentence with
a subject. `tests/test_errors.py` raises each class and looks for the value. Messages show a value through `shown` and a
URL through `shown_url`; they never show a token, a ticket, a cookie or a password.
"""

from __future__ import annotations

from typing import Any, ClassVar

SHOWN_CHARACTERS = 72  # limit for a value shown in a message; an id of 64 characters fits, with its quotes


class TenutoError(Exception):
    """Base of all errors that this package raises on purpose.

    `details` are the numbers that help a client to continue (`length`, `parts`, `version`, `generation`,
    `limit`); they travel with the error on every transport.
    """

    code: ClassVar[str] = "internal"  # stable name of the error; clients branch on it
    status: ClassVar[int] = 500  # HTTP status of the response
    ends_as: ClassVar[str] = "failed"  # final status of a message whose writer fails with this error
    retry: ClassVar[bool] = False  # True: the same request may succeed later, unchanged
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str = "", **details: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.details = details

    def problem(self) -> dict[str, Any]:
        """Return the error as an RFC 9457 problem object, with our `code` and the `details`."""
        return {
            "type": f"urn:tenuto:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.details,
        }


class InvalidRequest(TenutoError):
    """The request does not have the form that the protocol requires."""

    code, status, title = "invalid_request", 400, "Invalid request"


class InvalidText(TenutoError):
    """Text holds half a surrogate pair, which is not a character and has no UTF-8 form."""

    code, status, title = "invalid_text", 400, "Invalid text"


class InvalidName(TenutoError):
    """A channel name or an id breaks the naming rules."""

    code, status, title = "invalid_name", 400, "Invalid name"


class Unauthenticated(TenutoError):
    """The request carries no valid credentials, so its caller is unknown."""

    code, status, title = "unauthenticated", 401, "Unauthenticated"


class Forbidden(TenutoError):
    """The caller lacks the capability that this operation needs."""

    code, status, title = "forbidden", 403, "Forbidden"


class NotWriter(TenutoError):
    """The message belongs to another writer."""

    code, status, title = "not_writer", 403, "Not the writer"


class ForbiddenStatus(TenutoError):
    """Only the server may set this status (`interrupted`)."""

    code, status, title = "forbidden_status", 403, "Forbidden status"


class NoVerifier(TenutoError):
    """The hub has no authenticator, so it accepts only clients of this machine."""

    code, status, title = "no_verifier", 403, "No verifier"


class NotFound(TenutoError):
    """The message, command or path does not exist."""

    code, status, title = "not_found", 404, "Not found"


class NoVisitors(TenutoError):
    """The hub makes no visitors: its verifier is another one."""

    code, status, title = "no_visitors", 404, "No visitors"


class MethodNotAllowed(TenutoError):
    """The path exists, but does not support this method."""

    code, status, title = "method_not_allowed", 405, "Method not allowed"


class Deleted(TenutoError):
    """The message was deleted. A writer must stop; it made no mistake."""

    code, status, title = "deleted", 410, "Deleted"


class UnsupportedMediaType(TenutoError):
    """The body of a request that changes state is not of type `application/json`, or is compressed."""

    code, status, title = "unsupported_media_type", 415, "Unsupported media type"


class Gap(TenutoError):
    """The append's offset lies beyond the end of the part; `length` is the offset to continue from."""

    code, status, title = "gap", 409, "Gap"


class Mismatch(TenutoError):
    """The part holds other text at the append's offset; `length` is the part's length."""

    code, status, title = "mismatch", 409, "Mismatch"


class Finished(TenutoError):
    """The message, or the turn of a message, has ended."""

    code, status, title = "finished", 409, "Finished"


class Fenced(TenutoError):
    """Another writer took the message over; `generation` is the current one, which alone may write."""

    code, status, title = "fenced", 409, "Fenced"


class StillStreaming(TenutoError):
    """The message is streaming; only its writer may change it."""

    code, status, title = "streaming", 409, "Still streaming"


class IdConflict(TenutoError):
    """The id exists already, and its message was created with other content."""

    code, status, title = "id_conflict", 409, "Id conflict"


class AuthorMismatch(TenutoError):
    """The request names an author, and its caller is another client."""

    code, status, title = "author_mismatch", 409, "Author mismatch"


class VersionConflict(TenutoError):
    """The message is not at the version that the request names; `version` is the current one."""

    code, status, title = "version_conflict", 409, "Version conflict"


class AlreadyAnswered(TenutoError):
    """The command already has its reply."""

    code, status, title = "already_answered", 409, "Already answered"


class NoPart(TenutoError):
    """The message has no such part; `parts` is the number of its parts."""

    code, status, title = "no_part", 409, "No such part"


class NotText(TenutoError):
    """The part's type does not accept appended text."""

    code, status, title = "not_text", 409, "Not a text part"


class TooLarge(TenutoError):
    """A size exceeds its limit; `limit` is that limit."""

    code, status, title = "too_large", 413, "Too large"


class TooMany(TenutoError):
    """A rate or a count exceeds its limit."""

    code, status, retry, title = "too_many", 429, True, "Too many"


class Busy(TenutoError):
    """The hub's queue of unstored requests is full. The request was not stored; try again."""

    code, status, retry, title = "busy", 503, True, "Busy"


class StoreUnavailable(TenutoError):
    """The store could not write (disk full, read-only, gone). The request was not stored; try again.

    `details["reason"]`, if there is one, says why without names of files and machines.
    """

    code, status, retry, title = "store_unavailable", 503, True, "Store unavailable"


class Draining(TenutoError):
    """The server is shutting down and accepts no new work; another server will, or this one after its restart."""

    code, status, retry, title = "draining", 503, True, "Draining"


class StoreInUse(TenutoError):
    """Another process has the store's file open."""

    code, status, title = "store_in_use", 503, "Store in use"


class StoreUnusable(TenutoError):
    """The file is damaged, of a newer schema, or not a Tenuto store. A retry will not help."""

    code, status, title = "store_unusable", 500, "Store unusable"


class Damaged(TenutoError):
    """The store can no longer read this message, or not all of a channel: bytes changed on the disk."""

    code, status, title = "damaged", 500, "Damaged"


class StoreFull(TenutoError):
    """The store's data has reached `max_bytes`; `limit` is that size. Only new messages are refused."""

    code, status, title = "store_full", 507, "Store full"


class LocalError(TenutoError):
    """The calling code used an object in a way that cannot work, for example appended after the end."""

    code, title = "misuse", "Misuse"


def shown(value: object) -> str:
    """Return `value` as a message shows it: its `repr`, cut in the middle to at most `SHOWN_CHARACTERS`.

    Never raises and never reads more of `value` than it shows: a peer chooses many of these values.
    """
    if isinstance(value, str) and len(value) > 2 * SHOWN_CHARACTERS:
        # only the ends of the value are shown, so its middle needs no repr
        value = value[:SHOWN_CHARACTERS] + value[-SHOWN_CHARACTERS:]
    elif isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    elif isinstance(value, list | tuple | dict | set | frozenset) and value:
        return f"an object of {len(value)} keys" if isinstance(value, dict) else f"a list of {len(value)} items"
    try:
        text = repr(value)
    except Exception:  # the `__repr__` of a foreign class may raise any exception
        text = f"<{type(value).__name__}>"
    if not text.isascii():
        # a foreign `__repr__` may return half a surrogate pair
        text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= SHOWN_CHARACTERS:
        return text
    head = (SHOWN_CHARACTERS - 3) * 2 // 3
    return f"{text[:head]}...{text[head + 3 - SHOWN_CHARACTERS :]}"


def shown_url(url: str) -> str:
    """Return `url` as a message shows it: bounded, without user, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    # skip user and password: everything up to the last @, since a password may hold any other character unescaped
    if not rest.startswith("/") or scheme in ("http", "https"):  # the @ of a path to a file is part of it
        rest = rest.rpartition("@")[2]
    rest = rest.partition("?")[0].partition("#")[0]
    return shown(f"{scheme}{separator}{rest}")


def failures_in(error: BaseException) -> list[BaseException]:
    """Return the errors of an exception group, as of a TaskGroup, in which that of the block is last; else `error`."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [failure for one in error.exceptions for failure in failures_in(one)]


def causes_of(error: BaseException) -> list[BaseException]:
    """Return `error` and the errors that caused it, also those of groups."""
    causes, seen = [error], {id(error)}
    for one in causes:  # which grows meanwhile
        group = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        for cause in (one.__cause__, *group):
            if cause is not None and id(cause) not in seen:
                seen.add(id(cause))
                causes.append(cause)
    return causes


def is_of_drain(error: BaseException) -> bool:
    """Return whether the drain of a hub has caused `error`, or one of its group."""
    return any(isinstance(cause, Draining) for cause in causes_of(error))


def public_reason(error: BaseException) -> str | None:
    """Return the `public_reason` that `error` carries, as text that can be stored, at most 200 characters."""
    reason = getattr(error, "public_reason", None)
    return reason[:200].encode("utf-8", "replace").decode() if isinstance(reason, str) else None
