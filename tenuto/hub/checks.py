"""Checks of the settings of a hub, of the arguments of its calls and of its process.

Layer: hub. A mistake is reported where it was made. A new setting gets its check here. `names_of_cell` and
`is_named` show whether a notebook still refers to a hub.
"""

from __future__ import annotations

import logging
import math
import sys
from os import PathLike, fspath
from types import FrameType
from typing import Any

from tenuto.core.errors import LocalError, shown
from tenuto.core.limits import Limits
from tenuto.hub.access.rates import ClientLimits
from tenuto.stores import open_bus, open_url
from tenuto.stores.base import Bus, Store


def check_store(store: object) -> Store:
    """Return `store`, or the store that it names if it is a URL. Raises LocalError."""
    if isinstance(store, str):
        return open_url(store)
    if isinstance(store, PathLike):
        path = fspath(store)
        raise LocalError(f"store must be a URL, got the path {shown(path)}; use Hub(f'sqlite:///{{path}}')")
    if isinstance(store, type) or not callable(getattr(store, "open_documents", None)):
        raise LocalError(
            f"store must be a URL such as 'sqlite:///chat.db' or 'memory://', or a store object, got {shown(store)}"
        )
    return store  # type: ignore[return-value]  # the rest of the interface is the author's promise


def check_bus(bus: object, store: Store) -> Bus | None:
    """Return `bus`, or the bus that it names if it is a URL. Raises LocalError, also if `store` serves one process."""
    if bus is None:
        return None
    if isinstance(bus, type) or not (isinstance(bus, str) or callable(getattr(bus, "unfollow", None))):
        raise LocalError(f"bus must be a URL such as 'redis://host:6379', or None, got {shown(bus)}")
    found: Bus = open_bus(bus) if isinstance(bus, str) else bus  # type: ignore[assignment]
    if store.is_exclusive:
        raise LocalError(
            f"a bus needs a store that processes share, and a {store.name} store serves one process: change the store "
            "to postgresql://role@host/database, or leave the bus out"
        )
    return found


def check_settings(
    *, authenticate: object, limits: object, client_limits: object, flush_ms: object, drain_s: object, debug: object
) -> None:
    """Raise LocalError for a setting that cannot work."""
    check_authenticate(authenticate)
    if limits is not None and not isinstance(limits, Limits):
        raise LocalError(f"limits must be a Limits, as Limits(parts=100) is, got {shown(limits)}")
    if client_limits is not None and not isinstance(client_limits, ClientLimits):
        raise LocalError(
            f"client_limits must be a ClientLimits, as ClientLimits(client_requests=10) is, got {shown(client_limits)}"
        )
    if not isinstance(flush_ms, int) or isinstance(flush_ms, bool) or flush_ms < 0:
        raise LocalError(f"flush_ms must be a whole number of milliseconds, 0 or more, got {shown(flush_ms)}")
    if not isinstance(drain_s, int | float) or isinstance(drain_s, bool) or not 0 <= drain_s < math.inf:
        raise LocalError(f"drain_s must be a number of seconds, 0 or more, got {shown(drain_s)}")
    if debug is not None and not isinstance(debug, bool):
        raise LocalError(f"debug must be True, False or None, got {shown(debug)}")


def check_authenticate(authenticate: object) -> None:
    """Raise LocalError unless `authenticate` is None or may be called. A call shows whether it is async."""
    if authenticate is not None and (isinstance(authenticate, type) or not callable(authenticate)):
        raise LocalError(
            "authenticate must be an async function of the scope, allow_everyone, or a verifier such as "
            f"jwt_verifier(...), got {shown(authenticate)}"
        )


logger = logging.getLogger("tenuto.hub")


def names_of_cell() -> dict[str, Any] | None:
    """Return the namespace of the notebook cell, or of the interactive interpreter, that is making a hub; else None."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:  # in Tenuto
        if frame.f_back is None:
            return None
        frame = frame.f_back
    names = frame.f_globals
    is_interactive = names.get("__name__") == "__main__" and ("get_ipython" in names or hasattr(sys, "ps1"))
    return names if is_interactive and frame.f_code.co_name == "<module>" else None


def is_named(names: dict[str, Any] | None, *objects: object) -> bool:
    """Return whether a variable of a cell refers to one of `objects`, other than a value that IPython shows.

    Code that is in no cell (`names` is None) may have them anywhere.
    """
    if names is None:
        return True
    found = (name for name, value in list(names.items()) if any(value is one for one in objects))
    return any(name.strip("_0123456789") for name in found)


_HANDLER = "django.core.handlers.wsgi"
_SERVERS = ("django.core.servers.basehttp", "gunicorn.workers.sync", "gunicorn.workers.gthread")
_ADAPTERS = ("a2wsgi.wsgi", "asgiref.wsgi", "starlette.middleware.wsgi")  # run a WSGI app below an ASGI server
_PROBLEM = (
    "no page can reach the hub: this process serves WSGI, and the hub needs ASGI; run `uvicorn "
    "mysite.asgi:application` or `daphne mysite.asgi:application`, or put 'daphne' first in INSTALLED_APPS and set "
    "ASGI_APPLICATION (docs/django.md); of Flask it is `hub.wrap(asgiref.wsgi.WsgiToAsgi(app), '/tenuto')`"
)


def check_not_wsgi(*, is_exclusive: bool) -> None:
    """Raise LocalError if this process serves requests over WSGI; with `is_exclusive` False, log a warning.

    A request that has reached the hub itself, through an adapter, may start it.
    """
    if not _serves_wsgi() or any(name.startswith("tenuto.transports.") for name in _modules(sys._getframe())):
        return
    if is_exclusive:
        raise LocalError(_PROBLEM)
    logger.warning(_PROBLEM)


def warn_of_wsgi() -> None:
    """Log a warning if this process is Django's `runserver` over WSGI, or a worker of gunicorn that serves WSGI."""
    if _is_runserver() or _serves_wsgi():
        logger.warning(_PROBLEM)


def _is_runserver() -> bool:
    django: Any = sys.modules.get("django.conf")
    if django is None or sys.argv[1:2] != ["runserver"] or not django.settings.configured:
        return False
    return not any(app.partition(".")[0] == "daphne" for app in django.settings.INSTALLED_APPS)  # daphne's is ASGI


def _serves_wsgi() -> bool:
    """Return whether a thread of this process is in a WSGI server, or in a request of Django over WSGI."""
    if not any(name in sys.modules for name in (_HANDLER, *_SERVERS)):
        return False
    stacks = [set(_modules(frame)) for frame in sys._current_frames().values()]
    return any(not names.isdisjoint((_HANDLER, *_SERVERS)) and names.isdisjoint(_ADAPTERS) for names in stacks)


def _modules(frame: FrameType | None) -> list[str]:
    """Return the modules of the functions on a stack, and for gunicorn's methods those of their worker's class."""
    names = []
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        names.append(name)
        if name.startswith("gunicorn.workers."):
            names.append(type(frame.f_locals.get("self")).__module__)
        frame = frame.f_back
    return names
