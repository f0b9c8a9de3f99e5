"""Nodes: the messages of an ended node end soon, and those of a living node are not recovered.

Layer: oracle.

`NodeLeases` receives each renewal and each write that a shared store has carried out, with their times. It raises
Violation if a node recovers a message whose writer lives, or if a message outlives the lease of its writer's node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from proof.oracle.log import EpochLog, StoredLogs
from proof.oracle.violation import Violation
from tenuto.core.ops import Finish, Takeover, WriterIdentity
from tenuto.stores.base import Write

TERM_S = 4.0  # length of the lease of a node
RENEW_S = 1.0  # time between two renewals
SOON_S = 2.0  # without faults a recovery is stored within this time
LATE_S = 90.0  # with faults a recovery may be stored this long after its node has read the leases
READ_S = 3.0  # the same without faults


class NodeLeases:
    """The leases of all nodes, as the store has carried them out."""

    def __init__(self, now_s: Callable[[], float], stored: StoredLogs) -> None:
        self._now_s = now_s
        self._stored = stored
        self._until_s: dict[str, float] = {}  # for each node the end of its lease
        self._since_s: dict[str, float] = {}  # for each node when its lease began that has not expired since
        # for each node the nodes that had no lease when it read the leases, each with the time of the last such read
        self._missed_s: dict[str, dict[str, float]] = {}
        self._changed_s = 0.0  # when a node last began or stopped
        self.steady_s = float("inf")  # time since which at most one node stops
        self.stopped_s = float("-inf")  # when a node last stopped, or the store lost the leases

    def hold(self, node: str, term_ms: int) -> None:
        """Take a renewal."""
        now_s = self._now_s()
        if not self.is_alive(node):
            self._changed_s = self._since_s[node] = now_s
        self._until_s[node] = now_s + (term_ms - 1) / 1000  # a store may count in whole milliseconds
        missed = {other: now_s for other in self._until_s if not self.is_alive(other)}
        self._missed_s.setdefault(node, {}).update(missed)

    def note_stop(self) -> None:
        """Note that a process dies or is suspended, or that the store loses all leases: a recovery may wait a term."""
        self._changed_s = self.stopped_s = self._now_s()

    def since_s(self, node: str) -> float:
        """Return when the lease of `node` began, or infinity if it does not run."""
        return self._since_s[node] if self.is_alive(node) else float("inf")

    @property
    def oldest_s(self) -> float:
        """Return when the oldest lease began that runs, or infinity if none does."""
        return min(map(self.since_s, self._since_s), default=float("inf"))

    @property
    def known_s(self) -> float:
        """Return when the other nodes know all that a node knew which has stopped."""
        return self.stopped_s + TERM_S + RENEW_S

    def is_alive(self, node: str) -> bool:
        """Return whether the lease of `node` runs."""
        return self._until_s.get(node, 0.0) > self._now_s()

    def check_write(self, who: str | None, write: Write, *, is_healthy: bool) -> None:
        """Check the recoveries in `write` of node `who`, before the log takes it. Raises Violation."""
        log = self._stored.head(write.channel)
        for entry in write.entries:
            op = entry.op
            owner = _writer(log, op.id)
            if owner is None or owner.node is None or owner.node == who or not isinstance(op, Finish | Takeover):
                continue
            message = log.now(op.id)
            if message is None or message.status != "streaming":
                continue  # an agent continues an answer that has ended
            if isinstance(op, Takeover) and (op.writer is None or op.writer.node is None or not _is_author(log, op)):
                continue  # a client takes the message over
            if isinstance(op, Finish) and op.status != "interrupted":
                continue
            read_s = self._missed_s.get(who or "", {}).get(owner.node, float("-inf"))
            if read_s < self._now_s() - (READ_S if is_healthy else LATE_S):
                raise Violation(f"{who} recovers {write.channel}/{op.id}, though node {owner.node} was alive")

    def check_due(self, healthy_s: float) -> None:
        """Check that no message streams long after the lease of its node. Raises Violation."""
        now_s = self._now_s()
        base_s = max(healthy_s, self._changed_s + RENEW_S + TERM_S)
        for message, node in self.orphans(self._stored.channels):
            if now_s > max(base_s, self._until_s.get(node, 0.0)) + SOON_S:
                raise Violation(f"{message} still streams, though the lease of {node} has expired")

    def orphans(self, channels: Iterable[str]) -> Iterable[tuple[str, str]]:
        """Yield each streaming message whose writer's node has no lease, with that node."""
        for channel in channels:
            log = self._stored.head(channel)
            for message in log.messages(log.serial):
                owner = _writer(log, message.id)
                node = owner.node if owner is not None and message.status == "streaming" else None
                if node is not None and not self.is_alive(node):
                    yield f"{channel}/{message.id}", node


def _is_author(log: EpochLog, op: Takeover) -> bool:
    """Return whether the new writer bears the name of the message's first one, as in a recovery."""
    first = log.writers[op.id][0][1]
    return op.writer is not None and first is not None and first.by == op.writer.by


def _writer(log: EpochLog, message_id: str) -> WriterIdentity | None:
    known = log.writers.get(message_id)
    return known[-1][1] if known else None
