"""`checkpointing journal`: what is in the directory, what was refused, what is damaged. Nothing is changed."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from enhanced_checkpointing.cli.configuration import Options, reading, required
from enhanced_checkpointing.cli.database import opened_primary
from enhanced_checkpointing.cli.output import (
    ExitCode,
    UsageError,
    age,
    one_size,
    paragraph,
    plural,
    print_json,
    stdout,
)
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import listed, redact
from enhanced_checkpointing.journal.disk import QUARANTINE
from enhanced_checkpointing.journal.inspect import DeadLetterRecord, Owner, Survey, SurveyedLog, survey
from enhanced_checkpointing.journal.opening import signer_of
from enhanced_checkpointing.private_files import FOLDER_MODE, copy_own, make_private_folder, own_directory
from enhanced_checkpointing.recovery.divergence import APART
from enhanced_checkpointing.resilience.failures import CallFailed


def directory_of(options: Options) -> Path:
    """The directory that is meant: the one of the option, whatever else is set, else that of the configuration.

    Raises:
        UsageError: the configuration, which would say so, cannot be read.
    """
    if options.journal_dir is not None:
        return options.journal_dir.expanduser().absolute()
    with reading(options) as read:
        return required(read).journal_dir.absolute()


def surveyed(options: Options) -> Survey:
    """What is in the directory, read without changing it; signatures count where the environment has the key."""
    directory = directory_of(options)
    with reading(options) as read:
        return survey(directory, signer=signer_of(read.config) if read.config is not None else None)


def owner_of(log: SurveyedLog) -> str:
    """Whose a log is, for people."""
    if log.owner is Owner.DEAD:
        return "ended process"
    if log.owner is Owner.UNKNOWN:
        return "being taken over"
    return f"process {listed(map(str, log.process_ids))}" if log.process_ids else "running process"


def as_object(found: Survey) -> dict[str, Any]:
    """A survey in plain JSON types."""
    now = time.time()
    stamps = [log.oldest_at for log in found.logs if log.oldest_at is not None]
    return {
        "directory": str(found.directory),
        "exists": found.exists,
        "pending": sum(log.pending for log in found.logs),
        "oldest_age_seconds": round(max(0.0, now - min(stamps)), 3) if stamps else None,
        "size_bytes": sum(log.size for log in found.logs),
        "dead_letters": sum(len(log.dead_letters) for log in found.logs),
        "damages": sum(len(log.faults) for log in found.logs),
        "books": [_log_as_object(log, now) for log in found.logs],
        "quarantined": _quarantined(found),
        "strays": list(found.strays),
    }


def _quarantined(found: Survey) -> list[dict[str, Any]]:
    return [
        {"name": file.name, "book": file.log, "size_bytes": file.size, "copied_at": round(file.copied_at, 3)}
        for file in found.quarantined
    ]


def _log_as_object(log: SurveyedLog, now: float) -> dict[str, Any]:
    return {
        "book": log.identity,
        "owner": log.owner.value,
        "process_ids": list(log.process_ids),
        "home": log.home,
        "begun_at": round(log.begun_at, 3),
        "pending": log.pending,
        "threads": len(log.waiting),
        "oldest_age_seconds": None if log.oldest_at is None else round(max(0.0, now - log.oldest_at), 3),
        "size_bytes": log.size,
        "dead_letters": len(log.dead_letters),
        "faults": list(log.faults),
        "damaged_threads": list(log.damaged_threads),
        "files": list(log.files),
    }


def letter_as_object(letter: DeadLetterRecord, log: SurveyedLog) -> dict[str, Any]:
    """A dead letter in plain JSON types."""
    return {
        "thread_id": letter.thread_id,
        "operation": letter.operation,
        "checkpoint_ns": letter.checkpoint_ns,
        "checkpoint_id": letter.checkpoint_id,
        "error": letter.error,
        "written_at": round(letter.written_at, 3),
        "size_bytes": letter.size,
        "book": log.identity,
        "owner": log.owner.value,
        "process_ids": list(log.process_ids),
    }


def show_status(options: Options, *, as_json: bool) -> ExitCode:
    """Look, print, and tell whether anything waits or is wrong."""
    found = surveyed(options)
    if options.journal_dir is not None and not found.exists:
        raise UsageError(f"There is no directory {found.directory}, which --journal-dir names: is that the right path?")
    code = exit_code(found)
    if as_json:
        print_json({"status": "failed" if code else "fine", **as_object(found)})
    else:
        _print_status(found, stdout())
    return code


def exit_code(found: Survey) -> ExitCode:
    """Fine only when nothing waits, nothing was refused and nothing is damaged."""
    wrong = any(log.pending or log.dead_letters or log.faults for log in found.logs)
    return ExitCode.WRONG if wrong else ExitCode.FINE


def _print_status(found: Survey, console: Console) -> None:
    console.print(Text(str(found.directory), style="bold"), soft_wrap=True)
    if not found.exists:
        console.print("It is not there: no process has journaled anything in it.")
        return
    if found.logs:
        console.print(_table(found))
    for text in _notes(found):
        paragraph(console, Text("     "), text)
    style = "bold yellow" if exit_code(found) else "bold green"
    paragraph(console, Text(), _verdict(found), style=style)


def _table(found: Survey) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("owner", no_wrap=True)
    table.add_column("begun", no_wrap=True)
    for name in ("waiting", "oldest", "size", "dead letters", "damage"):
        table.add_column(name, justify="right", no_wrap=True)
    now = time.time()
    for log in found.logs:
        table.add_row(
            owner_of(log),
            f"{age(now - log.begun_at)} ago",
            str(log.pending),
            "-" if log.oldest_at is None else age(now - log.oldest_at),
            one_size(log.size),
            Text(str(len(log.dead_letters)), style="bold red" if log.dead_letters else ""),
            Text(str(len(log.faults)), style="bold red" if log.faults else ""),
        )
    return table


def _notes(found: Survey) -> list[str]:
    """What a number in the table does not say."""
    notes = []
    homes = {log.home for log in found.logs if log.pending or log.dead_letters}
    if homes:
        notes.append(f"What waits is for {listed(sorted(home or 'a database that is not named' for home in homes))}.")
    if found.quarantined:
        notes.append(f"{plural(len(found.quarantined), 'copy', 'copies')} of damaged files in quarantine.")
    if found.strays:
        notes.append(f"Files that are not the journal's, and are ignored: {listed(found.strays)}.")
    return notes


def _verdict(found: Survey) -> str:
    pending = sum(log.pending for log in found.logs)
    if exit_code(found) is ExitCode.FINE:
        return "Nothing waits, nothing is damaged."
    parts = []
    if pending:
        parts.append(plural(pending, "operation waits", "operations wait"))
    if letters := sum(len(log.dead_letters) for log in found.logs):
        parts.append(f"{plural(letters, 'dead letter')} (see: checkpointing journal dead-letters)")
    if damages := sum(len(log.faults) for log in found.logs):
        parts.append(f"{plural(damages, 'damaged place')} (see: checkpointing journal quarantine)")
    return f"{'; '.join(parts)}.{_hint(found)}"


def _hint(found: Survey) -> str:
    if left := sum(found.drainable(log) for log in found.logs if log.owner is Owner.DEAD):
        waits = plural(left, "operation of an ended process waits", "operations of ended processes wait")
        return f" {waits} for an application that starts with this directory, or for `checkpointing journal drain`."
    if any(found.drainable(log) for log in found.logs):
        return " Running processes drain what is theirs, when their database takes writes."
    return ""


def show_letters(options: Options, *, as_json: bool) -> ExitCode:
    """List them; fine only where there are none."""
    found = surveyed(options)
    letters = [(letter, log) for log in found.logs for letter in log.dead_letters]
    if as_json:
        objects = [letter_as_object(letter, log) for letter, log in letters]
        print_json({"directory": str(found.directory), "dead_letters": objects})
    else:
        _print_letters(found, letters, stdout())
    return ExitCode.WRONG if letters else ExitCode.FINE


def _print_letters(found: Survey, letters: list[tuple[DeadLetterRecord, SurveyedLog]], console: Console) -> None:
    if not letters:
        console.print(Text(f"No dead letters in {found.directory}.", style="bold green"), soft_wrap=True)
        return
    for letter, log in letters:
        facts = {
            "thread": letter.thread_id,
            "operation": _described(letter),
            "refused": letter.error,
            "written": f"{age(time.time() - letter.written_at)} ago, {one_size(letter.size)}, by: {owner_of(log)}",
        }
        for name, text in facts.items():
            paragraph(console, Text(f"{name:<11}", style="dim"), text, style="bold" if name == "thread" else "")
        console.print()
    for text in _letters_verdict(letters):
        paragraph(console, Text(), text, style="bold yellow")


def _described(letter: DeadLetterRecord) -> str:
    if letter.checkpoint_id is None:
        return f"{letter.operation} (the end of the thread)"
    namespace = f" in {letter.checkpoint_ns}" if letter.checkpoint_ns else ""
    return f"{letter.operation} of checkpoint {letter.checkpoint_id}{namespace}"


def _letters_verdict(letters: list[tuple[DeadLetterRecord, SurveyedLog]]) -> tuple[str, str]:
    what = plural(len(letters), "dead letter")
    means = "What was acknowledged is kept, and its threads stay on the journal until the cause is fixed."
    if all(log.owner is Owner.ALIVE for _, log in letters):
        fix = "Fix it (the message names it), then restart the running process: its successor tries them again."
    else:
        fix = "Fix it (the message names it), then: checkpointing journal retry --all"
    return f"{what}. {means}", fix


GOES_ON = (
    "All other threads go on, and are drained. The frozen ones show only what is certain; what is whole of them stays "
    "here. Look at the disk first: what flipped one bit flips more."
)
DRAIN_FIRST = (
    "checkpointing journal drain. {} of threads that are not frozen still wait in what is damaged, and would be moved "
    "away with it."
)
WAY_OUT = (
    "To go on without what is damaged: copy it out (--copy-to COPY), stop every process that uses this directory, "
    "and move these files away. The threads then go on from what the database has, without what only these files held:"
)


def show_quarantine(options: Options, *, copy_to: Path | None, branches: bool, as_json: bool) -> ExitCode:
    """Show what is damaged, and copy it if asked to; fine only where nothing in use is damaged.

    With `branches` the primary is asked for the sibling threads of outages, too.
    """
    found = surveyed(options)
    damaged = [log for log in found.logs if log.faults]
    copied = _copy_out(found, damaged, copy_to) if copy_to is not None else []
    siblings = _siblings(options) if branches else None
    if as_json:
        print_json(
            {**_quarantine_as_object(found, damaged, copied), **({} if siblings is None else {"branches": siblings})}
        )
    else:
        console = stdout()
        _print_quarantine(found, damaged, copied, copy_to, console)
        if siblings is not None:
            _print_branches(siblings, console)
    return ExitCode.WRONG if damaged else ExitCode.FINE


def _siblings(options: Options) -> list[str]:
    with reading(options) as read:
        config = required(read)
        if config.backend_name == "sqlite" and not Path(config.database_path).exists():
            return []  # the backend would make the file
        return asyncio.run(find_branches(config))


def _print_branches(siblings: list[str], console: Console) -> None:
    for thread_id in siblings:
        paragraph(console, Text("branch   ", style="dim"), thread_id)
    if siblings:
        what = plural(len(siblings), "branch of an outage was", "branches of outages were")
        text = (
            f"{what} put aside. Each is a thread like any other: read it by its id, and delete it when it is settled."
        )
        paragraph(console, Text(), text, style="yellow")
    else:
        console.print(Text("No branch of an outage was put aside.", style="bold green"))


def _copy_out(found: Survey, damaged: list[SurveyedLog], folder: Path) -> list[str]:
    """Copy every file of the damaged logs, and what is in quarantine, into a new or empty folder.

    Raises:
        UsageError: there is something in it already.
    """
    make_private_folder(folder)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty. Nothing was copied. Name a new folder.")
    names = [name for log in damaged for name in log.files]
    kept = [file.name for file in found.quarantined]
    with own_directory(found.directory) as source, own_directory(folder) as target:
        for name in names:
            copy_own(name, source, name, target)
        if kept:
            os.mkdir(QUARANTINE, FOLDER_MODE, dir_fd=target)
            with own_directory(QUARANTINE, folder=source) as old, own_directory(QUARANTINE, folder=target) as new:
                for name in kept:
                    copy_own(name, old, name, new)
    return [*names, *(f"{QUARANTINE}/{name}" for name in kept)]


def _quarantine_as_object(found: Survey, damaged: list[SurveyedLog], copied: list[str]) -> dict[str, Any]:
    return {
        "directory": str(found.directory),
        "damaged": [
            {
                "book": log.identity,
                "owner": log.owner.value,
                "process_ids": list(log.process_ids),
                "faults": list(log.faults),
                "frozen_threads": list(log.damaged_threads),
                "pending": log.pending,
                "files": list(log.files),
            }
            for log in damaged
        ],
        "quarantined": _quarantined(found),
        "copied": copied,
    }


def _print_quarantine(
    found: Survey, damaged: list[SurveyedLog], copied: list[str], copy_to: Path | None, console: Console
) -> None:
    for log in damaged:
        facts = {
            "damaged": listed(log.faults, 3),
            "owner": f"{owner_of(log)}, begun {age(time.time() - log.begun_at)} ago",
            "frozen": listed(log.damaged_threads) or "no thread is known to lack something",
            "waiting": plural(log.pending, "operation that is whole", "operations that are whole"),
        }
        for name, text in facts.items():
            paragraph(console, Text(f"{name:<9}", style="dim"), text, style="bold" if name == "damaged" else "")
        console.print()
    for file in found.quarantined:
        kept = "a copy of a damaged file" if any(log.identity == file.log for log in damaged) else "kept"
        what = f"{file.name} ({one_size(file.size)}, {kept} since {age(time.time() - file.copied_at)})"
        paragraph(console, Text("copy     ", style="dim"), what)
    if copied:
        console.print(Text(f"{plural(len(copied), 'file was', 'files were')} copied to {copy_to}."), soft_wrap=True)
    _print_advice(found, damaged, console)


def _print_advice(found: Survey, damaged: list[SurveyedLog], console: Console) -> None:
    if not damaged:
        kept = " What is in quarantine is kept until it is removed." if found.quarantined else ""
        paragraph(console, Text(), f"Nothing in {found.directory} is damaged.{kept}", style="bold green")
        return
    waiting = sum(map(found.drainable, damaged))
    first = f"First: {DRAIN_FIRST.format(plural(waiting, 'operation', 'operations'))}" if waiting else ""
    for text in filter(None, (GOES_ON, first, WAY_OUT)):
        paragraph(console, Text(), text, style="yellow")
    for log in damaged:
        console.print(Text(f"    mv {found.directory / log.identity}.* ELSEWHERE/", style="yellow"), soft_wrap=True)


PAGE = 1000
PAGE_SECONDS = 30.0


async def find_branches(config: CheckpointerConfig) -> list[str]:
    """The ids of all siblings in the primary, of which every thread is walked by its id: of a million, for a while.

    Raises:
        UsageError: the primary does not answer.
    """
    found: list[str] = []
    try:
        async with opened_primary(config) as primary:
            after: str | None = None
            while True:
                start = after
                page = await primary.ask("list", lambda: primary.backend.thread_ids(start, PAGE), PAGE_SECONDS)  # noqa: B023  # run at once
                found += [thread_id for thread_id in page if APART in thread_id]
                if len(page) < PAGE:
                    return found
                after = page[-1]
    except CallFailed as failed:
        reason = " ".join(redact(failed.error).split())
        raise UsageError(
            f"The threads cannot be listed: {reason}. `checkpointing doctor` looks for the cause."
        ) from None
