"""Notices that this process serves Django over WSGI, where no page can reach the hub.

Layer: hub.

Django's `runserver` and WSGI servers never call an ASGI app, so the hub's paths give 404 while `hub.sync` stores
messages that no client will see. `hub.sync` therefore refuses there. Wording may change freely. No part of Django is
imported.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from holdfast.core.errors import LocalError

logger = logging.getLogger("holdfast.hub")

_WSGI = "django.core.handlers.wsgi"
_REMEDY = (
    "serve the ASGI app with `uvicorn mysite.asgi:application` or `daphne mysite.asgi:application`; or put 'daphne' "
    "first in INSTALLED_APPS and set ASGI_APPLICATION, and runserver is an ASGI server"
)


def check_not_wsgi() -> None:
    """Raise LocalError if a view that Django serves over WSGI is calling."""
    frame = sys._getframe() if _WSGI in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__") == _WSGI:
            raise LocalError(
                f"hub cannot be reached: Django serves this request over WSGI, and the hub needs ASGI; {_REMEDY}"
            )
        frame = frame.f_back


def warn_of_runserver() -> None:
    """Log a warning if this process is Django's `runserver` over WSGI."""
    django: Any = sys.modules.get("django.conf")
    if django is None or sys.argv[1:2] != ["runserver"] or not django.settings.configured:
        return
    if not any(app.partition(".")[0] == "daphne" for app in django.settings.INSTALLED_APPS):
        logger.warning("no page can reach the hub: Django's runserver serves WSGI, and the hub needs ASGI; %s", _REMEDY)
