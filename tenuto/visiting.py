"""Visitors of a public page: `Hub(authenticate=visitors())` gives each browser without an account chats of its own.

Layer: visiting, below `app`.

`hub.visitors` has the ids and their proofs, `hub.access.rates` the limits. This module has the public constructor, and
`Visitors.of` for the routes of an app. The arguments and `of` are public (`docs/python.md`).
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from tenuto.core.errors import LocalError, TenutoError, shown
from tenuto.hub.access.identity import Authenticate
from tenuto.hub.access.rates import QuestionLimits
from tenuto.hub.access.visitors import VisitorVerifier, visit_in
from tenuto.hub.checks import check_authenticate
from tenuto.hub.hub import HubCore
from tenuto.transports.access import identify
from tenuto.transports.codec import problem_headers
from tenuto.transports.headers import peer_of
from tenuto.transports.origin import check_peer, refusal_of_get


def visitors(
    verify: Authenticate | None = None,
    *,
    key: str | bytes | Sequence[str | bytes] = (),
    questions_per_minute: int = 10,
    questions_per_day: int = 100,
    address_factor: int = 10,
    keep_days: int | None = 30,
) -> Visitors:
    """Return an `authenticate` for `Hub` that gives each browser a random id, in a signed cookie.

    A visitor may use only the channels `chat:{id}` and `chat:{id}.…`. `verify` is a second verifier, which is called
    for callers without a token that this hub gave a visitor: its identities are persons, whose ids may not have the
    form of a visitor's, and all others are visitors. `key` (at least 32 bytes; several to rotate) signs the ids;
    without one the hub keeps a key in its store. The limits count requests that cost a call of the model: the questions
    of each visitor, and `address_factor` times as many of all visitors of one address. Messages in visitors' channels
    are removed after `keep_days`, unless `retention` has a rule for the channel; None keeps them. Raises LocalError.
    """
    check_authenticate(verify)
    if isinstance(verify, VisitorVerifier):
        raise LocalError("verify must be a verifier of persons, got visitors(); call visitors() once")
    if keep_days is not None and (not isinstance(keep_days, int) or isinstance(keep_days, bool) or keep_days < 1):
        raise LocalError(f"keep_days must be a whole number from 1 on, or None to keep all, got {shown(keep_days)}")
    keys = [key] if isinstance(key, str | bytes) else list(key)
    return Visitors(
        verify,
        keys=[one.encode() if isinstance(one, str) else one for one in keys],
        limits=QuestionLimits(
            per_minute=questions_per_minute, per_day=questions_per_day, address_factor=address_factor
        ),
        keep_days=keep_days,
    )


class Visitors(VisitorVerifier):
    """An `authenticate` that makes each browser without another identity a visitor; made by `visitors`."""

    # The annotations are those that FastAPI needs to call this as a dependency: `Depends(guests.of)`.
    async def of(self, request: HTTPConnection, response: Response = None) -> str:  # type: ignore[assignment]
        """Return the id of the caller of a route of your own: a visitor's, or that of a signed-in person.

        The cookie of a new visitor is set on `response` if it is given, and on the response of `hub.stream_response`
        and of an app within `hub.wrap` in any case. Raises starlette's HTTPException (401, 403, 429, 503) for a caller
        that the hub would refuse; for a request of Django, which has a `scope`, too, the TenutoError itself.
        """
        visit = visit_in(request.scope)  # now, so that the copy of the scope shares it
        scope, hub = dict(request.scope), self.hub
        assert isinstance(hub, HubCore)
        try:
            await check_peer(hub, scope)
            identity = await identify(hub, scope)
        except TenutoError as error:
            if not isinstance(request, HTTPConnection):
                raise
            headers = {name: value for name, value in problem_headers(error).items() if name != "content-type"}
            raise HTTPException(error.status, error.detail, headers) from None
        visit.enter_route(peer_of(scope), refusal_of_get(hub, scope))
        if identity.client_id is None:
            raise LocalError("the identity of the second verifier of visitors() has no client_id; give it one")
        for name, value in visit.headers if response is not None else ():
            response.headers.append(name.decode(), value.decode())
        return identity.client_id
