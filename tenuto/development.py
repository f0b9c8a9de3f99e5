"""Reasons of failed messages in development: the exception that ended the block, and its line of code.

Layer: development, beside `portal`; hubs and clients with agents use it.

A reason is stored with its message, and every reader of the channel sees it. So it names the class of the exception and
a line of the app's code, and the exception's text only if the app asks for it: such a text may hold a key, a path or a
customer's data. In production a reason says neither.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

REASON_CHARACTERS = 200
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_OURS = str(Path(__file__).parent)


def failure_reason(error: BaseException, *, debug: bool | None, is_development: bool) -> str | None:
    """Return the reason to store for a message that `error` ended, such as `KeyError in bot.py, line 12`.

    None: it must not name the exception. The setting `debug` decides: True adds the exception's text, False names no
    exception. With None a reason names the exception in development only.
    """
    if not names_exceptions(debug, is_development):
        return None
    kind = type(error)
    module = kind.__module__.partition(".")[0]
    name = kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"
    foreign = (*_LIBRARIES, _OURS, "<")
    lines = traceback.extract_tb(error.__traceback__)
    own = [one for one in lines if "-packages" not in one.filename and not one.filename.startswith(foreign)]
    reason = f"{name} in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else name
    if debug and (text := _text_of(error)):
        reason = f"{reason}: {text}"
    return "".join(letter if letter.isprintable() else " " for letter in reason)[:REASON_CHARACTERS]


def names_exceptions(debug: bool | None, is_development: bool) -> bool:
    """Return whether reasons name the exception (see `failure_reason`)."""
    return is_development if debug is None else debug


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a foreign class may raise any exception here
        return ""
