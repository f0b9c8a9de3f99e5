"""The answers of a turn that a client shows, and the end of the turn.

Layer: interop.

An agent that runs again after a crash writes another answer. The interrupted one becomes an alternative, as in the
browser client, so a client that loads or joins the turn later shows the new answer alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto import Message
from tenuto.routes import InAnswer, MessageOpened, TurnChanged, TurnDelta, newest_branch

End = tuple[str, str | None]  # status and reason
# The text of a client is gone, and a stream can take no text back: it ends at once.
REPLACED: End = ("replaced", "the answer was replaced by another text; load the messages again")
DELETED: End = ("deleted", "the answer was deleted")
GONE = (REPLACED, DELETED)


def shown_answers(answers: Sequence[Message]) -> list[Message]:
    """Return the answers of a turn without interrupted attempts that another attempt has replaced."""
    return newest_branch(answers) if any(one.status == "interrupted" for one in answers) else list(answers)


class ShownDeltas:
    """Leaves out the attempts that were replaced when a stream began, except that each was opened: the page has its id.

    An attempt that is replaced later stays, because the page has its text.
    """

    def __init__(self) -> None:
        self.is_first = True  # the deltas are the turn as it is, whose calls may have their replies already
        self._replaced: set[str] | None = None
        self._left: set[str] = set()  # shown answers that were not deleted

    def open(self, id: str) -> None:
        """Take note of an answer."""
        if id not in (self._replaced or ()):
            self._left.add(id)

    def delete(self, id: str, end: End | None) -> End | None:
        """Return the end of the turn after the deletion of an answer: `end` if another answer is left."""
        self._left.discard(id)
        return end if self._left else DELETED

    def of(self, deltas: Sequence[TurnDelta]) -> Sequence[TurnDelta]:
        """Return the deltas that the client shows."""
        self.is_first = self._replaced is None
        if self._replaced is None:
            opened = [one.delta.message for one in deltas if type(one) is InAnswer and type(one.delta) is MessageOpened]
            self._replaced = {one.id for one in opened} - {one.id for one in shown_answers(opened)}
        if not self._replaced:
            return deltas
        return [
            one
            for one in deltas
            if type(one) is not InAnswer or type(one.delta) is MessageOpened or one.message_id not in self._replaced
        ]


def end_of(change: TurnChanged, last: End | None) -> End | None:
    """Return the end of a turn after `change`, whose last answer ended as `last`; None if no answer has ended."""
    if change.state == "over" and change.is_deleted:
        return DELETED
    return ("cancelled", None) if last is None and change.is_cancelled else last
