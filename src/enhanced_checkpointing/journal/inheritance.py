"""All that processes which are gone have left in a directory: taken over as a whole, so that its order is kept."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import accumulate

from enhanced_checkpointing.journal.adoption import LOCK, Adopted, FoundRecord, adopt, books_in, strays_in
from enhanced_checkpointing.journal.disk import Disk
from enhanced_checkpointing.journal.frames import Signer

MEMORY = "memory"
"""The home of what a primary in memory did not take."""

MOST_NAMED = 5
"""Files that a message names."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """`books` are ours now. `foreign` are of other primaries: of each book that stays as it is, the home.

    `strays` are files that nobody here has made.
    """

    books: Sequence[Adopted] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)
    strays: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Inherited:
    """A record with its book. `stamp` is when it was written, wall-clock time, and never before its predecessors."""

    stamp: float
    found: Adopted
    record: FoundRecord

    @property
    def thread_id(self) -> str:
        return self.record.draft.thread_id


Settle = Callable[[Set[str], Sequence[Adopted]], None]
"""Is told of the identities of the books of processes that run, and of the books that were taken over."""


def belongs(theirs: str | None, ours: str | None, *, adopts_all: bool) -> bool:
    """Whether what was acknowledged for one primary may be drained into another.

    Memory takes only what was meant for it, as nothing that it takes outlives the process. A book of an earlier release
    does not say whose it is, and counts as ours.
    """
    if ours is None or theirs == ours:
        return True
    return ours != MEMORY and (theirs is None or adopts_all)


def inherit(
    disk: Disk,
    wall_clock: Callable[[], float],
    is_ours: Callable[[str | None], bool],
    *,
    held: Set[str] = frozenset(),
    foreign: Mapping[str, str] | None = None,
    signer: Signer | None = None,
    settle: Settle = lambda alive, books: None,
) -> Inheritance | None:
    """Take over every book of a process that is gone; None if another process does that just now.

    All of them or none: the records of one thread may be in several books, and must not be drained by two processes.
    `held` are the identities of this process's own books, `foreign` those that are known to be of other primaries. A
    book without anything in it goes. `settle` is told before another process may look: whose books are alive, and what
    was taken over.

    Raises:
        CheckpointerConfigurationError: one is of a newer format, or signed without a signer. None was taken over.
        OSError: the disk does not answer. None was taken over.
    """
    with disk.alone() as alone, ExitStack() as undoing:
        if not alone:
            return None
        names = disk.names()
        books: list[Adopted] = []
        strangers: dict[str, str] = {}
        alive: set[str] = set()
        for identity in books_in(names):
            if identity in held:
                continue
            if foreign is not None and identity in foreign:
                if _is_dead(disk, identity):
                    strangers[identity] = foreign[identity]
                else:
                    alive.add(identity)
                continue
            found = adopt(disk, identity, wall_clock, is_ours, signer)
            if found is None:
                alive.add(identity)
                continue
            if not found.records and not found.faults and found.book.is_settled:
                with suppress(OSError):  # a full disk, perhaps: the next process tries it again
                    found.book.close()
            elif found.is_foreign:
                strangers[identity] = found.book.home or "an earlier release, which did not say"
                found.book.release()
            else:
                undoing.callback(found.book.release)
                books.append(found)
        settle(alive, books)
        undoing.pop_all()
        return Inheritance(books, strangers, strays_in(names))


def in_order(books: Sequence[Adopted]) -> list[Inherited]:
    """The records of all books in the order in which they were written, those of one book always in its own."""
    return list(heapq.merge(*map(_stamped, books), key=lambda each: each.stamp))


def _stamped(found: Adopted) -> Iterator[Inherited]:
    """A clock may have jumped back while the book was written."""
    stamps = accumulate((record.draft.written_at for record in found.records), max)
    return (Inherited(stamp, found, record) for stamp, record in zip(stamps, found.records, strict=True))


def foreign_notices(foreign: Mapping[str, str], known: Mapping[str, str]) -> Iterator[str]:
    """For each home of which there are books that were not known: what that means, and what to do."""
    for home in sorted({home for identity, home in foreign.items() if identity not in known}):
        count = Counter(foreign.values())[home]
        yield (
            f"the journal's directory has the backlogs of {count} ended processes of another database ({home}). They "
            "are not drained into this one, and stay as they are: what was acknowledged in them is nowhere else. Start "
            "with that database and this CHECKPOINT_JOURNAL_DIR, and they are drained; or, if that database has moved "
            "and is this one now, set CHECKPOINT_JOURNAL_ADOPT=all"
        )


def stray_notice(strays: Sequence[str]) -> str:
    """What is said of files that nobody here has made."""
    more = f" and {len(strays) - MOST_NAMED} more" if len(strays) > MOST_NAMED else ""
    named = ", ".join(map(repr, strays[:MOST_NAMED]))
    return f"in the journal's directory are files that are not the journal's, and are ignored: {named}{more}"


def _is_dead(disk: Disk, identity: str) -> bool:
    """Whether nobody holds a book."""
    lock = disk.lock(f"{identity}{LOCK}")
    if lock is None:
        return False
    disk.close(lock)
    return True
