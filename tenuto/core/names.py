"""The rules for channel names, ids and patterns of channels (`docs/protocol.md`, 2.1).

Layer: core.

The alphabet is part of the protocol: widening it is possible, narrowing it is not.
"""

from __future__ import annotations

import re

from tenuto.core.errors import InvalidName, LocalError, shown

# `\Z` instead of `$`, because `$` also matches before a trailing newline.
_CHANNEL = re.compile(r"[A-Za-z0-9_.:~@=+-]{1,200}\Z")
_ID = re.compile(r"[A-Za-z0-9_.:~@=+-]{1,64}\Z")
# prefix of a command's id where ids of messages are also possible; no id of a message may contain it
COMMAND_MARK = "!"
# The digits of Crockford's base 32. They are in order, so that ids sort by time; letters that look alike are left out.
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_DOTS = (".", "..")  # valid names but for URL parsers, which remove them from a path


def check_channel(name: object) -> str:
    """Return `name` as a plain `str`; raises InvalidName unless it is a channel name."""
    if isinstance(name, str) and _CHANNEL.match(name) and name not in _DOTS:
        return str.__str__(name)  # no store encodes a subclass
    raise InvalidName(
        f"channel name must be 1-200 characters of A-Z a-z 0-9 _ . : ~ @ = + -, and not . or .., got {shown(name)}"
    )


def check_prefix(prefix: object) -> str:
    """Return `prefix`; raises InvalidName unless channel names may begin with it. Any name begins with ""."""
    if isinstance(prefix, str) and (not prefix or _CHANNEL.match(prefix)):
        return prefix
    raise InvalidName(
        f"prefix must be at most 200 characters of A-Z a-z 0-9 _ . : ~ @ = + -, without a star, got {shown(prefix)}"
    )


def check_key(value: str) -> str:
    """Return `value` if it is the id of a message, or of a command with its prefix; raises InvalidName."""
    check_id(value.removeprefix(COMMAND_MARK))
    return value


def command_key(command_id: str) -> str:
    """Return the id under which entries and stores know a command."""
    return COMMAND_MARK + command_id


def command_id(key: str) -> str:
    """Return the id by which clients know a command: the inverse of `command_key`."""
    return key.removeprefix(COMMAND_MARK)


def is_id(value: str) -> bool:
    """Return whether `value` is a valid id."""
    return _ID.match(value) is not None and value not in _DOTS


def check_id(value: object, what: str = "an id") -> str:
    """Return `value` as a plain `str`; raises InvalidName unless it is a valid id. `what` names it in the error."""
    if isinstance(value, str) and _ID.match(value) and value not in _DOTS:
        return str.__str__(value)
    raise InvalidName(
        f"{what} must be 1-64 characters of A-Z a-z 0-9 _ . : ~ @ = + -, and not . or .., got {shown(value)}"
    )


def is_own_name(name: str | None, client_id: str | None) -> bool:
    """Return whether `name`, of a member or an agent, is the client's own id, alone or with `~` and a suffix."""
    own = client_id or "anonymous"
    return name is not None and (name == own or name.startswith(f"{own}~"))


def client_of(member_id: str) -> str:
    """Return the id of the client that owns `member_id`, which is that id, alone or with `~` and a suffix."""
    return member_id.partition("~")[0]


def base32(number: int, width: int) -> str:
    """Return `number` in `width` digits of Crockford's base 32, lower case."""
    return "".join([_DIGITS[number >> shift & 31] for shift in range(5 * width - 5, -1, -5)])


def is_pattern(text: str) -> bool:
    stem = text.removesuffix("*")
    return "*" not in stem and (stem == text or not stem or stem[-1] in ":/.")


def invalid_pattern(text: str) -> str:
    """Return the text of the error for a `text` that is not a valid pattern."""
    return f"pattern must have its star only at the end, alone or after one of : / ., got {shown(text)}"


def matches(pattern: str, channel: str) -> bool:
    if pattern.endswith("*"):
        return channel.startswith(pattern[:-1])
    return channel == pattern


def check_pattern(pattern: str) -> str:
    """Return `pattern`. Raises LocalError unless it is valid."""
    if not isinstance(pattern, str):  # such as a function, by a decorator without its parentheses
        raise LocalError(f'pattern must be a string, as in "chat:*", got {shown(pattern)}')
    if not is_pattern(pattern):
        raise LocalError(invalid_pattern(pattern))
    return pattern
