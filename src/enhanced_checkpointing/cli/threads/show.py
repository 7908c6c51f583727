"""`checkpointing threads show`: the state of a conversation, and what it waits for, for people to read."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.backends.listing import THREAD_STATUS, TOUCHED_AT, ThreadHead, status_of, user_of
from enhanced_checkpointing.cli.output import (
    ExitCode,
    RefusedError,
    age,
    clean,
    one_line,
    one_size,
    paragraph,
    plural,
    print_json,
    stdout,
)
from enhanced_checkpointing.cli.threads.checkpoint import Message, View, as_object, conversation_of
from enhanced_checkpointing.cli.threads.database import Holding, Store, Target, config_for, journal_notes, run_with
from enhanced_checkpointing.cli.values import brief, cut, shown
from enhanced_checkpointing.errors import listed, quoted
from enhanced_checkpointing.ownership import OWNER

MOST_CHARACTERS, MOST_LINES = 400, 12
"""Of one value; --full shows all of it."""
LAST_MESSAGES = 20
"""So many are shown of a conversation."""
SUBGRAPHS_AMONG = 20
"""Checkpoints, the newest ones, among which is looked for subgraphs."""

STYLES = {"human": "bold cyan", "ai": "bold green", "tool": "yellow", "system": "magenta"}
LEAD = 12


@dataclass(frozen=True, slots=True)
class Subject:
    """What is shown: a checkpoint, and where it stands in its thread."""

    view: View
    head: ThreadHead | None
    is_newest: bool
    subgraphs: tuple[str, ...] = ()


def run(
    target: Target, thread_id: str, *, checkpoint: str | None, namespace: str, full: bool, as_json: bool
) -> ExitCode:
    """Show a checkpoint of a thread, the newest one if none is named."""
    configured = config_for(target)

    async def work(store: Store) -> tuple[Subject, list[Holding], list[str]]:
        notes = journal_notes(configured.journal_dir, store.home, await store.seen([thread_id]))
        return await _subject(store, thread_id, checkpoint, namespace, notes[0]), *notes

    subject, held, warnings = run_with(configured, work)
    if as_json:
        print_json(_as_object(subject, held, warnings), whole=True)
    else:
        _print(subject, warnings, stdout(), time.time(), full=full)
    return ExitCode.FINE


async def _subject(
    store: Store, thread_id: str, checkpoint: str | None, namespace: str, held: Sequence[Holding]
) -> Subject:
    head = (await store.heads([thread_id])).get(thread_id)
    if head is None:
        text = f"There is no thread {quoted(thread_id)} in {store.home}."
        raise RefusedError(" ".join([text, *(f"{one.text} {one.way_out}" for one in held)]))
    newest = await store.page(thread_id, None, None, SUBGRAPHS_AMONG)
    subgraphs = await store.namespaces(thread_id, newest)
    try:
        found = await store.resolve(thread_id, namespace, checkpoint)
    except RefusedError as refused:
        if namespace or checkpoint or not subgraphs:
            raise
        text = f"{refused} Its subgraphs have: --namespace {listed(map(repr, subgraphs))}"
        raise RefusedError(text) from None
    last = await store.page(thread_id, namespace, None, 1)
    is_newest = bool(last) and last[0].checkpoint["id"] == found.checkpoint["id"]
    return Subject(await store.view(found), head, is_newest, tuple(subgraphs))


def _as_object(subject: Subject, held: Sequence[Holding], warnings: Sequence[str]) -> dict[str, Any]:
    head = subject.head
    return {
        **as_object(subject.view),
        "is_newest": subject.is_newest,
        "user_id": _user(subject),
        "status": status_of(head.metadata) if head else None,
        "checkpoints": head.checkpoints if head else None,
        "size": head.size if head else None,
        "subgraphs": list(subject.subgraphs),
        "journal": [one.as_json() for one in held],
        "warnings": list(warnings),
    }


def _print(subject: Subject, warnings: Sequence[str], console: Console, now: float, *, full: bool) -> None:
    for warning in warnings:
        paragraph(console, Text("WARN ", style="bold yellow"), warning, style="yellow")
    for lead, text, style in lines_of(subject, now, full=full):
        _print_lines(console, lead, text, style)
    for name, value in subject.view.channels.items():
        messages = conversation_of(value)
        if messages:
            _print_conversation(console, name, messages, full=full)
    others = {name: value for name, value in subject.view.channels.items() if not conversation_of(value)}
    if others:
        console.print()
    for name, value in others.items():
        _print_lines(console, one_line(name), shown(value, None if full else MOST_CHARACTERS), "")


def lines_of(subject: Subject, now: float, *, full: bool) -> Iterator[tuple[str, str, str]]:
    """What is said about a checkpoint before its values: a name, a text, and its style."""
    view, head, most = subject.view, subject.head, None if full else MOST_CHARACTERS
    yield "thread", one_line(view.thread_id), "bold"
    if head and (status := status_of(head.metadata)):
        yield "status", one_line(str(status)), ""
    if user := _user(subject):
        yield "user", one_line(user), ""
    if view.checkpoint_ns:
        yield "subgraph", one_line(view.checkpoint_ns), ""
    yield "checkpoint", f"{view.checkpoint_id} ({'the newest' if subject.is_newest else 'not the newest'})", ""
    made = f", {view.made_at:%Y-%m-%d %H:%M:%S} UTC, {age(now - view.made_at.timestamp())} ago" if view.made_at else ""
    yield "made", f"step {'-' if view.step is None else view.step}, {view.source}{made}", ""
    if head:
        yield "stored", f"{plural(head.checkpoints, 'checkpoint')}, {one_size(head.size)}", ""
    if told := _told(view.metadata):
        yield "metadata", shown(told, most), ""
    if subject.subgraphs and not view.checkpoint_ns:
        yield "subgraphs", f"--namespace {listed(map(repr, subject.subgraphs))}", ""
    yield from _state(view, most, is_newest=subject.is_newest)


def _state(view: View, most: int | None, *, is_newest: bool) -> Iterator[tuple[str, str, str]]:
    """What comes next, or why nothing does."""
    for error in view.errors:
        yield "ERROR", f"a task failed: {shown(error.value, most)}", "bold red"
    for asked in view.interrupts:
        word = "WAITS" if is_newest else "asked"
        which = f" [{asked.interrupt_id}]" if asked.interrupt_id and len(view.interrupts) > 1 else ""
        yield word, f"{_question(asked.value, most)}{which}", "bold yellow" if is_newest else ""
    if view.next_nodes:
        yield "next", listed(map(one_line, view.next_nodes), 10), ""
    elif not view.interrupts and not view.errors:
        yield "next", "nothing: this run has come to its end" if view.tells_next else "not known", ""
    if view.given is not None:
        yield "input", brief(view.given, most) if most else shown(view.given), ""
    for write in view.writes:
        yield (
            "pending" if is_newest else "written",
            f"{one_line(write.channel)} = {_short(write.value, most)} (task {write.task_id[:8]})",
            "",
        )
    if view.rebuilt_channels:
        names = listed(view.rebuilt_channels)
        yield "rebuilt", f"{names}: stored as what was written, and put together here without your reducer", "dim"


def _short(value: Any, most: int | None) -> str:
    """A value that may be messages, which are told in short."""
    messages = conversation_of(value if isinstance(value, (list, tuple)) else [value])
    if not messages:
        return shown(value, most)
    return cut("; ".join(f"{one.role}: {one_line(_summary(one))}" for one in messages), most)


def _summary(message: Message) -> str:
    return " ".join([message.text, *(f"-> {call.text}" for call in message.calls)]).strip() or "(empty)"


def _question(value: Any, most: int | None) -> str:
    """What is asked; a dict, part by part."""
    if isinstance(value, dict) and value:
        return "\n".join(f"{one_line(str(key))}: {shown(part, most)}" for key, part in value.items())
    return cut(clean(value), most) if isinstance(value, str) else shown(value, most)


def _user(subject: Subject) -> str | None:
    return user_of(subject.view.metadata) or (subject.head.user_id if subject.head else None)


def _told(metadata: Any) -> dict[str, Any]:
    """What an application has put into metadata, without what is shown elsewhere."""
    known: tuple[str, ...] = (
        THREAD_STATUS,
        TOUCHED_AT,
        "step",
        "source",
        "user_id",
        "thread_id",
        "parents",
        "writes",
        "counters_since_delta_snapshot",
    )
    if metadata.get(OWNER) == user_of(metadata):
        known = (*known, OWNER)
    return {key: part for key, part in metadata.items() if key not in known and not key.startswith("__")}


# The conversation


def messages_of(messages: Sequence[Message], width: int, *, full: bool) -> Iterator[tuple[str, Sequence[str], str]]:
    """Each message as who speaks, its lines, and the style of who speaks."""
    for message in messages if full else messages[-LAST_MESSAGES:]:
        text = message.text if full else cut(message.text, MOST_CHARACTERS)
        if message.name and message.role == "tool":
            text = f"{message.name}: {text}"
        elif message.name:
            text = f"({message.name}) {text}"
        lines = _wrapped(text, width) if text.strip() else []
        if not full and len(lines) > MOST_LINES:
            lines = [*lines[:MOST_LINES], f"… ({len(lines) - MOST_LINES} more lines)"]
        for call in message.calls:
            lines += _wrapped(f"-> {call.text if full else cut(call.text, MOST_CHARACTERS)}", width)
        style = "bold red" if message.failed else STYLES.get(message.role, "bold")
        yield f"{message.role}{' FAILED' * message.failed}", lines or ["(empty)"], style


def _print_conversation(console: Console, name: str, messages: Sequence[Message], *, full: bool) -> None:
    console.print()
    hidden = 0 if full else max(0, len(messages) - LAST_MESSAGES)
    what = f"{one_line(name)} ({len(messages):,})"
    console.print(Text(f"{what}, the last {LAST_MESSAGES}; --full shows all" if hidden else what, style="dim"))
    for who, lines, style in messages_of(messages, max(20, console.width - LEAD), full=full):
        _print_wrapped(console, who, lines, style, "")


def _print_lines(console: Console, name: str, text: str, style: str) -> None:
    lines = _wrapped(text, max(20, console.width - LEAD))
    _print_wrapped(console, name, lines, style if name.isupper() else "dim", style)


def _print_wrapped(console: Console, name: str, lines: Sequence[str], name_style: str, style: str) -> None:
    """Print lines beside a name; a name that is too long has a line of its own."""
    lead = Text(name.ljust(LEAD), style=name_style)
    if len(name) >= LEAD:
        console.print(lead, soft_wrap=True)
        lead = Text(" " * LEAD)
    for number, part in enumerate(lines):
        console.print(Text.assemble(lead if number == 0 else " " * LEAD, (part, style)), soft_wrap=True)


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text. Words that are too long stay whole, so that they can be copied; indents stay, too."""
    lines: list[str] = []
    for line in text.expandtabs(4).split("\n"):
        wrapped = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False, drop_whitespace=True)
        lines += wrapped or [""]
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines
