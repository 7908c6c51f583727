"""`checkpointing journal quarantine`: what is damaged, whose it is, what can be done; and copies it out."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.configuration import Options, UsageError, reading, required
from enhanced_checkpointing.cli.findings import ExitCode
from enhanced_checkpointing.cli.journal.books import owner_of, surveyed
from enhanced_checkpointing.cli.journal.branches import find_branches
from enhanced_checkpointing.cli.screen import age, listed, one_size, paragraph, plural, print_json, stdout
from enhanced_checkpointing.journal.disk import QUARANTINE
from enhanced_checkpointing.journal.inspect import Survey, SurveyedBook
from enhanced_checkpointing.private_files import FOLDER_MODE, copy_own, make_private_folder, own_directory

__all__ = ["run"]

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


def run(options: Options, *, copy_to: Path | None, branches: bool, as_json: bool) -> ExitCode:
    """Show what is damaged, and copy it if asked to; fine only where nothing in use is damaged.

    With `branches` the primary is asked for the sibling threads of outages, too.
    """
    found = surveyed(options)
    damaged = [book for book in found.books if book.faults]
    copied = _copy_out(found, damaged, copy_to) if copy_to is not None else []
    siblings = _siblings(options) if branches else None
    if as_json:
        print_json({**_as_object(found, damaged, copied), **({} if siblings is None else {"branches": siblings})})
    else:
        console = stdout()
        _print(found, damaged, copied, copy_to, console)
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


def _copy_out(found: Survey, damaged: list[SurveyedBook], folder: Path) -> list[str]:
    """Copy every file of the damaged books, and what is in quarantine, into a new or empty folder.

    Raises:
        UsageError: there is something in it already.
    """
    make_private_folder(folder)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty. Nothing was copied. Name a new folder.")
    names = [name for book in damaged for name in book.files]
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


def _as_object(found: Survey, damaged: list[SurveyedBook], copied: list[str]) -> dict[str, Any]:
    return {
        "directory": str(found.directory),
        "damaged": [
            {
                "book": book.identity,
                "owner": book.owner.value,
                "process_ids": list(book.process_ids),
                "faults": list(book.faults),
                "frozen_threads": list(book.damaged_threads),
                "pending": book.pending,
                "files": list(book.files),
            }
            for book in damaged
        ],
        "quarantined": [
            {"name": file.name, "book": file.book, "size_bytes": file.size, "copied_at": round(file.copied_at, 3)}
            for file in found.quarantined
        ],
        "copied": copied,
    }


def _print(
    found: Survey, damaged: list[SurveyedBook], copied: list[str], copy_to: Path | None, console: Console
) -> None:
    for book in damaged:
        facts = {
            "damaged": listed(book.faults, 3),
            "owner": f"{owner_of(book)}, begun {age(time.time() - book.begun_at)} ago",
            "frozen": listed(book.damaged_threads) or "no thread is known to lack something",
            "waiting": plural(book.pending, "operation that is whole", "operations that are whole"),
        }
        for name, text in facts.items():
            paragraph(console, Text(f"{name:<9}", style="dim"), text, style="bold" if name == "damaged" else "")
        console.print()
    for file in found.quarantined:
        kept = "a copy of a damaged file" if any(book.identity == file.book for book in damaged) else "kept"
        what = f"{file.name} ({one_size(file.size)}, {kept} since {age(time.time() - file.copied_at)})"
        paragraph(console, Text("copy     ", style="dim"), what)
    if copied:
        console.print(Text(f"{plural(len(copied), 'file was', 'files were')} copied to {copy_to}."), soft_wrap=True)
    _print_advice(found, damaged, console)


def _print_advice(found: Survey, damaged: list[SurveyedBook], console: Console) -> None:
    if not damaged:
        kept = " What is in quarantine is kept until somebody removes it." if found.quarantined else ""
        paragraph(console, Text(), f"Nothing in {found.directory} is damaged.{kept}", style="bold green")
        return
    waiting = sum(map(found.drainable, damaged))
    first = f"First of all: {DRAIN_FIRST.format(plural(waiting, 'operation', 'operations'))}" if waiting else ""
    for text in filter(None, (GOES_ON, first, WAY_OUT)):
        paragraph(console, Text(), text, style="yellow")
    for book in damaged:
        console.print(Text(f"    mv {found.directory / book.identity}.* ELSEWHERE/", style="yellow"), soft_wrap=True)
