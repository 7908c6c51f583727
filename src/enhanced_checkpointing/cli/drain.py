"""`checkpointing journal drain` and `retry`: brings to the primary what ended processes left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from enhanced_checkpointing.audit import Notes, named
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.cli.configuration import Options, reading, required
from enhanced_checkpointing.cli.journal import as_object, exit_code, owner_of
from enhanced_checkpointing.cli.output import ExitCode, UsageError, paragraph, plural, print_json, stdout
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointUnavailableError, listed, quoted, redact
from enhanced_checkpointing.journal.api import DeadLetter, Journal
from enhanced_checkpointing.journal.inspect import Owner, Survey, SurveyedLog, survey
from enhanced_checkpointing.journal.opening import open_journal, signer_of
from enhanced_checkpointing.journal.recovery import MEMORY
from enhanced_checkpointing.observability.events import (
    NOTHING,
    ConfigurationFault,
    Diverged,
    Event,
    Gauges,
    Notice,
    OperationScope,
)
from enhanced_checkpointing.operations import DeleteThread
from enhanced_checkpointing.recovery.drain import Reconciler
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.upkeep.assembly import assemble
from enhanced_checkpointing.upkeep.components import Components

PAUSE = 0.5
"""Seconds between two tries while the primary takes no writes."""


@dataclass(slots=True)
class Told:
    """Keeps what is out of the ordinary, each line once: that there is a backlog is known already."""

    lines: list[str] = field(default_factory=list)

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        return NOTHING

    def observe(self, gauges: Callable[[], Gauges]) -> None:
        """Nothing reads gauges here."""

    def close(self) -> None:
        """Nothing is open."""

    def emit(self, event: Event) -> None:
        line = ""
        if isinstance(event, Notice) and event.level == "ERROR":
            line = event.message
        elif isinstance(event, ConfigurationFault):
            line = f"the primary refuses: {event.error}. {event.fix}"
        elif isinstance(event, Diverged):
            line = (
                f"thread {quoted(event.thread_id)} was written by another process meanwhile: both branches are kept, "
                f"this one as {event.kept_as!r}"
            )
        if line and line not in self.lines:
            self.lines.append(line)


class Foreground:
    """Drains what its journal holds, for as long as the caller waits."""

    def __init__(self, parts: Components, journal: Journal, reconciler: Reconciler, told: Told, home: str) -> None:
        self._parts = parts
        self._journal = journal
        self._reconciler = reconciler
        self.told = told
        self.home = home
        self._found = {thread_id: journal.entries(thread_id) for thread_id in journal.held_threads()}

    @property
    def pending(self) -> int:
        """Operations that wait, those of frozen threads included."""
        return self._journal.status().pending

    @property
    def drained(self) -> int:
        return self._reconciler.drained

    @property
    def divergences(self) -> int:
        return self._reconciler.divergences

    @property
    def dead_letters(self) -> list[DeadLetter]:
        return list(self._journal.dead_letters())

    @property
    def frozen_threads(self) -> tuple[str, ...]:
        """Threads that cannot be drained now, for whatever reason."""
        return self._journal.status().frozen_threads

    async def prove(self) -> None:
        """See that the primary takes writes.

        Raises:
            CheckpointUnavailableError: it does not.
        """
        try:
            await self._parts.prober.prove()
        except CallFailed as failed:
            reason = " ".join(redact(failed.error).split())
            fix = failed.failure.fix or "`checkpointing doctor` looks for the cause."
            raise CheckpointUnavailableError(f"The primary takes no writes ({reason}). {fix}") from None

    async def drain(self, deadline: Deadline) -> None:
        """Drain all that can be drained, until the deadline."""
        while self._journal.anything_waits() and deadline.remaining():
            if await self._takes_writes():
                await deadline.wait_for(asyncio.ensure_future(self._reconciler.drain_all()))
            if self._journal.anything_waits():
                await asyncio.sleep(min(PAUSE, deadline.remaining()))

    async def drain_thread(self, thread_id: str, deadline: Deadline) -> bool:
        """Drain one thread; False if something of it stays: it froze again, or the deadline was over."""
        while self._journal.holds(thread_id) and not self._journal.is_frozen(thread_id) and deadline.remaining():
            if await self._takes_writes() and await self._reconciler.drain_first(thread_id, deadline):
                return True
            if not self._journal.is_frozen(thread_id):
                await asyncio.sleep(min(PAUSE, deadline.remaining()))
        return not self._journal.holds(thread_id)

    async def note(self, action: str) -> None:
        """Note in the audit trail what went from the journal to the primary, if anything."""
        gone = {thread_id: {*found} - {*self._journal.entries(thread_id)} for thread_id, found in self._found.items()}
        deleted = [one for one, entries in gone.items() if any(entry.name == DeleteThread.name for entry in entries)]
        if threads := [thread_id for thread_id, entries in gone.items() if entries]:
            operations = sum(map(len, gone.values()))
            await self._parts.note(action, threads=threads, operations=operations, deleted=named(deleted))

    async def _takes_writes(self) -> bool:
        if self._parts.breaker.is_open:
            await self._parts.prober.probe()
        return not self._parts.breaker.is_open


@asynccontextmanager
async def opened_foreground(config: CheckpointerConfig) -> AsyncIterator[Foreground]:
    """Take over what ended processes left for the primary of a configuration; give back at the end what is left of it.

    Raises:
        UsageError: the primary is memory, in which everything would be lost.
        CheckpointerConfigurationError: the primary or the journal cannot be opened.
    """
    config = config.with_overrides(journal="durable")
    told, serializer = Told(), SharingSerializer(config.serde)
    async with AsyncExitStack() as stack:
        backend = find_backend(config.backend_name)(config, serializer)
        home = backend.database_id()
        if home == MEMORY:
            raise UsageError(
                "The primary is memory, so what is drained would be gone when this command ends. Nothing was changed. "
                "Name the database: --database-url, --sqlite, or CHECKPOINT_ENVIRONMENT=production with DATABASE_URL."
            )
        stack.push_async_callback(backend.close)
        await backend.open()
        journal = await open_journal(config, serializer, told, home=home)
        assert journal is not None  # it was asked for
        stack.push_async_callback(journal.close)
        parts = await assemble(
            stack,
            config=config,
            backend=backend,
            journal=journal,
            serializer=serializer,
            telemetry=told,
            note=Notes(config, home, told),
        )
        assert parts.reconciler is not None  # there is a journal
        yield Foreground(parts, journal, parts.reconciler, told, home)


def within(seconds: float) -> Deadline:
    """A deadline from now on."""
    return Deadline(time.monotonic, seconds)


FRAME_SECONDS = 0.1
"""How often the progress is updated."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: `drained` operations are in the primary, and `notes` say what an operator should know."""

    after: Survey
    home: str | None = None
    drained: int = 0
    divergences: int = 0
    notes: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    """The threads of which an operation was refused now, each with the database's words."""
    refused_before: frozenset[str] = frozenset()
    """The threads that had a dead letter before."""
    frozen: tuple[str, ...] = ()
    """The threads that this command could not drain."""
    error: str = ""
    """Why nothing was tried."""


