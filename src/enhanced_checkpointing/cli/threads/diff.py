"""`checkpointing threads diff`: what changed between two checkpoints of a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.configuration import RefusedError, UsageError
from enhanced_checkpointing.cli.findings import ExitCode
from enhanced_checkpointing.cli.safe_text import one_line
from enhanced_checkpointing.cli.screen import listed, paragraph, print_json, stdout
from enhanced_checkpointing.cli.threads.checkpoint_view import View
from enhanced_checkpointing.cli.threads.conversation import Message
from enhanced_checkpointing.cli.threads.database import Store, Target, config_for, run_with
from enhanced_checkpointing.cli.threads.differences import ChannelDifference, ValueChange, differences
from enhanced_checkpointing.cli.threads.journal import Holding, journal_notes
from enhanced_checkpointing.cli.value_texts import cut, shown

__all__ = ["Range", "range_of", "run", "show_differences"]

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
        lines.append(("-", f"{where}{_written(change.before, most)}"))
    if change.is_there:
        lines.append(("+", f"{where}{_written(change.after, most)}"))
    return lines


def _written(value: Any, most: int | None) -> str:
    return shown(value, most)


def _line(console: Console, mark: str, text: str, most: int | None) -> None:
    style = "red" if mark == "-" else "green"
    paragraph(console, Text(f"  {mark} ", style=style), cut(text, most), style=style)
