"""`checkpointing journal status`: every book in the directory, whose it is, and what waits in it."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from enhanced_checkpointing.cli.configuration import Options, UsageError
from enhanced_checkpointing.cli.findings import ExitCode
from enhanced_checkpointing.cli.journal.books import as_object, owner_of, surveyed
from enhanced_checkpointing.cli.screen import age, listed, one_size, paragraph, plural, print_json, stdout
from enhanced_checkpointing.journal.inspect import Owner, Survey

__all__ = ["run"]


def run(options: Options, *, as_json: bool) -> ExitCode:
    """Look, print, and tell whether anything waits or is wrong."""
    found = surveyed(options)
    if options.journal_dir is not None and not found.exists:
        raise UsageError(f"There is no directory {found.directory}, which --journal-dir names: is that the right path?")
    code = exit_code(found)
    if as_json:
        print_json({"status": "failed" if code else "fine", **as_object(found)})
    else:
        _print(found, stdout())
    return code


def exit_code(found: Survey) -> ExitCode:
    """Fine only when nothing waits, nothing was refused and nothing is damaged."""
    wrong = any(book.pending or book.dead_letters or book.faults for book in found.books)
    return ExitCode.WRONG if wrong else ExitCode.FINE


def _print(found: Survey, console: Console) -> None:
    console.print(Text(str(found.directory), style="bold"), soft_wrap=True)
    if not found.exists:
        console.print("It is not there: no process has journaled anything in it.")
        return
    if found.books:
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
    for book in found.books:
        table.add_row(
            owner_of(book),
            f"{age(now - book.begun_at)} ago",
            str(book.pending),
            "-" if book.oldest_at is None else age(now - book.oldest_at),
            one_size(book.size),
            Text(str(len(book.dead_letters)), style="bold red" if book.dead_letters else ""),
            Text(str(len(book.faults)), style="bold red" if book.faults else ""),
        )
    return table


def _notes(found: Survey) -> list[str]:
    """What a number in the table does not say."""
    notes = []
    homes = {book.home for book in found.books if book.pending or book.dead_letters}
    if homes:
        notes.append(f"What waits is for {listed(sorted(home or 'a database that is not named' for home in homes))}.")
    if found.quarantined:
        notes.append(f"{plural(len(found.quarantined), 'copy', 'copies')} of damaged files in quarantine.")
    if found.strays:
        notes.append(f"Files that are not the journal's, and are ignored: {listed(found.strays)}.")
    return notes


def _verdict(found: Survey) -> str:
    pending = sum(book.pending for book in found.books)
    if exit_code(found) is ExitCode.FINE:
        return "Nothing waits, nothing is damaged."
    parts = []
    if pending:
        parts.append(plural(pending, "operation waits", "operations wait"))
    if letters := sum(len(book.dead_letters) for book in found.books):
        parts.append(f"{plural(letters, 'dead letter')} (see: checkpointing journal dead-letters)")
    if damages := sum(len(book.faults) for book in found.books):
        parts.append(f"{plural(damages, 'damaged place')} (see: checkpointing journal quarantine)")
    return f"{'; '.join(parts)}.{_hint(found)}"


def _hint(found: Survey) -> str:
    if left := sum(found.drainable(book) for book in found.books if book.owner is Owner.DEAD):
        waits = plural(left, "operation of an ended process waits", "operations of ended processes wait")
        return f" {waits} for an application that starts with this directory, or for `checkpointing journal drain`."
    if any(found.drainable(book) for book in found.books):
        return " Running processes drain what is theirs, when their database takes writes."
    return ""
