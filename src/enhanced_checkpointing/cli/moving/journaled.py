"""What a database lacks, as it waits in the journal of the application: whoever moves its threads must know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from enhanced_checkpointing.cli.named_databases import JournalPlace
from enhanced_checkpointing.cli.screen import plural
from enhanced_checkpointing.journal.disk import reason
from enhanced_checkpointing.journal.inspect import survey
from enhanced_checkpointing.journal.recovery import MEMORY, belongs

__all__ = ["Journaled", "journaled_for", "looked_again"]


@dataclass(frozen=True, slots=True)
class Journaled:
    """Acknowledged operations in the books of a directory, and not in the source."""

    directory: Path
    count: int = 0
    elsewhere: dict[str, int] = field(default_factory=dict)
    """Of databases of other names, which may be the source all the same."""
    unread: str | None = None
    """Why nobody can tell what has come since the work began."""

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
        for home, count in self.elsewhere.items():
            yield (
                f"The journal {self.directory} holds {plural(count, 'acknowledged operation')} for {home}. If that is "
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
    for book in survey(place.directory).books:
        held = book.pending + len(book.dead_letters)
        if belongs(book.home, home, adopts_all=place.adopts_all):
            count += held
        elif held and book.home is not None and book.home != MEMORY:
            elsewhere[book.home] += held
    return Journaled(place.directory, count, dict(elsewhere))


def looked_again(before: Journaled, home: str, place: JournalPlace) -> Journaled:
    """The same after the work: what waited before may have come too late for it, and more may wait now."""
    try:
        after = journaled_for(home, place)
    except OSError as error:
        return replace(before, unread=reason(error))
    return replace(after, count=max(before.count, after.count), elsewhere=before.elsewhere | after.elsewhere)
