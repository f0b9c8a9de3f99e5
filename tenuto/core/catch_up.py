"""Catch-up: computes the events between a viewer's cursor and now, joined.

Layer: core.

No event is queued for a viewer: a feed reads the missed events from the channel's state when the viewer can take
them. So appends since its cursor arrive as one event per part, a part that was replaced twenty times as its
last value, and an edited message once, as it is now. `docs/protocol.md`, "Joining", has the rules.
"""

from __future__ import annotations

from msgspec.structs import replace

from tenuto.core.events import (
    ChannelAttached,
    CommandReply,
    CommandSent,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageEvent,
    MessageFinish,
    MessagePart,
    MessageTakeover,
    MessageUpdate,
    StoredEvent,
)
from tenuto.core.limits import Limits
from tenuto.core.model import OPTIONS
from tenuto.core.names import command_id
from tenuto.core.ops import Append, Entry
from tenuto.core.state import ChannelState, CommandState, MessageState
from tenuto.core.text import PartState, Text


def events_since(state: ChannelState, since: int, *, limit: int) -> list[StoredEvent] | None:
    """Return all events after serial `since` in order; None if more than `limit` messages or commands changed.

    The caller ensures that `state` is complete since then (`state.complete_since <= since`).
    """
    assert since >= state.complete_since
    events: list[StoredEvent] = []
    for count, message in enumerate(reversed(state.messages.values()), 1):  # last change first
        if message.version <= since:
            break
        if count > limit:
            return None
        if message.role != OPTIONS:  # no viewer gets those
            events += _message_since(message, since)
    count = 0
    for command in reversed(state.commands.values()):
        if command.version <= since:
            break
        if command.is_step:
            continue
        count += 1
        if count > limit:
            return None
        if command.created > since:
            events.append(CommandSent(serial=command.created, command=command.command()))
        reply = reply_to(command)
        if reply is not None and reply.serial > since:
            events.append(reply)
    if len(events) > 1:
        events.sort(key=lambda event: event.serial)
    return events


def sole_append(state: ChannelState, entry: Entry) -> MessageAppend | None:
    """Return the event of an append that `entry` will add to `state`, for a viewer at the serial before it, or None.

    Hot path: it must return exactly what `events_since` would return once the entry is applied, or None.
    """
    op = entry.op
    if type(op) is not Append or entry.serial != state.serial + 1 or not op.text:
        return None
    message = state.messages.get(op.id)
    if message is None or message.deleted or op.part >= len(message.parts):
        return None
    text = message.parts[op.part].text  # of which the viewer has `length_at` characters
    if not isinstance(text, Text) or text.length != op.at or text.length_at(state.serial) != op.at:
        return None
    return MessageAppend(serial=entry.serial, id=op.id, part=op.part, at=op.at, text=op.text)


def newest_messages(state: ChannelState, history: int, limits: Limits) -> tuple[list[MessageState], bool] | None:
    """Return the newest `history` messages, newest first, and whether older ones exist; None if not all are in memory.

    Finished messages have at most `limits.history_bytes` together; the newest message is always included.
    """
    present = (one for one in state.messages.values() if not one.deleted and one.role != OPTIONS)
    newest = sorted(present, key=lambda message: message.created, reverse=True)
    page: list[MessageState] = []
    size = 0
    for message in newest:
        if message.created < state.history_from:
            break  # between this message and the page there may be messages that only the store holds
        if len(page) >= history:
            return page, True
        size += 0 if message.is_streaming else message.size_bytes
        if page and size > limits.history_bytes:
            return page, True
        page.append(message)
    has_older = state.history_from > 1  # in the store, perhaps
    # cut: the store has older messages, but the page of those in memory has reached its limit in bytes
    is_whole = len(page) >= history or (state.is_history_cut and page) or not has_older
    return (page, has_older) if is_whole else None


def new_start(state: ChannelState, page: list[MessageState], more: bool) -> tuple[ChannelAttached, list[MessageUpdate]]:
    """Return the events of a new start: the messages of `page` and all streaming ones."""
    shown = {message.id: message for message in page}
    shown.update((message.id, message) for message in state.messages.values() if message.is_streaming)
    before = min((message.created for message in page), default=state.serial + 1)
    attached = replace(resumed(state), resumed=False, more=more, before=before)
    updates = [MessageUpdate(serial=message.version, message=message.message()) for message in shown.values()]
    updates.sort(key=lambda event: event.serial)
    return attached, updates


def resumed(state: ChannelState) -> ChannelAttached:
    """Return the `channel.attached` event with which a resumed view continues; the missed events follow it."""
    return ChannelAttached(
        channel=state.channel,
        epoch=state.epoch,
        serial=state.serial,
        resumed=True,
        commands=[command.command() for command in state.pending_commands()],
    )


def reply_to(command: CommandState) -> CommandReply | None:
    """Return the event for the command's reply, or None while it waits for one."""
    reply = command.reply
    if reply is None:
        return None
    return CommandReply(
        serial=command.reply_serial,
        id=command_id(command.id),
        ok=reply.ok,
        data=reply.data,
        error=reply.error,
        from_=reply.by,
    )


def _message_since(message: MessageState, since: int) -> list[MessageEvent]:
    """Return what changed after `since`: events of parts if they show all of it, else the message as a whole."""
    if message.deleted:
        return [MessageDelete(serial=message.version, id=message.id)]
    if message.created > since:
        return [MessageCreate(serial=message.version, message=message.message())]
    # a part that was opened and replaced after `since`, and whose first value is unknown, comes with its message
    unknown = (part for part in message.parts if since < part.opened < part.changed and part.first is None)
    if message.edited > since or (message.shaped > since and any(unknown)):
        return [MessageUpdate(serial=message.version, message=message.message())]
    events: list[MessageEvent] = []
    ends = sorted(end for end in (message.finished, message.taken_over) if end > since)
    for index, part in enumerate(message.parts):
        if part.changed > since:
            events += _part_events(message, since, index, part)
        if isinstance(part.text, Text) and part.text.mark_serials[-1] > since:
            events += _appends(message.id, index, part.text, max(since, part.changed), ends)
    if message.finished > since:
        status, reason = message.finished_as
        finish = MessageFinish(
            serial=message.finished,
            id=message.id,
            status=status,
            reason=reason,
            meta=message.meta,
            updated_at=message.updated_at,
        )
        events.append(finish)
    if message.taken_over > max(since, message.finished):
        events.append(MessageTakeover(serial=message.taken_over, id=message.id))
    return events


def _part_events(message: MessageState, since: int, index: int, part: PartState) -> list[MessageEvent]:
    """Return the event that opened a part, then the event with the part's latest value, because parts open in order."""
    values = [(part.changed, part.as_changed())]
    if since < part.opened < part.changed:
        assert part.first is not None
        values.insert(0, (part.opened, part.first))
    return [
        MessagePart(serial=serial, id=message.id, index=index, updated_at=message.updated_at, part=value)
        for serial, value in values
    ]


def _appends(message_id: str, index: int, text: Text, since: int, ends: list[int]) -> list[MessageAppend]:
    """Return the text after `since` as one append; split it where the message finished or was taken over (`ends`)."""
    events: list[MessageAppend] = []
    at = text.length_at(since)
    for until in [*(end - 1 for end in ends), text.mark_serials[-1]]:
        serial, length = text.last_mark(until)
        if length > at and serial > since:
            events.append(MessageAppend(serial=serial, id=message_id, part=index, at=at, text=text.slice(at, length)))
            at = length
    return events
