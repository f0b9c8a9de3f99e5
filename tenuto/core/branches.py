"""The newest branch of a conversation.

Layer: core.

Several questions with one parent are edits of one question; several answers with one parent are attempts at one answer.
`tenuto/web/conversation.js` has the same rules for the browser, with a selection by the person besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tenuto.core.model import Message


def newest_branch(messages: Iterable[Message]) -> list[Message]:
    """Return the messages of the branch with the latest message, oldest first.

    A message whose parent is not among `messages` is part of each branch.
    """
    ordered = sorted(messages, key=lambda one: one.created)
    groups: dict[tuple[str, str | None], list[Message]] = {}
    for message in ordered:
        if (group := _group_of(message)) is not None:
            groups.setdefault(group, []).append(message)
    ages = _ages_of(ordered)
    unselected: set[str] = set()
    for alternatives in groups.values():
        # messages after an interrupted answer do not select it: the next attempt takes its place
        shown = max(alternatives, key=lambda one: one.created if one.status == "interrupted" else ages[one.id])
        unselected.update(one.id for one in alternatives if one is not shown)
    branch: list[Message] = []
    ends: set[str] = set()  # ids of messages whose followers belong to another branch
    for message in ordered:
        is_off = message.parent in ends
        if not is_off and message.id not in unselected:
            branch.append(message)
        elif is_off or message.status != "interrupted":
            ends.add(message.id)
    return branch


def versions_of(message: Message, messages: Iterable[Message]) -> list[Message]:
    """Return the versions of a question, itself among them, oldest first."""
    versions = [one for one in messages if one.id != message.id and _group_of(one) == _group_of(message)]
    return sorted([message, *versions], key=lambda one: one.created)


def _group_of(message: Message) -> tuple[str, str | None] | None:
    """Return the same value for messages that are alternatives of each other; None for a message that has none."""
    is_question = message.role == "user" and message.reply_to is None
    is_empty_failure = message.status == "failed" and not message.parts
    is_answer = message.role == "assistant" and message.parent is not None and not is_empty_failure
    return (message.role, message.parent) if is_question or is_answer else None


def _ages_of(ordered: Sequence[Message]) -> dict[str | None, int]:
    """Return for each id the serial of the newest message that follows it, or is it."""
    ages: dict[str | None, int] = {}
    for message in reversed(ordered):
        age = max(message.created, ages.get(message.id, 0))
        ages[message.id] = age
        ages[message.parent] = max(age, ages.get(message.parent, 0))
    return ages
