"""What changed between two states of a conversation, channel by channel, messages by their ids. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from enhanced_checkpointing.cli.plain_values import as_json
from enhanced_checkpointing.cli.threads.conversation import Message, conversation_of
from enhanced_checkpointing.cli.value_texts import shown

__all__ = ["ChannelDifference", "MessageChange", "ValueChange", "differences"]

MOST_COMPARED = 2000
"""Items of a list that are compared one by one; of longer ones only what both begin and end with."""


@dataclass(frozen=True, slots=True)
class MessageChange:
    """A message that one state has and the other has not, or has with something else in it."""

    before: Message | None
    after: Message | None

    def as_json(self) -> dict[str, Any]:
        return {
            "before": self.before.as_json() if self.before else None,
            "after": self.after.as_json() if self.after else None,
        }


@dataclass(frozen=True, slots=True)
class ValueChange:
    """A part of a value, `where` it is: what it was, and what it is. Each may be missing, which None does not say."""

    where: str
    before: Any = None
    after: Any = None
    was_there: bool = True
    is_there: bool = True

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"where": self.where}
        if self.was_there:
            found["before"] = as_json(self.before)
        if self.is_there:
            found["after"] = as_json(self.after)
        return found


@dataclass(frozen=True, slots=True)
class ChannelDifference:
    """How a channel changed: `kind` is added, removed or changed."""

    channel: str
    kind: str
    messages: Sequence[MessageChange] = ()
    values: Sequence[ValueChange] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The difference in plain JSON types."""
        return {
            "channel": self.channel,
            "kind": self.kind,
            "messages": [change.as_json() for change in self.messages],
            "values": [change.as_json() for change in self.values],
        }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ChannelDifference]:
    """The channels that are not the same in both states."""
    found = []
    for channel in sorted(before.keys() | after.keys()):
        if channel in before and channel in after and before[channel] == after[channel]:
            continue
        kind = "added" if channel not in before else "removed" if channel not in after else "changed"
        messages = _message_changes(before.get(channel), after.get(channel))
        values = [] if messages is not None else [*_channel_changes(channel, before, after)]
        found.append(ChannelDifference(channel, kind, messages or (), values))
    return found


def _message_changes(before: Any, after: Any) -> list[MessageChange] | None:
    """How two conversations differ; None if they are none."""
    ours, theirs = conversation_of(before), conversation_of(after)
    if (ours is None and before) or (theirs is None and after) or (ours is None and theirs is None):
        return None
    one, other = ours or [], theirs or []
    after_by_id = {message.message_id: message for message in other if message.message_id}
    before_ids = {message.message_id for message in one if message.message_id}
    # A message that kept its id is the same message, whatever is in it now.
    keys = [message.message_id or repr(message) for message in one]
    other_keys = [message.message_id or repr(message) for message in other]
    left = [
        MessageChange(message, after_by_id.get(message.message_id or ""))
        for message, key in zip(one, keys, strict=True)
        if key not in set(other_keys) or after_by_id.get(message.message_id or "", message) != message
    ]
    known = set(keys)
    new = [
        MessageChange(None, message)
        for message, key in zip(other, other_keys, strict=True)
        if key not in known and message.message_id not in before_ids
    ]
    return [*left, *new]


def _channel_changes(channel: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[ValueChange]:
    if channel not in before:
        yield ValueChange("", after=after[channel], was_there=False)
    elif channel not in after:
        yield ValueChange("", before=before[channel], is_there=False)
    else:
        yield from _changes("", before[channel], after[channel])


def _changes(where: str, before: Any, after: Any) -> Iterator[ValueChange]:
    """The parts of a value that differ: of dicts and lists one by one, of everything else the whole."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            place = f"{where}.{shown(key)}" if where else shown(key)
            if key not in after:
                yield ValueChange(place, before=before[key], is_there=False)
            elif key not in before:
                yield ValueChange(place, after=after[key], was_there=False)
            elif before[key] != after[key]:
                yield from _changes(place, before[key], after[key])
    elif isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        yield from _list_changes(where, before, after)
    else:
        yield ValueChange(where, before, after)


def _list_changes(where: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[ValueChange]:
    for tag, start, end, other_start, other_end in _blocks(before, after):
        if tag == "equal":
            continue
        old, new = before[start:end], after[other_start:other_end]
        for offset in range(max(len(old), len(new))):
            was_there, is_there = offset < len(old), offset < len(new)
            yield ValueChange(
                f"{where}[{start + offset if was_there else other_start + offset}]",
                old[offset] if was_there else None,
                new[offset] if is_there else None,
                was_there,
                is_there,
            )


def _blocks(before: Sequence[Any], after: Sequence[Any]) -> Sequence[tuple[str, int, int, int, int]]:
    if len(before) + len(after) <= MOST_COMPARED:
        return SequenceMatcher(None, [*map(repr, before)], [*map(repr, after)], autojunk=False).get_opcodes()
    shorter = min(len(before), len(after))
    head = next((place for place in range(shorter) if before[place] != after[place]), shorter)
    rest = shorter - head
    tail = next((place for place in range(rest) if before[-1 - place] != after[-1 - place]), rest)
    return [("replace", head, len(before) - tail, head, len(after) - tail)]
