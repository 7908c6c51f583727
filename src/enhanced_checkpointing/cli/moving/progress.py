"""What a command that moves threads shows: how far it is, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from enhanced_checkpointing.cli.moving.journaled import Journaled
from enhanced_checkpointing.cli.screen import age, one_size, paragraph, plural
from enhanced_checkpointing.threads.migrate import Tally, Tell
from enhanced_checkpointing.threads.moving import Outcome, Report

__all__ = ["Showing", "as_object", "following", "show_journaled", "show_outcomes", "show_problems"]

LINE_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""
SHOWN = 20
"""Threads that are named for people; with --json there are more."""

WORDS = {
    Outcome.COPIED: "copied",
    Outcome.COMPLETED: "completed",
    Outcome.REPLACED: "replaced",
    Outcome.EQUAL: "equal already",
    Outcome.REFUSED: "refused",
    Outcome.DIFFERENT: "different",
    Outcome.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Showing:
    """How a command shows what it does."""

    as_json: bool = False
    quiet: bool = False


@contextmanager
def following(what: str, total: int | None, *, quiet: bool) -> Iterator[Tell]:
    """Follow a move on stderr: a bar with rate and time left on a terminal, else a line now and then."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with _bar(what, total, console) as tell:
            yield tell
    else:
        yield _Lines(what, total, console).tell


@contextmanager
def _bar(what: str, total: int | None, console: Console) -> Iterator[Tell]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda _: progress.advance(task)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} threads/s" if task.speed else "", style="dim")


class _Lines:
    """Lines of progress."""

    def __init__(self, what: str, total: int | None, console: Console) -> None:
        self._what = what
        self._total = total
        self._console = console
        self._done = 0
        self._began_at = self._told_at = time.monotonic()

    def tell(self, _: Report) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._told_at < LINE_EVERY:
            return
        self._told_at, rate = now, self._done / (now - self._began_at)
        total, left = "", ""
        if self._total is not None:
            total, left = f" of {self._total:,}", f", {age(max(0, self._total - self._done) / rate)} left"
        self._console.print(f"{self._what} {self._done:,}{total} threads, {rate:,.0f} threads/s{left}")


def as_object(tally: Tally, journaled: Journaled | None = None, **more: Any) -> dict[str, Any]:
    """All of it, for scripts."""
    complete = tally.complete and (journaled is None or journaled.complete)
    return {
        "status": "complete" if complete else "incomplete",
        **more,
        **(journaled.as_json() if journaled is not None else {"journaled": 0}),
        "threads": tally.threads,
        "outcomes": {outcome.value: tally.outcomes[outcome] for outcome in Outcome},
        "checkpoints": tally.count.checkpoints,
        "writes": tally.count.writes,
        "bytes": tally.written,
        "seconds": round(tally.seconds, 3),
        "threads_per_second": round(_rate(tally), 1),
        "problems": [
            {"thread_id": report.thread_id, "outcome": report.outcome.value, "reasons": report.reasons}
            for report in tally.problems
        ],
    }


def show_outcomes(console: Console, tally: Tally, **words: str) -> None:
    """How many threads came to what end, how much that was, and how fast; `words` are others for outcomes."""
    found = sorted(tally.outcomes.items())
    ends = ", ".join(f"{count:,} {words.get(outcome) or WORDS[outcome]}" for outcome, count in found)
    console.print(f"{plural(tally.threads, 'thread')}{': ' * bool(ends)}{ends}")
    count = tally.count
    console.print(
        f"{plural(count.checkpoints, 'checkpoint')} and {plural(count.writes, 'write')}, {one_size(tally.written)} "
        f"written, in {tally.seconds:.1f} s: {_rate(tally):,.0f} threads/s"
    )


def show_journaled(console: Console, journaled: Journaled) -> None:
    """Say what the source lacks, or may lack, as it is in a journal."""
    for sentence in journaled.sentences():
        console.print(sentence, style="bold red", markup=False, soft_wrap=True)
    for note in journaled.notes():
        console.print(note, style="yellow", markup=False, soft_wrap=True)


def show_problems(console: Console, tally: Tally) -> None:
    """Name the threads that are not as they should be, and why."""
    for report in tally.problems[:SHOWN]:
        name = repr(report.thread_id) if report.thread_id else "-"
        lead = Text.assemble((f"{WORDS[report.outcome]:<10}", "bold red"))
        paragraph(console, lead, name, style="bold")
        for reason in report.reasons:
            paragraph(console, Text(" " * len(lead)), reason)
    bad = sum(count for outcome, count in tally.outcomes.items() if not outcome.good)
    if bad > SHOWN:
        console.print(f"and {bad - SHOWN:,} more; --json names {len(tally.problems):,}")


def _rate(tally: Tally) -> float:
    return tally.threads / tally.seconds if tally.seconds else 0.0
