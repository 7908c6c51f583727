"""`checkpointing journal drain` and `retry`: brings to the primary what ended processes left behind.

What a running process has in its journal is its own: it drains that itself, and nobody else can without breaking the
order of its threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from enhanced_checkpointing.cli.configuration import Options, UsageError, reading, required
from enhanced_checkpointing.cli.findings import ExitCode
from enhanced_checkpointing.cli.journal.books import as_object, owner_of
from enhanced_checkpointing.cli.journal.foreground import Foreground, opened_foreground, within
from enhanced_checkpointing.cli.journal.status import exit_code
from enhanced_checkpointing.cli.screen import listed, paragraph, plural, print_json, stdout
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointUnavailableError, quoted
from enhanced_checkpointing.journal.inspect import Owner, Survey, SurveyedBook, survey
from enhanced_checkpointing.journal.opening import signer_of

__all__ = ["drain", "retry"]

FRAME_SECONDS = 0.1
"""How often the progress is looked at."""


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
    left = {letter.thread_id for book in outcome.after.books for letter in book.dead_letters}
    code = ExitCode.WRONG if thread_id in left or (left and thread_id is None) else ExitCode.FINE
    _print(outcome, code, as_json=as_json)
    return code


def _left(found: Survey) -> list[SurveyedBook]:
    """The books of ended processes in which something is left."""
    return [book for book in found.books if book.owner is not Owner.ALIVE and (book.pending or book.dead_letters)]


def _threads_to_retry(found: Survey, thread_id: str | None) -> list[str]:
    """The threads whose dead letters can be tried again now.

    Raises:
        UsageError: the one that was named has none, or a running process holds it.
    """
    letters = [(letter.thread_id, book) for book in found.books for letter in book.dead_letters]
    wanted = [(thread, book) for thread, book in letters if thread_id in (None, thread)]
    if thread_id is not None and not wanted:
        raise UsageError(f"Thread {quoted(thread_id)} has no dead letter in {found.directory}.")
    held = [(thread, book) for thread, book in wanted if book.owner is Owner.ALIVE]
    if held and len(held) == len(wanted):
        raise UsageError(_refusal(held))
    return list(dict.fromkeys(thread for thread, book in wanted if book.owner is not Owner.ALIVE))


def _refusal(held: Sequence[tuple[str, SurveyedBook]]) -> str:
    owners = _owners([book for _, book in held])
    threads = listed(sorted({thread for thread, _ in held}))
    return (
        f"The dead letters of {threads} are held by a process that runs ({owners}), and its journal is its own: nobody "
        "else can write its threads without breaking their order. Mend the cause, then restart that process: its "
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
            refused_before=frozenset(letter.thread_id for book in before.books for letter in book.dead_letters),
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
        yield f"{refused}: thread {thread_id}: {error}. Mend the cause, then: checkpointing journal retry --all"
    if alive := [book for book in outcome.after.books if book.pending and book.owner is Owner.ALIVE]:
        yield (
            f"{_waits(alive)} in the journals of processes that run ({_owners(alive)}): those drain them when their "
            "database takes writes, and nobody else may. One that never does can be restarted: nothing is lost by that."
        )
    ours = (None, outcome.home)
    for book in outcome.after.books:
        if not book.pending or book in alive:
            continue
        if outcome.home is not None and book.home not in ours:
            yield (
                f"{_waits([book])} for another database ({book.home}). Run this with that one; or, if it has moved and "
                "is this one now, with CHECKPOINT_JOURNAL_ADOPT=all."
            )
        else:
            yield f"{_waits([book])} still: {_why(outcome, book)}."
    for book in outcome.after.books:
        if book.faults:
            yield f"The journal is damaged: {listed(book.faults, 2)}. See: checkpointing journal quarantine."


def _why(outcome: Outcome, book: SurveyedBook) -> str:
    if not outcome.after.drainable(book):
        return "behind what was refused or is damaged"
    if any(thread_id in outcome.frozen for thread_id, _ in book.waiting):
        return "they cannot be read here; what an application encrypts, that application drains when it starts"
    return "the time was over"


def _waits(books: Sequence[SurveyedBook]) -> str:
    return plural(sum(book.pending for book in books), "operation waits", "operations wait")


def _owners(books: Sequence[SurveyedBook]) -> str:
    return listed(sorted({owner_of(book) for book in books}))
