"""Acknowledged: the messages that producers know to be stored.

Layer: oracle.

For processes that cannot see the log of the store. A run feeds it with the reports of its producers, and compares the
messages of the server with it. It counts entries: with the head of a channel they show that no serial was skipped and
no entry was stored twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from proof.oracle.plans import PLANNED, Kind, Planned, counted

Json = dict[str, Any]


@dataclass
class AcknowledgedMessage:
    """One message, as far as its producer knows that it is stored."""

    plan: Planned
    channel: str
    lengths: list[int]
    status: str | None = None  # None: its creation was not acknowledged
    progress: int = 0
    has_meta: bool = False
    is_deleted: bool = False
    is_over: bool = False  # whether its producer sends no further request
    entries: int = 0
    entries_before: int = 0  # number of entries of earlier producers

    def stored(self, report: Json) -> None:
        """Take a report: the producer knows that this content is stored."""
        self.lengths = report["lengths"]
        self.progress = report["progress"]
        self.status = report.get("status", self.status or "streaming")
        self.has_meta = self.has_meta or report.get("meta", False)
        self.is_deleted = self.is_deleted or report.get("deleted", False)
        self.entries = self.entries_before + report["entries"]

    def found(self, report: Json) -> None:
        """Take the report of a successor. The last request of the earlier producer may be stored unacknowledged."""
        before = (self.status, self.lengths, self.progress, self.has_meta, self.is_deleted)
        self.status = report["status"]
        self.is_deleted = report.get("deleted", False)
        if not self.is_deleted:
            self.lengths = report.get("lengths", self.lengths)
            self.progress = report.get("progress", self.progress)
            self.has_meta = report.get("meta", False)
        else:
            self.is_over = True
        found = (self.status, self.lengths, self.progress, self.has_meta, self.is_deleted)
        self.entries_before = self.entries = self.entries + (found != before)

    def wrong(self, message: Json | None) -> str | None:
        """Return how the server's `message`, read after all acknowledgements, contradicts them; None if it does not."""
        if message is None:
            is_missing = self.status is not None and not self.plan.is_deleted
            return f"{self.plan.id} was acknowledged and is missing" if is_missing else None
        if self.is_deleted:
            return f"{self.plan.id} was deleted and still exists"
        parts, status = message.get("parts", []), message["status"]
        wrong = self.plan.wrong(parts, is_whole=status == "complete")
        if wrong is not None:
            return wrong
        parts = counted(parts)
        for index, length in enumerate(self.lengths):
            stored = len(parts[index]["text"]) if index < len(parts) else 0
            if stored < length or (self.is_over and self.status != "complete" and stored != length):
                return f"{self.plan.id}, part {index}: {length} characters were acknowledged, {stored} are stored"
        if self.status not in (None, "streaming", status) or (self.is_over and status != self.status):
            return f"{self.plan.id} was acknowledged as {self.status} and is {status}"
        if self.has_meta and message.get("meta") != self.plan.meta:
            return f"{self.plan.id} has meta {message.get('meta')}, acknowledged was {self.plan.meta}"
        return None


@dataclass
class Acknowledged:
    """All messages of a run. `kind` is that of their texts, except in the channels of `kinds`."""

    seed: int
    steps: int
    messages: dict[str, AcknowledgedMessage] = field(default_factory=dict)
    refusals: list[Json] = field(default_factory=list)
    epochs: dict[str, str] = field(default_factory=dict)
    kind: Kind = "plan"
    kinds: dict[str, Kind] = field(default_factory=dict)

    def kind_of(self, channel: str) -> Kind:
        """Return the kind of the texts in a channel."""
        return self.kinds.get(channel, self.kind)

    def begin(self, message_id: str, channel: str) -> AcknowledgedMessage:
        """Return the message, which may exist from now on."""
        known = self.messages.get(message_id)
        if known is None:
            plan = PLANNED[self.kind_of(channel)](self.seed, message_id, steps=self.steps)
            known = self.messages[message_id] = AcknowledgedMessage(plan, channel, [0] * plan.text_parts)
        return known

    def report(self, report: Json, channel: str) -> None:
        """Take a report of a producer."""
        match report["say"]:
            case "begins":
                self.begin(report["id"], channel)
            case "stored":
                self.messages[report["id"]].stored(report)
            case "found":
                self.begin(report["id"], channel).found(report)
            case "over":
                self.messages[report["id"]].is_over = True
            case "refused":
                self.refusals.append(report)

    @property
    def characters(self) -> int:
        """Return how many characters were acknowledged."""
        return sum(sum(one.lengths) for one in self.messages.values())

    def of(self, channel: str) -> dict[str, AcknowledgedMessage]:
        """Return the messages of a channel."""
        return {id: one for id, one in self.messages.items() if one.channel == channel}

    def wrong_epoch(self, channel: str, cursor: str) -> str | None:
        """Return the fault in the epoch of `cursor`, or None: a log keeps its epoch while its store keeps it."""
        epoch = cursor.partition(":")[0]
        known = self.epochs.get(channel, "-")
        if known != "-" and epoch != known:
            return f"channel {channel} was in epoch {known} and is in {epoch}"
        self.epochs[channel] = epoch
        return None
