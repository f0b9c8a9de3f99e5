"""Oracles: independent judges of the entries, events and promises of Tenuto.

Layer: oracle.

The simulator, `chaos` and the tests share these judges, so each rule has one. The product does not import them, and the
wheel does not contain them. The rules of the wire itself belong to `wirecheck`.

- `log`: all that a store has taken, folded a second time in the plainest way;
- `responses`: responses to requests, and the stream of one message, compared with the log at the moment of sending;
- `views`: the view of one viewer over all its connections, compared with the log or with a plan;
- `hooks`: the calls of one hook, compared with the log;
- `promises`: the ends of leases, turns, commands and presence: neither early nor late, also of hubs that share a store;
- `plans`: texts that each process of a run knows in advance, and the messages that producers know to be stored;
- `questions`: the possible answers to a question.
"""


class Violation(AssertionError):
    """A rule that must always hold is broken."""
