"""What a run knows to be true: what producers were told is stored, and what follows from it.

Layer: chaos.

Plain data; `world` feeds it with reports and asks it to judge what the server says. Entries
are counted: with the channel's head they tell that no serial was left out, and nothing was stored twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from chaos.plan import Plan, Planned
from chaos.script import Script

__all__ = ["PLANNED", "Kind", "Truth", "Written"]

Json = dict[str, Any]
Kind = Literal["plan", "script"]
PLANNED: dict[Kind, type[Plan] | type[Script]] = {"plan": Plan, "script": Script}


@dataclass
class Written:
    """One message, as far as its producer has been told that it is stored."""

    plan: Planned
    channel: str
    lengths: list[int]
    status: str | None = None  # None: its creation was not acknowledged
    progress: int = 0
    has_meta: bool = False
    is_deleted: bool = False
    is_over: bool = False  # its producer has nothing more to do
    entries: int = 0
    entries_before: int = 0  # of producers that are gone

    def stored(self, report: Json) -> None:
        """An answer came: this much is stored."""
        self.lengths = report["lengths"]
        self.progress = report["progress"]
        self.status = report.get("status", self.status or "streaming")
        self.has_meta = self.has_meta or report.get("meta", False)
        self.is_deleted = self.is_deleted or report.get("deleted", False)
        self.entries = self.entries_before + report["entries"]

    def taken_up(self, report: Json) -> None:
        """A successor found this. What the one before had asked for last may have been stored unheard."""
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
        """What is wrong with `message`, read from the server after all this was acknowledged; None when nothing is."""
        if message is None:
            is_missing = self.status is not None and not self.plan.is_deleted
            return f"{self.plan.id} was acknowledged and is not there" if is_missing else None
        if self.is_deleted:
            return f"{self.plan.id} was deleted and is there"
        parts, status = message.get("parts", []), message["status"]
        wrong = self.plan.wrong(parts, is_whole=status == "complete")
        if wrong is not None:
            return wrong
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
class Truth:
    """All messages of a run."""

    seed: int
    steps: int
    written: dict[str, Written] = field(default_factory=dict)
    refusals: list[Json] = field(default_factory=list)
    epochs: dict[str, str] = field(default_factory=dict)
    kind: Kind = "plan"  # of all that is written

    def begins(self, message_id: str, channel: str) -> Written:
        """A message may exist from now on."""
        known = self.written.get(message_id)
        if known is None:
            plan = PLANNED[self.kind](self.seed, message_id, steps=self.steps)
            known = self.written[message_id] = Written(plan, channel, [0] * plan.text_parts)
        return known

    def heard(self, report: Json, channel: str) -> None:
        """What a producer says."""
        match report["say"]:
            case "begins":
                self.begins(report["id"], channel)
            case "stored":
                self.written[report["id"]].stored(report)
            case "found":
                self.begins(report["id"], channel).taken_up(report)
            case "over":
                self.written[report["id"]].is_over = True
            case "refused":
                self.refusals.append(report)

    @property
    def characters(self) -> int:
        """How much text was acknowledged."""
        return sum(sum(one.lengths) for one in self.written.values())

    def of(self, channel: str) -> dict[str, Written]:
        """The messages of a channel."""
        return {id: one for id, one in self.written.items() if one.channel == channel}

    def wrong_epoch(self, channel: str, cursor: str) -> str | None:
        """What is wrong when `channel` stands at `cursor`: a log keeps its epoch as long as nothing was lost."""
        epoch = cursor.partition(":")[0]
        known = self.epochs.get(channel, "-")
        if known != "-" and epoch != known:
            return f"channel {channel} was in epoch {known} and is in {epoch}"
        self.epochs[channel] = epoch
        return None
