"""The errors of the demo's own routes.

Layer: demo.

They are problem responses like those of the hub, and the page shows their `detail`. Wording may change freely; the
codes are stable.
"""

from __future__ import annotations

from tenuto.core.errors import TenutoError

__all__ = ["NoAnswer", "NoInvite", "NoLan", "NoSupervisor", "NotAnAgent"]


class NoLan(TenutoError):
    """The demo listens on this machine only, so it has no invitations."""

    code, status, title = "no_lan", 409, "Not on the network"


class NoInvite(TenutoError):
    """The secret is not that of an open invitation."""

    code, status, title = "no_invite", 403, "No invitation"


class NoSupervisor(TenutoError):
    """The server has no supervisor that would start it or an agent again."""

    code, status, title = "no_supervisor", 409, "No supervisor"


class NoAnswer(TenutoError):
    """No answer is running, or its agent has ended already."""

    code, status, title = "no_answer", 409, "No running answer"


class NotAnAgent(TenutoError):
    """The server itself writes the answer, so no agent can crash alone."""

    code, status, title = "not_an_agent", 409, "Not an agent"
