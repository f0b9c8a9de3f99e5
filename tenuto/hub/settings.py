"""Checks of the settings of a hub and of the arguments of its calls: a mistake is reported where it was made.

Layer: hub.

Wording may change freely. A new setting gets its check here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Coroutine
from os import PathLike, fspath

from tenuto.core.errors import LocalError, shown
from tenuto.core.limits import Limits
from tenuto.hub.access.rates import ClientLimits
from tenuto.stores import open_url
from tenuto.stores.base import Bus, Store
from tenuto.stores.bus import open_bus


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
    check_seconds(drain_s, "drain_s")
    if debug is not None and not isinstance(debug, bool):
        raise LocalError(f"debug must be True, False or None, got {shown(debug)}")


def check_seconds(value: object, name: str) -> None:
    """Raise LocalError unless `value` is a number of seconds."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise LocalError(f"{name} must be a number of seconds, 0 or more, got {shown(value)}")


def check_authenticate(authenticate: object) -> None:
    """Raise LocalError unless `authenticate` is None, or takes a scope and may return an awaitable.

    The hub learns only from a request whether a lambda, or a function of unknown signature, returns an awaitable.
    """
    if authenticate is None:
        return
    if _may_be_async(authenticate):
        _check_takes_scope(authenticate)
        return
    if isinstance(authenticate, type) or not callable(authenticate):
        raise LocalError(
            "authenticate must be an async function of the scope, allow_everyone, or a verifier such as "
            f"jwt_verifier(...), got {shown(authenticate)}"
        )
    name = getattr(authenticate, "__name__", "authenticate")
    raise LocalError(
        f"authenticate must be an async function, got the ordinary function {shown(name)}; "
        f"write `async def {name}(scope)`"
    )


def check_job(job: object) -> None:
    """Raise LocalError unless `job` is a coroutine."""
    if isinstance(job, Coroutine):
        return
    name = getattr(job, "__name__", "answer")
    if inspect.isasyncgen(job) or inspect.isgenerator(job):
        raise LocalError(
            f"start_task takes a coroutine, got the generator {shown(name)}; iterate it in an `async def` function, "
            "for example with `await message.pipe(generator)`"
        )
    if callable(job):
        raise LocalError(
            f"start_task takes a coroutine, got the function {shown(name)}; call it: start_task({name}(...))"
        )
    raise LocalError(f"start_task takes a coroutine, the result of an `async def` function, got {shown(job)}")


def _check_takes_scope(authenticate: object) -> None:
    """Raise LocalError if `authenticate` cannot be called with a scope alone."""
    try:
        signature = inspect.signature(authenticate)  # type: ignore[arg-type]  # is a callable
    except (TypeError, ValueError):  # some callables of C have no signature
        return
    try:
        signature.bind({})
    except TypeError as error:
        raise LocalError(
            f"authenticate must take one argument, the ASGI scope, got {shown(authenticate)} with the parameters "
            f"{signature} ({error}); write `async def authenticate(scope)`"
        ) from None


def _may_be_async(function: object) -> bool:
    """Return whether `function` may return an awaitable: it is async, or a callable whose kind does not show it."""
    if isinstance(function, type) or not callable(function):
        return False
    call = inspect.unwrap(function)
    if not inspect.isroutine(call) and inspect.isfunction(type(call).__call__):
        call = type(call).__call__
    if inspect.iscoroutinefunction(call) or not (inspect.isfunction(call) or inspect.ismethod(call)):
        return True
    returned = str(getattr(call, "__annotations__", {}).get("return", ""))
    return call.__name__ == "<lambda>" or "Awaitable" in returned or "Coroutine" in returned
