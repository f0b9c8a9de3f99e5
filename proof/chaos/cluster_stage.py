"""The parties of a cluster's run, and the checks after each fault.

Layer: chaos.

After a failover that may lose acknowledged text, two rules still hold: all text of the standby is stored, and each
viewer shows the messages of the new epoch alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from proof.chaos.cluster import Cluster, Node
from proof.chaos.conversation import Conversation
from proof.chaos.people import Person, wrong_signals
from proof.chaos.report import Failure
from proof.chaos.viewer import Viewer
from proof.chaos.world import World
from proof.oracle.acknowledged import AcknowledgedMessage
from proof.oracle.questions import Question
from tenuto.core.events import NO_EPOCH

__all__ = ["Stage"]

AGREE_S = 30.0  # a dead node's members leave after its lease and three seconds; a client may wait before it reconnects
ANEW_S = 45.0
LATEST = 3  # messages of a producer that are compared after each fault; the end of the run compares all

Json = dict[str, Any]


class Stage:
    """The cluster, the people and the writers of a run."""

    def __init__(self, world: World, servers: Cluster, conversation: Conversation, writers: dict[str, str]) -> None:
        self.world = world
        self.servers = servers
        self.conversation = conversation
        self.writers = writers  # the producers, each with its channel
        self.people: list[Person] = []
        self._asking = asyncio.Lock()  # no question is stored while a failover is judged

    @property
    def channels(self) -> list[str]:
        """Return all channels."""
        return [*self.conversation.channels, *sorted(set(self.writers.values()))]

    async def ask(self, channel: str, *, further_attempts: int, may_fail: bool) -> None:
        """Let a user ask a question. With `may_fail` an agent of a node may end the answer as failed."""
        async with self._asking:
            question = await self.conversation.ask(channel)
            self.conversation.expect_attempts([question], further_attempts)
            if may_fail:
                self.allow_failures([question])

    def allow_failures(self, questions: Iterable[Question] | None = None) -> None:
        """Let agents of nodes end the answers to `questions` as failed, by default to all open ones."""
        for question in self.conversation.questions.open if questions is None else questions:
            question.may_fail = frozenset(node.name for node in self.servers.all)

    async def check_calm(self) -> None:
        """Wait until the cluster works as before the fault; check all that was acknowledged and shown."""
        await self.servers.until_ready()
        await self.world.until_each_writes(self.writers)
        try:
            await self.conversation.until_settled()
        except Failure as failure:
            raise Failure(f"{failure}; {await self._left(str(failure))}") from None
        nodes = [node.name for node in self.servers.running]
        others = dict.fromkeys(self.conversation.channels, nodes)
        for person in self.people:
            others[person.watching.channel] = [*others[person.watching.channel], person.name]
        await self.conversation.until_viewers_agree(others, AGREE_S)
        if (wrong := wrong_signals(self.people, self.world.viewers)) is not None:
            raise Failure(wrong)
        await self._until_texts_are_shown()

    async def _left(self, failure: str) -> list[str]:
        """Return what each node has of the first question that `failure` names, for the report."""
        found = []
        for question in [one for one in self.conversation.questions.open if one.id in failure][:1]:
            for node in self.servers.running:
                with contextlib.suppress(OSError):
                    path = f"/v1/channels/{question.channel}/messages/{question.id}"
                    found.append(f"{node.name} responds {await node.get(path)} for {question.id}")
        return found

    async def _until_texts_are_shown(self) -> None:
        """Wait until each viewer shows the acknowledged text of the producers."""
        wanted: dict[str, dict[str, list[int]]] = {}
        for name, channel in self.writers.items():
            ids = [id for id in self.world.acknowledged.messages if id.startswith(f"{name}-")][-LATEST:]
            known = {id: self.world.acknowledged.messages[id] for id in ids}
            lengths = {id: list(one.lengths) for id, one in known.items() if not one.plan.is_deleted}
            wanted.setdefault(channel, {}).update(lengths)

        def late() -> list[str]:
            return [
                f"{viewer.name}: {id}"
                for viewer in self.world.viewers
                for id, lengths in wanted.get(viewer.watching.channel, {}).items()
                if any(map(int.__lt__, [*viewer.shown.lengths.get(id, []), *[0] * len(lengths)], lengths))
            ]

        try:
            await self.world.until(lambda: not late(), "viewers to show the acknowledged text")
        except Failure as failure:
            raise Failure(f"{failure}: {late()[:5]}") if late() else failure from None

    # -- writers ---------------------------------------------------------------------------------------------------

    async def kill_writers(self) -> None:
        """End the producers as `kill -9` does."""
        for name in self.writers:
            await self.world.producers.pop(name).kill()

    async def start_writers(self) -> None:
        """Start successors of the producers that were killed; each takes up the last message that is left."""
        for name, channel in self.writers.items():
            known = self.world.acknowledged.messages
            number = max((int(id.rpartition("-")[2]) for id in known if id.startswith(f"{name}-")), default=0)
            while number:
                status, _ = await self.servers.get(f"/v1/channels/{channel}/messages/{name}-{number}")
                if status != 404:
                    break
                known.pop(f"{name}-{number}", None)
                number -= 1
            for id in [id for id in known if id.startswith(f"{name}-") and id != f"{name}-{number}"]:
                await self._close(known[id])
            await self.world.produce(name, channel, first=number, takes_up=True)

    async def _close(self, written: AcknowledgedMessage) -> None:
        """Note the stored content of a message to which no producer writes any more."""
        status, response = await self.servers.get(f"/v1/channels/{written.channel}/messages/{written.plan.id}")
        if status not in (200, 410):
            raise Failure(f"{written.plan.id} is lost, though a later message is stored: {status} {response}")
        written.is_over, written.is_deleted = True, status == 410
        if status == 200:
            _take(written, response["message"])
        written.status = written.status or "complete"

    # -- failovers -------------------------------------------------------------------------------------------------

    def remember(self) -> dict[str, AcknowledgedMessage]:
        """Return a copy of all acknowledgements."""
        return {id: replace(one, lengths=list(one.lengths)) for id, one in self.world.acknowledged.messages.items()}

    def expect_new_epochs(self, kept: dict[str, AcknowledgedMessage] | None) -> dict[str, str]:
        """Expect that a failover begins new epochs; return the present ones.

        With `kept`, all later acknowledgements may be lost.
        """
        before = {viewer.watching.channel: viewer.epoch for viewer in self.world.viewers if viewer.epoch != NO_EPOCH}
        for viewer in self.world.viewers:
            viewer.may_begin_anew, viewer.may_lose = True, kept is not None
        self.world.acknowledged.epochs.clear()
        for id, one in self.world.acknowledged.messages.items() if kept is not None else ():
            if id in self.conversation.questions.all:
                continue
            old = (kept or {}).get(id)
            one.lengths = list(old.lengths) if old is not None else [0] * one.plan.text_parts
            one.status = old.status if old is not None else None
            one.progress = old.progress if old is not None else 0
            one.has_meta = old is not None and old.has_meta
            one.is_deleted = old is not None and old.is_deleted
            one.is_over = old is not None and old.is_over
        return before

    async def until_new_epochs(self, before: dict[str, str]) -> None:
        """Wait until each node and each viewer is in the new epochs."""
        await self.servers.until_ready()
        now: dict[str, str] = {}
        deadline_s = time.monotonic() + ANEW_S
        for node in self.servers.running:
            for channel, epoch in before.items():
                while (found := await self._epoch(node, channel)) in (None, epoch):
                    if time.monotonic() > deadline_s:
                        raise Failure(f"{node.name} shows {channel} in epoch {found} after {ANEW_S:.0f} s")
                    await asyncio.sleep(0.1)  # poll, because a node gives no event for it
                if now.setdefault(channel, str(found)) != found:
                    raise Failure(f"{channel} has the epoch {now[channel]}, and {found} at {node.name}")

        def late() -> list[str]:
            return [one.name for one in self.world.viewers if self._is_before(one, before)]

        try:
            await self.world.until(lambda: not late(), "viewers to begin the new epochs", ANEW_S)
        except Failure as failure:
            raise Failure(f"{failure}: {late()[:9]}") if late() else failure from None
        for viewer in self.world.viewers:
            viewer.may_begin_anew = viewer.may_lose = False

    @staticmethod
    def _is_before(viewer: Viewer, before: dict[str, str]) -> bool:
        return viewer.epoch in (NO_EPOCH, before.get(viewer.watching.channel))

    @staticmethod
    async def _epoch(node: Node, channel: str) -> str | None:
        try:
            status, response = await node.get(f"/v1/channels/{channel}")
        except OSError:
            return None
        return str(response["epoch"]) if status == 200 else None

    async def check_kept(
        self, kept: dict[str, AcknowledgedMessage], acknowledged: dict[str, AcknowledgedMessage]
    ) -> None:
        """Check that all of `kept` is stored; then forget the messages out of `acknowledged` that are lost."""
        questions = self.conversation.questions.all
        async with self._asking:
            for channel in self.channels:
                stored = await self.world.stored(channel)
                for id, one in acknowledged.items():
                    if one.channel == channel and not one.plan.is_deleted:
                        texts = [len(part.get("text", "")) for part in stored.get(id, {}).get("parts", [])]
                        self.world.count("characters lost by failovers", max(0, sum(one.lengths) - sum(texts)))
                for id, one in self.world.acknowledged.of(channel).items():
                    old = kept.get(id)
                    if old is not None and (wrong := old.wrong(stored.get(id))) is not None:
                        raise Failure(f"the standby had it before it was promoted: {wrong}")
                    is_new = old is None or old.status is None  # None: its request was under way
                    is_unknown = one.status is None or id in questions
                    is_written = channel in self.writers.values()  # `start_writers` looks for those of producers
                    if is_new and id not in stored and is_unknown and not is_written:
                        del self.world.acknowledged.messages[id]
                        questions.pop(id, None)
                        self.world.count("messages lost by failovers")


def _take(written: AcknowledgedMessage, message: Json) -> None:
    """Take the content of a stored message as acknowledged."""
    texts = [len(part["text"]) for part in message.get("parts", []) if "text" in part]
    written.lengths = [*texts, *[0] * len(written.lengths)][: len(written.lengths)]
    written.progress = next((part["data"] for part in message.get("parts", []) if part["type"] == "data"), 0)
    written.status, written.has_meta = message["status"], "meta" in message
