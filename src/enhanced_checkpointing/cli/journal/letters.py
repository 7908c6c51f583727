"""`checkpointing journal dead-letters`: what the database refused for good, and why."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.configuration import Options
from enhanced_checkpointing.cli.findings import ExitCode
from enhanced_checkpointing.cli.journal.books import letter_as_object, owner_of, surveyed
from enhanced_checkpointing.cli.screen import age, one_size, paragraph, plural, print_json, stdout
from enhanced_checkpointing.journal.inspect import BuriedRecord, Owner, Survey, SurveyedBook

__all__ = ["run"]


def run(options: Options, *, as_json: bool) -> ExitCode:
    """List them; fine only where there are none."""
    found = surveyed(options)
    letters = [(letter, book) for book in found.books for letter in book.dead_letters]
    if as_json:
        objects = [letter_as_object(letter, book) for letter, book in letters]
        print_json({"directory": str(found.directory), "dead_letters": objects})
    else:
        _print(found, letters, stdout())
    return ExitCode.WRONG if letters else ExitCode.FINE


def _print(found: Survey, letters: list[tuple[BuriedRecord, SurveyedBook]], console: Console) -> None:
    if not letters:
        console.print(Text(f"No dead letters in {found.directory}.", style="bold green"), soft_wrap=True)
        return
    for letter, book in letters:
        facts = {
            "thread": letter.thread_id,
            "operation": _described(letter),
            "refused": letter.error,
            "written": f"{age(time.time() - letter.written_at)} ago, {one_size(letter.size)}, by: {owner_of(book)}",
        }
        for name, text in facts.items():
            paragraph(console, Text(f"{name:<11}", style="dim"), text, style="bold" if name == "thread" else "")
        console.print()
    for text in _verdict(letters):
        paragraph(console, Text(), text, style="bold yellow")


def _described(letter: BuriedRecord) -> str:
    if letter.checkpoint_id is None:
        return f"{letter.operation} (the end of the thread)"
    namespace = f" in {letter.checkpoint_ns}" if letter.checkpoint_ns else ""
    return f"{letter.operation} of checkpoint {letter.checkpoint_id}{namespace}"


def _verdict(letters: list[tuple[BuriedRecord, SurveyedBook]]) -> tuple[str, str]:
    what = plural(len(letters), "dead letter")
    means = "What was acknowledged is kept, and its threads stay on the journal until the cause is mended."
    if all(book.owner is Owner.ALIVE for _, book in letters):
        fix = "Mend it (the message names it), then restart the process that runs: its successor tries them again."
    else:
        fix = "Mend it (the message names it), then: checkpointing journal retry --all"
    return f"{what}. {means}", fix
