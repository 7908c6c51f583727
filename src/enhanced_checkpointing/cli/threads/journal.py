"""What the journal holds of threads that somebody wants to look at or to change. It is only read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enhanced_checkpointing.cli.journal.books import owner_of
from enhanced_checkpointing.cli.screen import listed, plural
from enhanced_checkpointing.errors import quoted
from enhanced_checkpointing.journal.disk import reason
from enhanced_checkpointing.journal.inspect import Owner, Survey, survey
from enhanced_checkpointing.journal.recovery import belongs

__all__ = ["Holding", "holdings", "journal_notes"]


@dataclass(frozen=True, slots=True)
class Holding:
    """What the journal has of one thread: operations that wait, dead letters, or damage that may be its loss."""

    thread_id: str
    directory: Path
    waiting: int = 0
    dead_letters: int = 0
    damaged: bool = False
    owners: tuple[str, ...] = ()
    alive: bool = False
    """Whether one of them is a process that runs."""
    home: str = ""
    """The database that it is for, as these processes call it; empty: as this command does."""

    @property
    def text(self) -> str:
        """What is held, as the beginning of a sentence's end."""
        parts = []
        if self.waiting:
            parts.append(f"{plural(self.waiting, 'operation')} that the database does not have yet")
        if self.dead_letters:
            parts.append(f"{plural(self.dead_letters, 'operation')} that the database refused")
        if self.damaged:
            parts.append("damage that may have cost it operations")
        home = f", for {self.home}" * bool(self.home)
        return f"The journal holds of thread {quoted(self.thread_id)}: {listed(parts)} ({listed(self.owners)}{home})."

    @property
    def way_out(self) -> str:
        """What to do, so that the database has all of the thread."""
        if self.home:
            return (
                "That may be this database under another name. If it is, name it so here, or have it drained with "
                f"CHECKPOINT_JOURNAL_ADOPT=all; if it is another one, drain that one. {self._cure}"
            )
        return self._cure

    @property
    def _cure(self) -> str:
        if self.damaged:
            return "See `checkpointing journal quarantine`."
        if self.dead_letters:
            return "See `checkpointing journal dead-letters`, mend the cause, and run `checkpointing journal retry ID`."
        if self.alive:
            return "The running process drains it when its database takes writes: wait, and try again."
        return "Run `checkpointing journal drain`, and try again."

    def as_json(self) -> dict[str, Any]:
        """The holding in plain JSON types."""
        return {
            "thread_id": self.thread_id,
            "directory": str(self.directory),
            "waiting": self.waiting,
            "dead_letters": self.dead_letters,
            "damaged": self.damaged,
            "owners": list(self.owners),
            "other_home": self.home or None,
        }


def holdings(directory: Path, home: str, thread_ids: Iterable[str]) -> list[Holding]:
    """What the journal in a directory, which need not be there, holds of these threads: for this database, and for
    others, each by itself.

    Raises:
        OSError: it cannot be read.
    """
    found = survey(directory)
    others = dict.fromkeys(book.home or "" for book in found.books if not belongs(book.home, home, adopts_all=False))
    every = (
        _holding(found, home, other, thread_id) for thread_id in dict.fromkeys(thread_ids) for other in ("", *others)
    )
    return [one for one in every if one.owners]


def _holding(found: Survey, home: str, other: str, thread_id: str) -> Holding:
    """Of the books for this database, or of those for the `other` one."""
    waiting, letters, damaged, alive = 0, 0, False, False
    owners: list[str] = []
    for book in found.books:
        if (book.home != other) if other else not belongs(book.home, home, adopts_all=False):
            continue
        held = dict(book.waiting).get(thread_id, 0)
        refused = sum(letter.thread_id == thread_id for letter in book.dead_letters)
        is_damaged = thread_id in book.damaged_threads
        if held or refused or is_damaged:
            waiting, letters, damaged = waiting + held, letters + refused, damaged or is_damaged
            alive = alive or book.owner is not Owner.DEAD
            owners.append(owner_of(book))
    return Holding(thread_id, found.directory, waiting, letters, damaged, tuple(dict.fromkeys(owners)), alive, other)


def journal_notes(directory: Path, home: str, thread_ids: Iterable[str]) -> tuple[list[Holding], list[str]]:
    """What is held, and what is to be said of it beside what the database shows: that it is not all there is."""
    try:
        held = [one for one in holdings(directory, home, thread_ids) if not one.home]
    except OSError as error:
        return [], [f"The journal cannot be read ({reason(error)}), so there may be newer operations in it."]
    return held, [f"{one.text} What follows is without that. {one.way_out}" for one in held]
