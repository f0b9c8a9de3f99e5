"""The ids of visitors, and the channels and questions that are theirs.

Layer: core.

A visitor is a browser without an account. Its id shows that it is one: it ends in digits that are computed from the
others, so no id of a person looks like it by accident. The id is public, and proves nothing by itself (`hub.visitors`
signs it). The form is part of stored channel names: a change makes retention keep the channels of older visitors.
"""

from __future__ import annotations

import hashlib
import re

from tenuto.core.names import base32
from tenuto.core.requests import Caller, CreateMessage, Request, SendCommand
from tenuto.core.turns import STEER, rules_of

STEM = "chat:"  # what the names of all visitors' channels begin with
RANDOM_BYTES = 13  # of which an id has 100 bits
_BODY, _CHECK = 20, 5  # digits of base 32
_FORM = re.compile(r"v[0-9a-hjkmnp-tv-z]{25}\Z")


def new_visitor_id(random: bytes) -> str:
    """Return the id of a visitor, 26 lower-case letters and digits, from `RANDOM_BYTES` random bytes."""
    assert len(random) == RANDOM_BYTES
    body = base32(int.from_bytes(random), _BODY)
    return f"v{body}{_check_digits(body)}"


def is_visitor(client_id: str | None) -> bool:
    """Return whether `client_id` has the form of a visitor's id."""
    if client_id is None or _FORM.match(client_id) is None:
        return False
    return client_id[-_CHECK:] == _check_digits(client_id[1:-_CHECK])


def owner_of(channel: str) -> str | None:
    """Return the id of the visitor that owns `channel`, which is `chat:{id}` or `chat:{id}.…`; None for any other."""
    owner = channel.removeprefix(STEM).partition(".")[0]
    return owner if channel.startswith(STEM) and is_visitor(owner) else None


def visitor_of(channel: str, caller: Caller) -> str | None:
    """Return the visitor whose question a request of `caller` is; None for that of a person.

    What the app itself asks in a visitor's channel is a question of that visitor, whatever author the app names.
    """
    if is_visitor(caller.id):
        return caller.id
    return owner_of(channel) if caller.is_app else None


def is_question(request: Request, caller: Caller) -> bool:
    """Return whether `request` makes an agent call its model: a new user message, a `regenerate` or a `steer`."""
    if isinstance(request, CreateMessage):
        return request.role == "user" and not caller.brings_answer
    return isinstance(request, SendCommand) and (rules_of(request.name).restarts or request.name == STEER.name)


def _check_digits(body: str) -> str:
    digest = hashlib.sha256(f"tenuto visitor {body}".encode()).digest()
    return base32(int.from_bytes(digest[:4]), _CHECK)