def drain(options: Options, *, timeout: float, as_json: bool) -> ExitCode:
    """Drain everything that ended processes left; fine only when nothing waits in the directory afterwards."""
    with reading(options) as read:
        config = required(read)
        before = survey(config.journal_dir.absolute(), signer=signer_of(config))
        outcome = asyncio.run(_drain(config, before, timeout, None)) if _left(before) else Outcome(before)
    code = ExitCode.WRONG if outcome.error else exit_code(outcome.after)
    _print(outcome, code, as_json=as_json)
    return code


def retry(options: Options, thread_id: str | None, *, timeout: float, as_json: bool) -> ExitCode:
    """Try the dead letters of one thread, or of all, once more; fine only when none of those is left."""
    with reading(options) as read:
        config = required(read)
        before = survey(config.journal_dir.absolute(), signer=signer_of(config))
        threads = _threads_to_retry(before, thread_id)
        outcome = asyncio.run(_drain(config, before, timeout, threads)) if threads else Outcome(before)
    left = {letter.thread_id for log in outcome.after.logs for letter in log.dead_letters}
    code = ExitCode.WRONG if thread_id in left or (left and thread_id is None) else ExitCode.FINE
    _print(outcome, code, as_json=as_json)
    return code


def _left(found: Survey) -> list[SurveyedLog]:
    """The logs of ended processes in which something is left."""
    return [log for log in found.logs if log.owner is not Owner.ALIVE and (log.pending or log.dead_letters)]


def _threads_to_retry(found: Survey, thread_id: str | None) -> list[str]:
    """The threads whose dead letters can be tried again now.

    Raises:
        UsageError: the one that was named has none, or a running process holds it.
    """
    letters = [(letter.thread_id, log) for log in found.logs for letter in log.dead_letters]
    wanted = [(thread, log) for thread, log in letters if thread_id in (None, thread)]
    if thread_id is not None and not wanted:
        raise UsageError(f"Thread {quoted(thread_id)} has no dead letter in {found.directory}.")
    held = [(thread, log) for thread, log in wanted if log.owner is Owner.ALIVE]
    if held and len(held) == len(wanted):
        raise UsageError(_refusal(held))
    return list(dict.fromkeys(thread for thread, log in wanted if log.owner is not Owner.ALIVE))


def _refusal(held: Sequence[tuple[str, SurveyedLog]]) -> str:
    owners = _owners([log for _, log in held])
    threads = listed(sorted({thread for thread, _ in held}))
    return (
        f"The dead letters of {threads} are held by a process that runs ({owners}), and its journal is its own: no "
        "other can write its threads without breaking their order. Fix the cause, then restart that process: its "
        "successor tries them again; or stop it, and run this command. Nothing was changed, nothing is lost."
    )


