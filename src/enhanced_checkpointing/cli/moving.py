"""`checkpointing migrate`, `export` and `import`: threads from database to database, or as JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from enhanced_checkpointing.cli.audit import note
from enhanced_checkpointing.cli.database import (
    JournalPlace,
    Naming,
    home,
    opened_for_rehearsal,
    opened_source,
    opened_target,
)
from enhanced_checkpointing.cli.output import ExitCode, UsageError, age, one_size, paragraph, plural, print_json, stdout
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.disk import reason
from enhanced_checkpointing.journal.inspect import survey
from enhanced_checkpointing.journal.recovery import MEMORY, belongs
from enhanced_checkpointing.private_files import make_private_folder
from enhanced_checkpointing.threads.exchange import export_threads, import_threads
from enhanced_checkpointing.threads.migrate import Orders, Outcome, Report, Tally, Tell, count_threads, migrate


@dataclass(frozen=True, slots=True)
class Journaled:
    """Acknowledged operations in the logs of a directory, and not in the source."""

    directory: Path
    count: int = 0
    elsewhere: dict[str, int] = field(default_factory=dict)
    """Of databases of other names, which may be the source all the same."""
    unread: str | None = None
    """Why it is not known what has come since the work began."""

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing in the source."""
        return not self.count and self.unread is None

    def sentences(self) -> Iterator[str]:
        """What makes the work incomplete, and what to do."""
        if self.count:
            yield (
                f"In the journal {self.directory}, and not in the source: "
                f"{plural(self.count, 'acknowledged operation')}. "
                "`checkpointing journal drain` brings them there; then run this again."
            )
        if self.unread is not None:
            yield (
                f"The journal {self.directory} could be read before, and cannot be now ({self.unread}): what was "
                "journaled meanwhile is not in the source, and not counted. See to it, and run this again."
            )

    def notes(self) -> Iterator[str]:
        """What may be missing, if a database has two names."""
        for other, count in self.elsewhere.items():
            yield (
                f"The journal {self.directory} holds {plural(count, 'acknowledged operation')} for {other}. If that is "
                "the source under another name, they are missing here: drain them with CHECKPOINT_JOURNAL_ADOPT=all, "
                "and run this again."
            )

    def as_json(self) -> dict[str, Any]:
        """All of it in plain JSON types."""
        found: dict[str, Any] = {"journaled": self.count, "journaled_elsewhere": self.elsewhere}
        return found if self.unread is None else found | {"journal_unread": self.unread}


def journaled_for(home: str, place: JournalPlace) -> Journaled:
    """Look into the directory for the database of that name.

    Raises:
        OSError: it cannot be read.
    """
    count, elsewhere = 0, Counter[str]()
    for log in survey(place.directory).logs:
        held = log.pending + len(log.dead_letters)
        if belongs(log.home, home, takes_over_all=place.takes_over_all):
            count += held
        elif held and log.home is not None and log.home != MEMORY:
            elsewhere[log.home] += held
    return Journaled(place.directory, count, dict(elsewhere))


def looked_again(before: Journaled, home: str, place: JournalPlace) -> Journaled:
    """The same after the work: what waited before may have come too late for it, and more may wait now."""
    try:
        after = journaled_for(home, place)
    except OSError as error:
        return replace(before, unread=reason(error))
    return replace(after, count=max(before.count, after.count), elsewhere=before.elsewhere | after.elsewhere)


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


CHANGES = (Outcome.COPIED, Outcome.COMPLETED, Outcome.REPLACED)
"""Outcomes for which something is written."""


def show_outcomes(console: Console, tally: Tally, *, rehearsed: bool = False, **words: str) -> None:
    """Threads by outcome, their size, and the speed; `words` replace those of single outcomes."""
    would = dict.fromkeys(CHANGES, "would be ") if rehearsed else {}
    found = sorted(tally.outcomes.items())
    ends = ", ".join(f"{n:,} {would.get(one, '')}{words.get(one) or WORDS[one]}" for one, n in found)
    console.print(f"{plural(tally.threads, 'thread')}{': ' * bool(ends)}{ends}")
    count = tally.count
    console.print(
        f"{plural(count.checkpoints, 'checkpoint')} and {plural(count.writes, 'write')}, {one_size(tally.written)} "
        f"{'to write' if rehearsed else 'written'}, in {tally.seconds:.1f} s: {_rate(tally):,.0f} threads/s"
    )


