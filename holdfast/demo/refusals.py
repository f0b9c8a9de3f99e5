"""The errors of the demo's own routes.

Layer: demo.

They are problem responses like those of the hub, and the page shows their `detail`. Wording may change freely; the
codes are stable.
"""

from __future__ import annotations

from holdfast.core.errors import HoldfastError

__all__ = ["NoAnswer", "NoInvite", "NoLan", "NoSupervisor", "NotAnAgent"]


class NoLan(HoldfastError):
    """The demo listens on this machine only, so it has no invitations."""

    code, status, title = "no_lan", 409, "Not on the network"


class NoInvite(HoldfastError):
    """The secret is not that of an open invitation."""

    code, status, title = "no_invite", 403, "No invitation"


class NoSupervisor(HoldfastError):
    """The server has no supervisor that would start it or an agent again."""

    code, status, title = "no_supervisor", 409, "No supervisor"


class NoAnswer(HoldfastError):
    """No answer is running, or its agent has ended already."""

    code, status, title = "no_answer", 409, "No running answer"


class NotAnAgent(HoldfastError):
    """The server itself writes the answer, so no agent can crash alone."""

    code, status, title = "not_an_agent", 409, "Not an agent"
