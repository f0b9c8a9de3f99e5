"""Which channel names and ids are allowed (`docs/protocol.md`, 2.1).

Layer: core.

The alphabet is part of the protocol: widening it is possible, narrowing it is not.
"""

from __future__ import annotations

import re

from holdfast.core.errors import InvalidName

# `\Z`, not `$`: the latter lets a trailing newline through.
_CHANNEL = re.compile(r"[A-Za-z0-9_.:~@=+-]{1,200}\Z")
_ID = re.compile(r"[A-Za-z0-9_.:~@=+-]{1,64}\Z")
COMMAND_MARK = "!"  # before a command's id where messages are known by theirs; not in the alphabet
# Crockford's base 32: in order of their values, so that ids sort by time, and without letters that look alike.
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_DOTS = (".", "..")  # would vanish from a path


def check_channel(name: object) -> str:
    """Return `name`; raises InvalidName unless it is a channel name."""
    if isinstance(name, str) and _CHANNEL.match(name) and name not in _DOTS:
        return name
    raise InvalidName("a channel name is 1-200 of A-Z a-z 0-9 _ . : ~ @ = + -, and not . or ..")


def check_key(value: str) -> str:
    """Return `value`, the id of a message, or of a command with its mark; raises InvalidName."""
    check_id(value.removeprefix(COMMAND_MARK))
    return value


def command_key(command_id: str) -> str:
    """The id under which entries and stores know a command."""
    return COMMAND_MARK + command_id


def command_id(key: str) -> str:
    """The inverse of `command_key`: the id by which clients know a command."""
    return key.removeprefix(COMMAND_MARK)


def is_id(value: str) -> bool:
    """Is `value` an id?"""
    return _ID.match(value) is not None and value not in _DOTS


def check_id(value: object, what: str = "an id") -> str:
    """Return `value`; raises InvalidName unless it is an id. `what` names it in the error."""
    if isinstance(value, str) and is_id(value):
        return value
    raise InvalidName(f"{what} is 1-64 of A-Z a-z 0-9 _ . : ~ @ = + -, and not . or ..")


def is_own_name(name: str | None, client_id: str | None) -> bool:
    """Is `name`, of a member or an agent, the client's own id, or that with `~` and a suffix?"""
    own = client_id or "anonymous"
    return name is not None and (name == own or name.startswith(f"{own}~"))


def client_of(member_id: str) -> str:
    """Whose member it is: a client's are its id, and that with `~` and a suffix."""
    return member_id.partition("~")[0]


def base32(number: int, width: int) -> str:
    """`number` in `width` digits of Crockford's base 32, lower case."""
    return "".join(_DIGITS[(number >> (5 * place)) & 31] for place in range(width - 1, -1, -1))
