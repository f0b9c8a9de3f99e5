"""Questions: the possible answers to a question.

Layer: oracle.

Plain data and pure judgement. Each question has one turn: its last answer counts, and the answers of attempts that died
are `interrupted`. Each method that judges returns a sentence, or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proof.oracle.plans import Script
from tenuto.core.turns import reply_id

Json = dict[str, Any]
MOST = 32  # attempts of one question to look for: those that a draining process hands over do not count


@dataclass
class Question:
    """A message of a user that agents answer."""

    id: str
    channel: str
    attempts: int = 1  # number of attempts that the faults so far explain
    # agents that may end the answer as failed, because the store was away for longer than they wait
    may_fail: frozenset[str] = frozenset()
    final: list[Json] | None = None  # the answers when the question was settled; they do not change after that


@dataclass
class Questions:
    """All questions of a run."""

    seed: int
    steps: int
    all: dict[str, Question] = field(default_factory=dict)

    @property
    def open(self) -> list[Question]:
        """Return the questions whose answers may still change."""
        return [one for one in self.all.values() if one.final is None]

    @staticmethod
    def answers(question: Question, messages: Mapping[str, Json]) -> list[Json]:
        """Return the answers to the question, in the order in which they were created."""
        own = (one for one in messages.values() if one.get("reply_to") == question.id)
        return sorted(own, key=lambda one: int(one["created"]))

    def unsettled(self, question: Question, messages: Mapping[str, Json]) -> str | None:
        """Return the replies that the end of the turn still lacks."""
        answers = self.answers(question, messages)
        streaming = [one for one in answers if one["status"] == "streaming"]
        if streaming:
            return f"{[self._progress(one) for one in streaming]} still stream, for {question.id}"
        if answers and answers[-1]["status"] != "interrupted":
            return None
        return f"{question.id} is left with {[one['status'] for one in answers] or 'no answer'}"

    def _progress(self, answer: Json) -> str:
        pieces = Script(self.seed, answer["id"], steps=self.steps).pieces(_text(answer))
        return f"{answer['id']} of {answer.get('author')} with {pieces[-1] if pieces else 'no piece'}"

    def wrong(self, question: Question, messages: Mapping[str, Json]) -> str | None:
        """Return the fault in the answers, whether the question is settled or not."""
        answers = self.answers(question, messages)
        if question.id not in messages:
            return f"{question.id} was acknowledged and is missing"
        if question.final is not None and answers != question.final:
            return f"{question.id} was settled with {_summary(question.final)}, and now has {_summary(answers)}"
        ids = _ids(question)
        known = [ids.index(one["id"]) for one in answers if one["id"] in ids]
        if known != sorted(known) or len(known) < len(answers):
            return f"{question.id} has answers that no attempt gives in this order: {_summary(answers)}"
        counted = [one for one in answers if one["status"] not in ("streaming", "interrupted")]
        if len(counted) > 1 or (counted and counted[0] is not answers[-1]):
            return f"{question.id} has more than the one answer that counts: {_summary(answers)}"
        return self._wrong_end(question, counted) or self._wrong_writers(question, answers)

    def _wrong_end(self, question: Question, counted: list[Json]) -> str | None:
        for one in counted:
            is_allowed = one.get("author") in question.may_fail and one.get("reason") == "store_unavailable"
            if one["status"] == "failed" and not is_allowed:
                return f"{_summary([one])} has failed, for {question.id}: {one.get('reason')}"
            if one["status"] == "cancelled":
                return f"{_summary([one])} was cancelled, though no user sent a cancel"
        return None

    def _wrong_writers(self, question: Question, answers: list[Json]) -> str | None:
        """Check that each attempt has one agent and one answer, and that a fault explains each further attempt."""
        seen: dict[int, tuple[str, str]] = {}
        begun = 0
        for one in answers:
            script = Script(self.seed, one["id"], steps=self.steps)
            first = _ids(question).index(one["id"]) + 1  # the attempt that began it, perhaps without any text
            for piece in script.pieces(_text(one)):
                if piece.attempt < first:
                    return f"{one['id']} was begun by attempt {first} at {question.id}, and has {piece}"
                if seen.setdefault(piece.attempt, (one["id"], piece.writer)) != (one["id"], piece.writer):
                    return (
                        f"attempt {piece.attempt} at {question.id} is {seen[piece.attempt]}, and {one['id']}: {piece}"
                    )
            begun = max(begun, first, *seen)
        if begun > question.attempts:
            return f"attempt {begun} at {question.id} was made, the faults explain {question.attempts}"
        return None

    def settle(self, question: Question, messages: Mapping[str, Json]) -> list[Json]:
        """Keep the answers as the final ones, and return them."""
        question.final = self.answers(question, messages)
        return question.final


def _ids(question: Question) -> list[str]:
    """Return the ids of the answers, by the attempt that creates them."""
    return [reply_id(question.id, attempt) for attempt in range(1, MOST + 1)]


def _text(message: Json) -> str:
    return "".join(part.get("text", "") for part in message.get("parts", []))


def _summary(answers: list[Json]) -> str:
    return str([(one["id"], one["status"], len(_text(one))) for one in answers])
