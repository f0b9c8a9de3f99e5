"""The public names of Python: the one list behind their reference, on the site, and the snapshot `tests/api.txt`.

Layer: scripts. `docs/stability.md` says the same in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import griffe

ROOT = Path(__file__).parents[1]
WHOLE = ("tenuto", "tenuto.client", "tenuto.interop", "tenuto.routes", "tenuto.sources", "tenuto.testing")  # `__all__`
# public names of modules with others
NAMED = {
    "tenuto.core.errors": None,  # all classes of errors
    "tenuto.core.events": ("ServerEvent",),
    "tenuto.core.view": ("View",),
    "tenuto.hub.access.tokens": ("jwt_verifier",),
}
TYPES = "types"  # in place of a module: those that the public names name

_WRITER = "append attempt channel error finish flush generation id is_over length meta open part pipe update"
# the public members of classes that have others without an underscore, which serve other modules of Tenuto
MEMBERS = {
    "tenuto.Hub": "__init__ adopt agent archive authorize backup close command create delete delete_channel drain "
    "finish history info install is_draining members message on on_drain pending_commands read reply serve_socket "
    "signal start start_task stats stream_response subscribe sync take_over turn update wrap",
    "tenuto.Identity": "capabilities capabilities_on check client_id expires_at_ms grants has may_list",
    "tenuto.MessageWriter": _WRITER,
    "tenuto.Subscription": "batches channel cursor",
    "tenuto.Turn": "ask attempt channel history is_cancelled message name previous progress reply request run_tools "
    "sleep steered step step_key step_progress text was_interrupted",
    "tenuto.client.ChannelView": "channel close commands cursor error gaps live member_count members message messages "
    "more older state",
    "tenuto.client.ClaimedTurn": "channel generation is_lost message outcome progress tries",
    "tenuto.client.Presence": "channel enter error leave update",
    "tenuto.client.RemoteWriter": _WRITER + " text",
    "tenuto.client.Subscription": "batches channel cursor",
    "tenuto.client.SyncWriter": "append attempt channel finish flush id length meta part update",
    "tenuto.client.Timing": "__init__ backoff_cap_s backoff_s connect_s leave_s open_s request_s response_s retry_s "
    "send_s silence_s stable_s",
    "tenuto.routes.Access": "agents body cancel_turns check command conversation conversations create delete_turn "
    "follow history identity is_interrupted limits open_turns options pending_commands remember reply stream taken_by "
    "turn",
    "tenuto.routes.RouteSocket": "access close frame_bytes frames send stream",
    "tenuto.routes.TurnResponse": "",
    "tenuto.sources.Piped": "finish_reason model text tool_calls usage",
    "tenuto.sources.SoFar": "attempt parts response_id text",
    "tenuto.sources.ToolCall": "arguments call input name part",
    "types.Archive": "channels export forget import_file verify",
    "types.SyncHub": "close create delete finish history message update",
    "types.SyncPresence": "channel update",
    "types.SyncSubscription": "batches channel cursor",
    "types.Visitors": "of",
    "types.Writer": "append attempt finish flush id is_over length meta part pipe update",
}
DATA = ("Struct", "NamedTuple", "TypedDict")


class Name(NamedTuple):
    """A public name with its public members."""

    module: str  # from which users import it, or `TYPES`
    name: str
    found: griffe.Object | None  # None: a constant that is assigned with others, which griffe does not read
    members: dict[str, griffe.Object]


@cache
def package() -> griffe.Module:
    """Return the package as griffe reads it, without running it."""
    loaded = griffe.load("tenuto", search_paths=[ROOT], resolve_aliases=True)
    assert isinstance(loaded, griffe.Module)
    return loaded


def names() -> list[Name]:
    """Return all public names, by module, and last the types that they name."""
    listed: list[Name] = []
    for module in (*WHOLE, *NAMED):
        home = get(module)
        assert home is not None, f"there is no module {module}"
        chosen = home.exports if module in WHOLE else NAMED[module] or [one for one in home.classes if one[0] != "_"]
        listed += [_named(module, name, target(home[name])) for name in sorted(map(str, chosen or ()))]
    known = {one.found.path for one in listed if one.found}
    types = dict[str, Name]()
    for one in (ahead := [*listed]):  # grows
        for path in _used(one):
            found = target(get(path))
            if found is None or found.path in known or found.name[0] == "_":
                continue
            known.add(found.path)
            ahead.append(_named(TYPES, found.name, found))
            # equal aliases are there once
            key = f"{found.name} = {found.value}" if isinstance(found, griffe.Attribute) else found.path
            types.setdefault(key, ahead[-1])
    return listed + sorted(types.values(), key=lambda one: one.name)


def get(path: str) -> griffe.Object | griffe.Alias | None:
    """Return the object at a path such as `tenuto.Hub`; None if a variable within an expression has that path."""
    try:
        return package()[path.removeprefix("tenuto.")] if path != "tenuto" else package()
    except KeyError:
        return None


def target(found: griffe.Object | griffe.Alias | None) -> griffe.Object | None:
    """Return the object that a name stands for; None if griffe does not read it."""
    try:
        return found.final_target if isinstance(found, griffe.Alias) else found
    except griffe.AliasResolutionError:
        return None


def _named(module: str, name: str, found: griffe.Object | None) -> Name:
    if not isinstance(found, griffe.Class):
        return Name(module, name, found, {})
    is_data = "dataclass" in found.labels or any(
        str(base).split("[")[0] in DATA for one in (found, *found.mro()) for base in one.bases
    )
    chosen = MEMBERS.get(f"{module}.{name}", None if is_data or module != TYPES else "")
    is_error = "TenutoError" in map(str, found.bases)  # it has the members of that base, too
    members = found.members if is_error else found.all_members
    public = {
        key: one
        for key, member in sorted(members.items())
        if (key in chosen.split() if chosen is not None else key == "__init__" or key[0] != "_")
        and (one := target(member)) is not None
    }
    missing = {*(chosen or "").split()} - public.keys()
    assert not missing, f"{module}.{name} has no {', '.join(missing)}"
    return Name(module, name, found, public)


def _used(name: Name) -> Iterator[str]:
    """Yield the paths within Tenuto that a name and its members name as types."""
    for found in filter(None, (name.found, *name.members.values())):
        expressions: list[object] = []
        if isinstance(found, griffe.Function):
            expressions = [*(parameter.annotation for parameter in found.parameters), found.returns]
        elif isinstance(found, griffe.Attribute):
            expressions = [type_of(found), found.value if "module-attribute" in found.labels else None]
        for expression in expressions:
            for part in expression.iterate(flat=True) if isinstance(expression, griffe.Expr) else ():
                if isinstance(part, griffe.ExprName) and part.canonical_path.startswith("tenuto."):
                    yield part.canonical_path


def type_of(found: griffe.Attribute) -> str | griffe.Expr | None:
    """Return the type of an attribute: the declared one, or that of the argument or object that it is set to."""
    if found.annotation or not isinstance(found.parent, griffe.Class):
        return found.annotation
    init = target(found.parent.all_members.get("__init__", found))
    arguments = init.parameters if isinstance(init, griffe.Function) else griffe.Parameters()
    value = found.value
    for one in value.values if isinstance(value, griffe.ExprBoolOp) else [value]:  # such as `limits or Limits()`
        if isinstance(one, griffe.ExprCall) and str(one.function)[0].isupper():
            return one.function
        if isinstance(one, griffe.ExprName) and one.name in arguments and one is value:
            argument = arguments[one.name]
            return "dict[str, Any]" if argument.kind is griffe.ParameterKind.var_keyword else argument.annotation
    return {"True": "bool", "False": "bool", "0": "int"}.get(str(value))