async def _drain(config: CheckpointerConfig, before: Survey, timeout: float, threads: Sequence[str] | None) -> Outcome:
    """Take over what is left and drain it: all of it, or only these threads."""
    async with opened_foreground(config) as foreground:
        try:
            await foreground.prove()
        except CheckpointUnavailableError as error:
            return Outcome(before, home=foreground.home, error=str(error))
        try:
            async with _shown(foreground, threads):
                deadline = within(timeout)
                if threads is None:
                    await foreground.drain(deadline)
                else:
                    for thread_id in threads:
                        await foreground.drain_thread(thread_id, deadline)
        finally:
            await foreground.note("journal drain" if threads is None else "journal retry")
        refused = {letter.entry.thread_id: letter.error for letter in foreground.dead_letters}
        outcome = Outcome(
            before,
            home=foreground.home,
            drained=foreground.drained,
            divergences=foreground.divergences,
            notes=tuple(foreground.told.lines),
            refused=tuple(refused.items()),
            refused_before=frozenset(letter.thread_id for log in before.logs for letter in log.dead_letters),
            frozen=foreground.frozen_threads,
        )
    return replace(outcome, after=survey(before.directory, signer=signer_of(config)))


@asynccontextmanager
async def _shown(foreground: Foreground, threads: Sequence[str] | None) -> AsyncIterator[None]:
    """A bar on stderr while it is drained; on anything but a terminal, nothing."""
    console = Console(highlight=False, stderr=True)
    columns = (TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        total = foreground.pending
        task = progress.add_task("draining", total=total)

        async def show() -> None:
            while True:
                progress.update(task, completed=foreground.drained, total=max(total, foreground.drained))
                await asyncio.sleep(FRAME_SECONDS)

        showing = asyncio.create_task(show(), name="progress")
        try:
            yield
        finally:
            showing.cancel()
            await asyncio.wait({showing})


def _print(outcome: Outcome, code: ExitCode, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "status": "failed" if code else "fine",
                "database": outcome.home,
                "error": outcome.error,
                "drained": outcome.drained,
                "divergences": outcome.divergences,
                "refused": [{"thread_id": thread_id, "error": error} for thread_id, error in outcome.refused],
                "left": list(_left_behind(outcome)),
                "notes": list(outcome.notes),
                "journal": as_object(outcome.after),
            }
        )
        return
    console = stdout()
    style = "bold red" if code else "bold green"
    paragraph(console, Text("FAIL " if code else "ok   ", style=style), _done(outcome))
    for text in _left_behind(outcome):
        paragraph(console, Text("     "), text)
    for note in outcome.notes:
        paragraph(console, Text("note ", style="dim"), note, style="dim")


def _done(outcome: Outcome) -> str:
    if outcome.error:
        return f"{outcome.error} Nothing was drained, nothing is lost."
    if outcome.home is None:
        return f"Ended processes left nothing that could be brought to the database in {outcome.after.directory}."
    if not outcome.drained:
        return f"Nothing could be brought to {outcome.home}."
    forks = f", {plural(outcome.divergences, 'thread')} with two branches" if outcome.divergences else ""
    return f"{plural(outcome.drained, 'operation is', 'operations are')} in {outcome.home} now{forks}."


def _left_behind(outcome: Outcome) -> Iterator[str]:
    """What is still in the directory, why, and what to do, a sentence or two each."""
    for thread_id, error in outcome.refused:
        refused = "Refused again" if thread_id in outcome.refused_before else "Refused"
        yield f"{refused}: thread {thread_id}: {error}. Fix the cause, then: checkpointing journal retry --all"
    if alive := [log for log in outcome.after.logs if log.pending and log.owner is Owner.ALIVE]:
        yield (
            f"{_waits(alive)} in the journals of processes that run ({_owners(alive)}): those drain them when their "
            "database takes writes, and no other process may. One that never does can be restarted: nothing is lost."
        )
    ours = (None, outcome.home)
    for log in outcome.after.logs:
        if not log.pending or log in alive:
            continue
        if outcome.home is not None and log.home not in ours:
            yield (
                f"{_waits([log])} for another database ({log.home}). Run this with that one; or, if it has moved and "
                "is this one now, with CHECKPOINT_JOURNAL_ADOPT=all."
            )
        else:
            yield f"{_waits([log])} still: {_why(outcome, log)}."
    for log in outcome.after.logs:
        if log.faults:
            yield f"The journal is damaged: {listed(log.faults, 2)}. See: checkpointing journal quarantine."


def _why(outcome: Outcome, log: SurveyedLog) -> str:
    if not outcome.after.drainable(log):
        return "behind what was refused or is damaged"
    if any(thread_id in outcome.frozen for thread_id, _ in log.waiting):
        return "they cannot be read here; what an application encrypts, that application drains when it starts"
    return "the time was over"


def _waits(logs: Sequence[SurveyedLog]) -> str:
    return plural(sum(log.pending for log in logs), "operation waits", "operations wait")


def _owners(logs: Sequence[SurveyedLog]) -> str:
    return listed(sorted({owner_of(log) for log in logs}))