def show_journaled(console: Console, journaled: Journaled) -> None:
    """Say what the source lacks, or may lack, as it is in a journal."""
    for sentence in journaled.sentences():
        console.print(sentence, style="bold red", markup=False, soft_wrap=True)
    for text in journaled.notes():
        console.print(text, style="yellow", markup=False, soft_wrap=True)


def show_problems(console: Console, tally: Tally) -> None:
    """Name the threads that are not as they should be, and why."""
    for report in tally.problems[:SHOWN]:
        name = repr(report.thread_id) if report.thread_id else "-"
        lead = Text.assemble((f"{WORDS[report.outcome]:<10}", "bold red"))
        paragraph(console, lead, name, style="bold")
        for text in report.reasons:
            paragraph(console, Text(" " * len(lead)), text)
    bad = sum(count for outcome, count in tally.outcomes.items() if not outcome.good)
    if bad > SHOWN:
        console.print(f"and {bad - SHOWN:,} more; --json names {len(tally.problems):,}")


def _noted(tally: Tally) -> dict[str, Any]:
    """What the audit trail says of a move: which threads it concerned, and what became of how many."""
    outcomes = {outcome.value: count for outcome, count in sorted(tally.outcomes.items())}
    return {"threads": tally.thread_ids, "count": tally.threads, "outcomes": outcomes}


def _rate(tally: Tally) -> float:
    return tally.threads / tally.seconds if tally.seconds else 0.0


def run_migrate(source: str, target: str, naming: Naming, orders: Orders, showing: Showing) -> ExitCode:
    """Migrate, print, and tell whether the two are the same."""
    configs = naming.config(source), naming.config(target)
    homes = home(configs[0]), home(configs[1])
    if homes[0] == homes[1]:
        raise UsageError(f"Source and target are the same database, {homes[0]}. Nothing was changed.")
    place = naming.journal()
    before = journaled_for(homes[0], place)  # what cannot be read is better known before hours of work than after
    tally = asyncio.run(_migrated(*configs, naming.concurrency, orders, showing))
    if not (orders.rehearse or orders.compare_only):
        note(place.directory, homes[1], "migrate", **_noted(tally), source=homes[0], migrated=tally.threads)
    journaled = looked_again(before, homes[0], place)
    complete = tally.complete and journaled.complete
    if showing.as_json:
        print_json(as_object(tally, journaled, source=homes[0], target=homes[1], rehearsal=orders.rehearse))
    elif not (showing.quiet and complete):
        _show_migrated(tally, homes, orders)
        show_journaled(stdout(), journaled)
    return ExitCode.FINE if complete else ExitCode.WRONG


async def _migrated(
    from_config: CheckpointerConfig, to_config: CheckpointerConfig, concurrency: int, orders: Orders, showing: Showing
) -> Tally:
    if orders.compare_only:
        opening = opened_source(to_config, "target")
    else:
        opening = opened_for_rehearsal(to_config) if orders.rehearse else opened_target(to_config)
    async with opened_source(from_config) as source, opening as target:
        total = None if showing.quiet else await count_threads(source)
        with following(_doing(orders), total, quiet=showing.quiet) as tell:
            return await migrate(source, target, orders, concurrency=concurrency, tell=tell)


def _doing(orders: Orders) -> str:
    if orders.compare_only:
        return "compared"
    return "looked at" if orders.rehearse else "moved"


def _show_migrated(tally: Tally, homes: tuple[str, str], orders: Orders) -> None:
    console = stdout()
    console.print(f"from {homes[0]}", markup=False, soft_wrap=True)
    console.print(f"to   {homes[1]}", markup=False, soft_wrap=True)
    show_outcomes(console, tally, rehearsed=orders.rehearse)
    show_problems(console, tally)
    if orders.rehearse:
        console.print("This was a rehearsal: nothing was changed.")
    elif tally.complete:
        console.print("Every thread of the source was read from both sides, and they are equal.", style="bold green")
    else:
        console.print("Not complete: the threads above are not the same on both sides.", style="bold red")


STREAM = "-"
"""Stands for standard output, or input, instead of a file."""

OWNER_ONLY = 0o600
"""Conversations are private."""

