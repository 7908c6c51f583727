"""How the demo looks: a live display on a terminal, lines anywhere else, and the final table."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from enhanced_checkpointing.cli.demo.record import Conversation, Event, Record, Report, Row, State

FRAME_SECONDS = 0.125
PROGRESS_SECONDS = 5.0

_FIXED_ROWS = 8
"""Rows of a frame that are neither conversations nor events, and one to spare."""

_STATE_STYLES = {
    State.STARTING: "bold reverse",
    State.HEALTHY: "bold white on dark_green",
    State.OUTAGE: "bold white on red3",
    State.DRAINING: "bold black on yellow3",
}
_SOURCE_STYLES = {"fault": "bold red", "lost": "magenta", "log": "dim", "state": "bold", "demo": "cyan"}


class Screen(Protocol):
    """What shows the record while the demo runs, and the report when it is over."""

    def on_event(self, event: Event) -> None: ...

    def following(self, record: Record) -> AbstractAsyncContextManager[None]: ...

    def print_report(self, report: Report) -> None: ...


def open_screen(*, as_json: bool, plain: bool) -> Screen:
    """The screen that fits where the output goes."""
    console = Console(highlight=False)
    if as_json:
        return _JsonScreen(Console(highlight=False, stderr=True, color_system=None))
    if plain or not console.is_terminal or console.is_dumb_terminal:
        return _LineScreen(Console(highlight=False, color_system=None))
    return _LiveScreen(console)


class _LineScreen:
    """One line for each event, and one with the figures every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_event(self, event: Event) -> None:
        self._print(event.at, event.source, event.text)

    @asynccontextmanager
    async def following(self, record: Record) -> AsyncIterator[None]:
        async def show() -> None:
            if record.guarded:
                done = record.turns_done / (record.turns_done + record.turns_left)
                self._print(record.elapsed, "", f"{done:.0%} done; {_figures(record)}; {_latency(record)}")

        async with _repeating(show, PROGRESS_SECONDS):
            yield

    def print_report(self, report: Report) -> None:
        self._console.print(report_table(report))

    def _print(self, at: float, source: str, text: str) -> None:
        self._console.print(Text(f"{at:5.1f} s  {source:<5}  {text}"), soft_wrap=True)


class _JsonScreen(_LineScreen):
    """The lines go to stderr, so that stdout has one JSON object and nothing else."""

    def print_report(self, report: Report) -> None:
        print(json.dumps(report.as_json(), indent=2))


class _LiveScreen:
    """A frame that is drawn over itself; the last one stays above the report."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_event(self, event: Event) -> None:
        """Nothing: the next frame has it."""

    @asynccontextmanager
    async def following(self, record: Record) -> AsyncIterator[None]:
        def frame() -> RenderableType:
            return live_frame(record, self._console.height)

        with Live(frame(), console=self._console, auto_refresh=False) as live:

            async def show() -> None:
                live.update(frame(), refresh=True)

            async with _repeating(show, FRAME_SECONDS):
                yield
            await show()

    def print_report(self, report: Report) -> None:
        self._console.print(report_table(report))


@asynccontextmanager
async def _repeating(show: Callable[[], Awaitable[None]], seconds: float) -> AsyncIterator[None]:
    async def repeat() -> None:
        while True:
            await show()
            await asyncio.sleep(seconds)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()  # raises what went wrong in it


def live_frame(record: Record, height: int) -> RenderableType:
    """One picture of a running demo, in at most `height` - 1 rows."""
    conversations = min(len(record.guarded), max(height - _FIXED_ROWS - 5, 1))
    events = max(height - _FIXED_ROWS - conversations - (len(record.guarded) > conversations), 3)
    return Group(
        Rule(f"{len(record.guarded)} conversations on {record.title}" if record.guarded else record.title),
        _state_line(record),
        Text(f" calls    {_figures(record)}", no_wrap=True, overflow="ellipsis"),
        Text(f" latency  {_latency(record)}", no_wrap=True, overflow="ellipsis"),
        Text(),
        _conversation_table(record, conversations),
        Text(),
        *(_event_line(event) for event in record.events[-events:]),
    )


def _state_line(record: Record) -> RenderableType:
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    state = Text.assemble(" ", (f" {record.state.value:<8} ", _STATE_STYLES[record.state]))
    if record.fault:
        state.append(f"  {record.fault}", style="bold red")
    line.add_row(state, f"{record.elapsed:5.1f} s ")
    return line


def _figures(record: Record) -> str:
    outcomes = record.meter.outcomes
    return (
        f"{outcomes['primary']} to primary · {outcomes['journaled']} to journal · "
        f"{record.drained} drained · {record.pending} waiting"
    )


def _latency(record: Record) -> str:
    return f"p50 {record.meter.p50_milliseconds:.1f} ms · max {record.meter.max_milliseconds:.0f} ms"


def _conversation_table(record: Record, shown: int) -> RenderableType:
    table = Table(box=None, padding=(0, 1), expand=True, header_style="dim")
    table.add_column("conversation", ratio=3, no_wrap=True)
    table.add_column("with failover", ratio=4, no_wrap=True)
    table.add_column("", ratio=2, no_wrap=True)
    table.add_column("bare saver", ratio=3, no_wrap=True)
    pairs = list(zip(record.guarded, record.bare, strict=True))
    for number, (guarded, bare) in enumerate(pairs[:shown], start=1):
        bar = ProgressBar(total=1.0, completed=guarded.share)
        table.add_row(f"{number} {guarded.title}", bar, _progress(guarded), _progress(bare))
    if len(pairs) > shown:
        table.add_row(f"and {len(pairs) - shown} more", "", "", "", style="dim")
    return table


def _progress(conversation: Conversation) -> Text:
    if conversation.error:
        return Text(f"lost in turn {conversation.turn}", style="bold magenta")
    if conversation.finished:
        return Text("done", style="green")
    return Text(f"turn {conversation.turn} of {conversation.turns}")


def _event_line(event: Event) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f" {event.at:5.1f}  ", style="dim")
    style = _STATE_STYLES[State(event.text)] if event.source == "state" else _SOURCE_STYLES.get(event.source, "")
    return line.append(f"{event.text}", style=style)


def report_table(report: Report) -> RenderableType:
    """The proof, one line for each conversation, and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("conversation", no_wrap=True)
    table.add_column("messages", justify="right", no_wrap=True)
    table.add_column("checkpoints", justify="right", no_wrap=True)
    table.add_column("its twin", no_wrap=True)
    table.add_column("bare saver lost it in", no_wrap=True, overflow="ellipsis")
    for number, row in enumerate(report.conversations, start=1):
        table.add_row(
            f"{number} {row.title}",
            f"{row.messages} of {row.twin_messages}",
            f"{row.checkpoints} of {row.twin_checkpoints}",
            Text("DIFFERS", style="bold red") if row.difference else Text("equal", style="green"),
            _bare(row),
        )
    style = "bold green" if report.equal else "bold red"
    differences = [Text(f"{row.conversation}: {row.difference}") for row in report.conversations if row.difference]
    return Group(Rule("Read from the database afterwards"), table, *differences, Text(report.verdict, style=style))


def _bare(row: Row) -> Text:
    if row.bare_saver_lost_it is None:
        return Text("no, kept", style="green")
    reason = row.bare_saver_lost_it.partition(":")[0]
    return Text(f"turn {row.bare_saver_turn}, {reason}", style="magenta")
