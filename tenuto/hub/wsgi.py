"""Notices that this process serves requests over WSGI, where no page can reach the hub.

Layer: hub.

WSGI servers, such as Django's `runserver` and gunicorn's usual workers, never call an ASGI app: the hub's paths give
404 while views store messages that no client will see. A hub on a store of its own therefore does not start there. On
a store that processes share, another process may serve the hub, so there it only warns. Wording may change freely. No
part of Django or gunicorn is imported.

An async view and `async_to_sync` run on threads of their own while the thread of the WSGI server waits, so the stacks
of all threads are read. This happens at the start of a hub only.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

from tenuto.core.errors import LocalError

logger = logging.getLogger("tenuto.hub")

_HANDLER = "django.core.handlers.wsgi"
_SERVERS = ("django.core.servers.basehttp", "gunicorn.workers.sync", "gunicorn.workers.gthread")
_ADAPTERS = ("a2wsgi.wsgi", "asgiref.wsgi", "starlette.middleware.wsgi")  # run a WSGI app below an ASGI server
_REMEDY = (
    "serve the ASGI app with `uvicorn mysite.asgi:application` or `daphne mysite.asgi:application`; or put 'daphne' "
    "first in INSTALLED_APPS and set ASGI_APPLICATION, and runserver is an ASGI server (docs/python.md#django)"
)


def check_not_wsgi(*, is_exclusive: bool) -> None:
    """Raise LocalError if this process serves requests over WSGI; with `is_exclusive` False, log a warning.

    A request that has reached the hub itself, through an adapter, may start it.
    """
    if not _serves_wsgi() or any(name.startswith("tenuto.transports.") for name in _modules(sys._getframe())):
        return
    server = "Django" if _HANDLER in sys.modules else "this process"
    if is_exclusive:
        raise LocalError(
            f"hub cannot be reached: {server} serves requests over WSGI, and the hub needs ASGI; {_REMEDY}"
        )
    logger.warning("no page can reach the hub in this process, which serves WSGI; the hub needs ASGI; %s", _REMEDY)


def warn_of_wsgi() -> None:
    """Log a warning if this process is Django's `runserver` over WSGI, or a worker of gunicorn that serves WSGI."""
    if _is_runserver():
        logger.warning("no page can reach the hub: Django's runserver serves WSGI, and the hub needs ASGI; %s", _REMEDY)
    elif _serves_wsgi():
        logger.warning("no page can reach the hub: this process serves WSGI, and the hub needs ASGI; %s", _REMEDY)


def _is_runserver() -> bool:
    django: Any = sys.modules.get("django.conf")
    if django is None or sys.argv[1:2] != ["runserver"] or not django.settings.configured:
        return False
    return not any(app.partition(".")[0] == "daphne" for app in django.settings.INSTALLED_APPS)


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
