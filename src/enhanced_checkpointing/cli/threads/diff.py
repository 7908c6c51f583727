"""`checkpointing threads diff`: what changed between two checkpoints, channel by channel, messages by their ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.output import (
    ExitCode,
    RefusedError,
    UsageError,
    one_line,
    paragraph,
    print_json,
    stdout,
)
from enhanced_checkpointing.cli.threads.checkpoint import Message, View, conversation_of
from enhanced_checkpointing.cli.threads.database import Holding, Store, Target, config_for, journal_notes, run_with
from enhanced_checkpointing.cli.values import as_json, cut, shown
from enhanced_checkpointing.errors import listed

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


MOST = 300
"""Characters of one value; --full shows all of it."""

MOST_CHANGES = 40
"""Changes of one channel."""


@dataclass(frozen=True, slots=True)
class Range:
    """Two checkpoints by the beginnings of their ids. None as the one before: the parent of the other. None as the one
    after: the newest."""

    before: str | None = None
    after: str | None = None


def range_of(first: str | None, second: str | None) -> Range:
    """What is meant by `A B`, `A..B`, `A..` (to the newest), `A` and `..A` (from its parent), or nothing at all (the
    newest from its parent).

    Raises:
        UsageError: it is more than two.
    """
    if first is not None and ".." in first:
        if second is not None:
            raise UsageError("give two checkpoints, or a range A..B, not both")
        before, _, after = first.partition("..")
        return Range(before or None, after or None)
    return Range(first, second) if second is not None else Range(None, first)


def run(target: Target, thread_id: str, wanted: Range, *, namespace: str, full: bool, as_json: bool) -> ExitCode:
    """Compare two checkpoints. That they differ is no failure."""
    configured = config_for(target)

    async def work(store: Store) -> tuple[View | None, View, list[Holding], list[str]]:
        notes = journal_notes(configured.journal_dir, store.home, await store.seen([thread_id]))
        return *await _both(store, thread_id, namespace, wanted), *notes

    before, after, held, warnings = run_with(configured, work)
    found = differences(before.channels if before else {}, after.channels)
    if as_json:
        print_json(
            {
                "thread_id": thread_id,
                "checkpoint_ns": namespace,
                "before": _place(before),
                "after": _place(after),
                "next_before": list(before.next_nodes) if before else [],
                "next_after": list(after.next_nodes),
                "channels": [one.as_json() for one in found],
                "journal": [one.as_json() for one in held],
                "warnings": warnings,
            },
            whole=True,
        )
    else:
        console = stdout()
        for warning in warnings:
            paragraph(console, Text("WARN ", style="bold yellow"), warning, style="yellow")
        show_differences(console, before, after, found, full=full)
    return ExitCode.FINE


async def _both(store: Store, thread_id: str, namespace: str, wanted: Range) -> tuple[View | None, View]:
    last = await store.resolve(thread_id, namespace, wanted.after)
    after = await store.view(last)
    if wanted.before is not None:
        return await store.view(await store.resolve(thread_id, namespace, wanted.before)), after
    if after.parent_id is None:
        return None, after
    parent = await store.get(thread_id, namespace, after.parent_id)
    if parent is None:
        raise RefusedError(
            f"The parent of checkpoint {after.checkpoint_id}, {after.parent_id}, is not stored any more. "
            "Name the checkpoint to compare it with."
        )
    return await store.view(parent), after


def _place(view: View | None) -> dict[str, Any] | None:
    if view is None:
        return None
    return {"checkpoint_id": view.checkpoint_id, "step": view.step, "source": view.source}


def show_differences(
    console: Console, before: View | None, after: View, found: Sequence[ChannelDifference], *, full: bool
) -> None:
    """Print what changed."""
    console.print(Text(f"--- {_said(before)}", style="red"), soft_wrap=True)
    console.print(Text(f"+++ {_said(after)}", style="green"), soft_wrap=True)
    if not found:
        console.print("No channel of the application differs.")
    for channel in found:
        console.print(Text(f"{one_line(channel.channel)} ({channel.kind})", style="bold"), soft_wrap=True)
        _print_channel(console, channel, None if full else MOST)
    ours, theirs = before.next_nodes if before else (), after.next_nodes
    if ours != theirs:
        console.print(Text("next", style="bold"))
        _line(console, "-", _nodes(ours), None)
        _line(console, "+", _nodes(theirs), None)


def _nodes(names: Sequence[str]) -> str:
    return listed(map(one_line, names), 10) or "nothing"


def _said(view: View | None) -> str:
    if view is None:
        return "nothing: this is the first checkpoint"
    return f"{view.checkpoint_id} step {'-' if view.step is None else view.step}, {view.source}"


def _print_channel(console: Console, channel: ChannelDifference, most: int | None) -> None:
    lines = [line for change in channel.messages for line in _message_lines(change.before, change.after)]
    lines += [line for value in channel.values for line in _value_lines(value, most)]
    shown_lines = lines if most is None else lines[:MOST_CHANGES]
    for mark, text in shown_lines:
        _line(console, mark, text, most)
    if len(lines) > len(shown_lines):
        console.print(Text(f"    … {len(lines) - len(shown_lines):,} more lines (--full shows all)", style="dim"))


def _message_lines(before: Message | None, after: Message | None) -> list[tuple[str, str]]:
    return [(mark, _told(one)) for mark, one in (("-", before), ("+", after)) if one is not None]


def _told(message: Message) -> str:
    name = f" {message.name}" if message.name else ""
    calls = "".join(f" -> {call.text}" for call in message.calls)
    failed = " FAILED" if message.failed else ""
    return f"{message.role}{name}{failed}: {one_line(message.text)}{calls}"


def _value_lines(change: ValueChange, most: int | None) -> list[tuple[str, str]]:
    where = f"{change.where} = " if change.where else ""
    lines = []
    if change.was_there:
        lines.append(("-", f"{where}{shown(change.before, most)}"))
    if change.is_there:
        lines.append(("+", f"{where}{shown(change.after, most)}"))
    return lines


def _line(console: Console, mark: str, text: str, most: int | None) -> None:
    style = "red" if mark == "-" else "green"
    paragraph(console, Text(f"  {mark} ", style=style), cut(text, most), style=style)
