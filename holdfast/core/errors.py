"""Everything Holdfast refuses, and how it says so.

Layer: core.

One root, a short tree, and a stable `code` that clients branch on: wording may
change freely, codes and statuses may not (`docs/protocol.md` lists them, and a test compares).
Transports turn these into frames (`problem`), stores turn their driver's exceptions into these.
"""

from __future__ import annotations

from typing import Any, ClassVar


class HoldfastError(Exception):
    """Base of everything this package raises on purpose.

    `details` are the numbers that help a client go on (`length`, `parts`, `version`, `generation`,
    `limit`); they travel with the error on every transport.
    """

    code: ClassVar[str] = "internal"  # stable: clients branch on it
    status: ClassVar[int] = 500  # how HTTP transports report it
    ends_as: ClassVar[str] = "failed"  # how a message ends whose writing this ended
    retry: ClassVar[bool] = False  # may the same request succeed later, unchanged?
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str = "", **details: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.details = details

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem object, with our `code` and the numbers that help."""
        return {
            "type": f"urn:holdfast:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.details,
        }


class InvalidRequest(HoldfastError):
    """The request is not of the form the protocol asks for."""

    code, status, title = "invalid_request", 400, "Invalid request"


class InvalidText(HoldfastError):
    """Text holds half a surrogate pair, which is no character and cannot be UTF-8."""

    code, status, title = "invalid_text", 400, "Invalid text"


class InvalidName(HoldfastError):
    """A channel name or an id is outside the rules."""

    code, status, title = "invalid_name", 400, "Invalid name"


class Unauthenticated(HoldfastError):
    """Nobody is known behind this request."""

    code, status, title = "unauthenticated", 401, "Unauthenticated"


class Forbidden(HoldfastError):
    """The identity does not hold the capability that this operation needs."""

    code, status, title = "forbidden", 403, "Forbidden"


class NotWriter(HoldfastError):
    """The message is written by somebody else."""

    code, status, title = "not_writer", 403, "Not the writer"


class ForbiddenStatus(HoldfastError):
    """The status is the server's alone to give (`interrupted`)."""

    code, status, title = "forbidden_status", 403, "Forbidden status"


class NoVerifier(HoldfastError):
    """Nobody is let in from elsewhere until the hub is told how to tell who they are."""

    code, status, title = "no_verifier", 403, "No verifier"


class NotFound(HoldfastError):
    """There is no such message or path."""

    code, status, title = "not_found", 404, "Not found"


class MethodNotAllowed(HoldfastError):
    """The path exists, but not for this method."""

    code, status, title = "method_not_allowed", 405, "Method not allowed"


class Deleted(HoldfastError):
    """The message was deleted. For a writer this means: stop; it is no mistake of its own."""

    code, status, title = "deleted", 410, "Deleted"


class UnsupportedMediaType(HoldfastError):
    """A body that changes something must be `application/json`."""

    code, status, title = "unsupported_media_type", 415, "Unsupported media type"


class Gap(HoldfastError):
    """Text was sent for a place beyond the end of its part; `length` says where to go on."""

    code, status, title = "gap", 409, "Gap"


class Mismatch(HoldfastError):
    """Other text already stands at this place; `length` is the part's."""

    code, status, title = "mismatch", 409, "Mismatch"


class Finished(HoldfastError):
    """The message is not streaming any more."""

    code, status, title = "finished", 409, "Finished"


class Fenced(HoldfastError):
    """Somebody took the message over; `generation` is the one that may write now."""

    code, status, title = "fenced", 409, "Fenced"


class StillStreaming(HoldfastError):
    """The message is being written; only its writer may change it."""

    code, status, title = "streaming", 409, "Still streaming"


class IdConflict(HoldfastError):
    """The id exists and was created with other content."""

    code, status, title = "id_conflict", 409, "Id conflict"


class VersionConflict(HoldfastError):
    """The message is not at the version that the request names; `version` is the present one."""

    code, status, title = "version_conflict", 409, "Version conflict"


class AlreadyAnswered(HoldfastError):
    """The command has its reply."""

    code, status, title = "already_answered", 409, "Already answered"


class NoPart(HoldfastError):
    """The message has no such part; `parts` is how many it has."""

    code, status, title = "no_part", 409, "No such part"


class NotText(HoldfastError):
    """Text cannot be appended to a part of this type."""

    code, status, title = "not_text", 409, "Not a text part"


class TooLarge(HoldfastError):
    """Something is over its limit; `limit` is the number."""

    code, status, title = "too_large", 413, "Too large"


class TooMany(HoldfastError):
    """A rate or a count is over its limit."""

    code, status, retry, title = "too_many", 429, True, "Too many"


class Busy(HoldfastError):
    """More is waiting to be stored than the hub will hold. Nothing was stored; try again."""

    code, status, retry, title = "busy", 503, True, "Busy"


class StoreUnavailable(HoldfastError):
    """The store could not write (disk full, read-only, gone). Nothing was stored; try again."""

    code, status, retry, title = "store_unavailable", 503, True, "Store unavailable"


class Draining(HoldfastError):
    """The server is leaving and takes no new work; another one, or it restarted, will."""

    code, status, retry, title = "draining", 503, True, "Draining"


class StoreInUse(HoldfastError):
    """Another process holds the store's file."""

    code, status, title = "store_in_use", 503, "Store in use"


class StoreUnusable(HoldfastError):
    """The file is no store of ours, of a newer schema, or damaged. Trying again will not help."""

    code, status, title = "store_unusable", 500, "Store unusable"


class LocalError(HoldfastError):
    """Our caller asked this object for the impossible, for example to append after the end."""

    code, title = "misuse", "Misuse"


def public_reason(error: BaseException) -> str | None:
    """What `error` lets be told of itself: its `public_reason`, as text that can be stored, at most 200 characters."""
    reason = getattr(error, "public_reason", None)
    return reason[:200].encode("utf-8", "replace").decode() if isinstance(reason, str) else None