PART_LENGTH = 60
"""Characters of a file's name that its unfinished one begins with."""

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that would end the process at once, with an unfinished file left."""


def run_export(source: str, file: str, thread_ids: Sequence[str], naming: Naming, showing: Showing) -> ExitCode:
    """Export, print what was exported, and tell whether that is all."""
    config, place = naming.config(source), naming.journal()
    before = journaled_for(home(config), place)

    def begins(part: Path) -> None:
        note(place.directory, home(config), "export begins", threads=thread_ids, file=str(part.absolute()))

    with _written(file, begins) as stream:
        tally = asyncio.run(_exported(config, stream, thread_ids, showing))
    where = "standard output" if file == STREAM else str(Path(file).absolute())
    note(place.directory, home(config), "export", **_noted(tally), file=where, exported=tally.threads)
    journaled = looked_again(before, home(config), place)
    words = Words(home(config), file, "exported")
    _show_exchanged(tally, showing, words, journaled, sys.stderr if file == STREAM else sys.stdout)
    return ExitCode.FINE if tally.complete and journaled.complete else ExitCode.WRONG


def run_import(file: str, target: str, naming: Naming, orders: Orders, showing: Showing) -> ExitCode:
    """Import, print what was imported, and tell whether that is all."""
    config = naming.config(target)
    with _read(file) as stream:
        tally = asyncio.run(_imported(config, stream, naming.concurrency, orders, showing))
    if not orders.rehearse:
        note(naming.journal().directory, home(config), "import", **_noted(tally), file=file, imported=tally.threads)
    _show_exchanged(tally, showing, Words(file, home(config), "imported", orders.rehearse), None, sys.stdout)
    return ExitCode.FINE if tally.complete else ExitCode.WRONG


async def _exported(
    config: CheckpointerConfig, stream: IO[bytes], thread_ids: Sequence[str], showing: Showing
) -> Tally:
    async with opened_source(config) as source:
        total = len(set(thread_ids)) or (None if showing.quiet else await count_threads(source))
        with following("exported", total, quiet=showing.quiet) as tell:
            return await export_threads(source, stream, thread_ids=thread_ids, tell=tell)


async def _imported(
    config: CheckpointerConfig, stream: IO[bytes], concurrency: int, orders: Orders, showing: Showing
) -> Tally:
    opening = opened_for_rehearsal(config) if orders.rehearse else opened_target(config)
    async with opening as target:
        with following("imported", None, quiet=showing.quiet) as tell:
            return await import_threads(stream, target, orders, concurrency=concurrency, tell=tell)


@contextmanager
def _written(file: str, begins: Callable[[Path], None]) -> Iterator[IO[bytes]]:
    """A stream to write to. A file gets its name when it is whole, so that no other one is taken for an export;
    `begins` hears of the one that is there until then, and is left by an export that is killed."""
    if file == STREAM:
        if sys.stdout is None:
            raise UsageError("Standard output is closed. Nothing was exported: name a file.")
        yield sys.stdout.buffer
        return
    path = Path(file)
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already. Nothing was exported: name another file, or take that one away.")
    make_private_folder(path.absolute().parent)
    part = path.with_name(f"{path.name[:PART_LENGTH]}.{secrets.token_hex(8)}.part")
    begins(part)
    with _ended_by_signals():
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            _name(part, path)
        finally:
            part.unlink(missing_ok=True)


def _name(part: Path, path: Path) -> None:
    """Give a file its name, unless there is one of that name by now."""
    try:
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: the first to make the empty file has the name
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY))
            part.replace(path)
    except FileExistsError:
        raise UsageError(
            f"{path} has come while this was at work, and stays as it is. Nothing was exported: name another file, or "
            "take that one away."
        ) from None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let what ends a process by default end it as an error would, so that nothing half stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _read(file: str) -> Iterator[IO[bytes]]:
    if file == STREAM:
        yield sys.stdin.buffer
        return
    with open(file, "rb") as stream:
        yield stream


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of an exchange: from where, to where, and what was done."""

    source: str
    target: str
    copied: str
    rehearsed: bool = False


def _show_exchanged(tally: Tally, showing: Showing, words: Words, journaled: Journaled | None, stream: IO[str]) -> None:
    console = Console(highlight=False, file=stream)
    complete = tally.complete and (journaled is None or journaled.complete)
    if showing.as_json:
        shown = as_object(tally, journaled, source=words.source, target=words.target)
        print(json.dumps(shown, indent=2), file=stream)
    elif not (showing.quiet and complete):
        console.print(f"from {words.source}", markup=False, soft_wrap=True)
        console.print(f"to   {words.target}", markup=False, soft_wrap=True)
        show_outcomes(console, tally, rehearsed=words.rehearsed, copied=words.copied)
        show_problems(console, tally)
        if journaled is not None:
            show_journaled(console, journaled)
