"""What a run knows of questions and commands, and what it may see of their answers.

Layer: chaos.

Plain data and pure judgement, as `truth` is for what producers write; `conversation` feeds
it. A question has one turn: of its answers the last one counts, and those of attempts that died are `interrupted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos.script import Script
from holdfast.agents.ids import reply_id
from holdfast.core.decide_work import ATTEMPTS

__all__ = ["Question", "Sent", "Talk"]

Json = dict[str, Any]


@dataclass
class Question:
    """Something that a person asked, and that agents answer."""

    id: str
    channel: str
    attempts: int = 1  # that it may have needed, by what was done to agents
    final: list[Json] | None = None  # its answers, once it is settled: they stay as they are


@dataclass
class Sent:
    """A command that somebody sent, however often, and what they were told."""

    id: str
    channel: str
    name: str
    target: str
    question: str  # that it is about
    told: Json | None = None  # the command and its serial, as stored
    reply: Json | None = None
    is_refused: bool = False


@dataclass
class Talk:
    """All questions and commands of a run."""

    seed: int
    steps: int
    questions: dict[str, Question] = field(default_factory=dict)
    sent: dict[str, Sent] = field(default_factory=dict)

    @property
    def open(self) -> list[Question]:
        """Questions whose answers may change still."""
        return [one for one in self.questions.values() if one.final is None]

    def is_stopped(self, question: Question) -> bool:
        """Was somebody told that its turn was cancelled?"""
        replies = [one.reply for one in self.sent.values() if one.question == question.id and one.name == "cancel"]
        return any(reply is not None and reply["ok"] for reply in replies)

    def may_be_stopped(self, question: Question) -> bool:
        """Did somebody send a `cancel` that was not refused?"""
        sent = [one for one in self.sent.values() if one.question == question.id and one.name == "cancel"]
        return any(not one.is_refused for one in sent)

    # -- answers -----------------------------------------------------------------------------------------------

    @staticmethod
    def answers(question: Question, messages: Mapping[str, Json]) -> list[Json]:
        """What answers it, in the order in which it was begun."""
        own = (one for one in messages.values() if one.get("reply_to") == question.id)
        return sorted(own, key=lambda one: int(one["created"]))

    def unsettled(self, question: Question, messages: Mapping[str, Json]) -> str | None:
        """What is still missing at the end of its turn; None when nothing is."""
        answers = self.answers(question, messages)
        streaming = [one["id"] for one in answers if one["status"] == "streaming"]
        if streaming:
            return f"{streaming} still stream, for {question.id}"
        if answers and answers[-1]["status"] != "interrupted":
            return None
        if self.is_stopped(question):
            return None
        return f"{question.id} is left with {[one['status'] for one in answers] or 'no answer'}"

    def wrong(self, question: Question, messages: Mapping[str, Json]) -> str | None:
        """What is wrong with the answers to it at any time, settled or not; None when nothing is."""
        answers = self.answers(question, messages)
        if question.id not in messages:
            return f"{question.id} was acknowledged and is not there"
        if question.final is not None and answers != question.final:
            return f"{question.id} was settled with {_told(question.final)}, and now has {_told(answers)}"
        ids = _ids(question)
        known = [ids.index(one["id"]) for one in answers if one["id"] in ids]
        if known != sorted(known) or len(known) < len(answers):
            return f"{question.id} has answers that no attempt gives in this order: {_told(answers)}"
        counted = [one for one in answers if one["status"] not in ("streaming", "interrupted")]
        if len(counted) > 1 or (counted and counted[0] is not answers[-1]):
            return f"{question.id} has more than the one answer that counts: {_told(answers)}"
        return self._wrong_end(question, counted) or self._wrong_writers(question, answers)

    def _wrong_end(self, question: Question, counted: list[Json]) -> str | None:
        for one in counted:
            if one["status"] == "failed":
                return f"{_told([one])} has failed, for {question.id}: {one.get('reason')}"
            if one["status"] == "complete" and self.is_stopped(question):
                return f"{_told([one])} is complete, and somebody was told that {question.id} was cancelled"
            if one["status"] == "cancelled" and not self.may_be_stopped(question):
                return f"{_told([one])} was cancelled, and nobody asked for that"
        return None

    def _wrong_writers(self, question: Question, answers: list[Json]) -> str | None:
        """One attempt is by one agent, in one answer; and each but the first has a reason."""
        seen: dict[int, tuple[str, str]] = {}
        begun = 0
        for one in answers:
            script = Script(self.seed, one["id"], steps=self.steps)
            first = _ids(question).index(one["id"]) + 1  # the attempt that began it, and may have written nothing
            for piece in script.pieces(_text(one)):
                if piece.attempt < first:
                    return f"{one['id']} was begun by attempt {first} at {question.id}, and has {piece}"
                if seen.setdefault(piece.attempt, (one["id"], piece.who)) != (one["id"], piece.who):
                    return (
                        f"attempt {piece.attempt} at {question.id} is {seen[piece.attempt]}, and {one['id']}: {piece}"
                    )
            begun = max(begun, first, *seen)
        if begun > question.attempts:
            return f"attempt {begun} at {question.id} was made, and there was reason for {question.attempts}"
        return None

    def settle(self, question: Question, messages: Mapping[str, Json]) -> list[Json]:
        """Its answers stay as they are; returns them."""
        question.final = self.answers(question, messages)
        return question.final

    # -- commands ----------------------------------------------------------------------------------------------

    def told(self, sent: Sent, status: int, answer: Json, *, known: tuple[Json | None, Json | None]) -> str | None:
        """The server's answer to `sent`, sent once more: what is wrong with it, None when nothing is.

        `known` are its `told` and `reply` as they were when it was sent: others may have been told more since.
        """
        if status == 409 and answer["code"] == "finished" and known[0] is None:
            sent.is_refused = sent.told is None
            return None
        if status not in (200, 201) or (status == 201 and known[0] is not None):
            return f"command {sent.id}, told before as {sent.told}, was answered with {status}: {answer}"
        told = {"command": answer["command"], "serial": answer["serial"]}
        if sent.told not in (None, told):
            return f"command {sent.id} was told as {sent.told}, and then as {told}"
        sent.told, sent.is_refused = told, False
        reply = answer.get("reply")
        return self.replied(sent, reply) if reply is not None or known[1] is not None else None

    def replied(self, sent: Sent, reply: Json | None) -> str | None:
        """Somebody was told that this answers it; None: that nothing does."""
        if sent.reply not in (None, reply):
            return f"command {sent.id} was answered with {sent.reply}, and then with {reply}"
        sent.reply = reply
        return None

    def unanswered(self) -> list[str]:
        """Commands that are stored, and of whose answer nobody was told."""
        return [one.id for one in self.sent.values() if one.told is not None and one.reply is None]


def _ids(question: Question) -> list[str]:
    """Of the answers to it, by the attempts that begin them."""
    return [reply_id(question.id, attempt) for attempt in range(1, ATTEMPTS + 1)]


def _text(message: Json) -> str:
    return "".join(part.get("text", "") for part in message.get("parts", []))


def _told(answers: list[Json]) -> str:
    return str([(one["id"], one["status"], len(_text(one))) for one in answers])
