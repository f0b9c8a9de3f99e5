"""Which channel names and ids are allowed (`docs/protocol.md`, 2.1).

You are in `core`. The alphabet is part of the protocol: widening it is possible, narrowing it is not.
"""

from __future__ import annotations

import re

from holdfast.core.errors import InvalidName

# `\Z`, not `$`: the latter lets a trailing newline through.
_CHANNEL = re.compile(r"[A-Za-z0-9_.:~@=+-]{1,200}\Z")
_ID = re.compile(r"[A-Za-z0-9_.:~@=+-]{1,64}\Z")
_DOTS = (".", "..")  # would vanish from a path


def check_channel(name: object) -> str:
    """Return `name`; raises InvalidName unless it is a channel name."""
    if isinstance(name, str) and _CHANNEL.match(name) and name not in _DOTS:
        return name
    raise InvalidName("a channel name is 1-200 of A-Z a-z 0-9 _ . : ~ @ = + -, and not . or ..")


def check_id(value: object, what: str = "an id") -> str:
    """Return `value`; raises InvalidName unless it is an id. `what` names it in the error."""
    if isinstance(value, str) and _ID.match(value) and value not in _DOTS:
        return value
    raise InvalidName(f"{what} is 1-64 of A-Z a-z 0-9 _ . : ~ @ = + -, and not . or ..")
