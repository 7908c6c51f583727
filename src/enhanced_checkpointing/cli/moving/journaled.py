"""What a database lacks, as it waits in the journal of the application: whoever moves its threads must know."""

from __future__ import annotations

from pathlib import Path

from enhanced_checkpointing.cli.screen import plural
from enhanced_checkpointing.journal.survey import survey

__all__ = ["how_to_drain", "journaled_for"]


def journaled_for(home: str, directory: Path) -> int:
    """How many acknowledged operations for the database of that name are in the books of a directory, and not in it."""
    books = survey(directory).books
    return sum(book.pending + len(book.dead_letters) for book in books if book.home in (home, None))


def how_to_drain(count: int, directory: Path) -> str:
    """The sentence about it."""
    return (
        f"In the journal {directory}, and not in the source: {plural(count, 'acknowledged operation')}. "
        "`checkpointing journal drain` brings them there; then run this again."
    )
