"""What is in the journal's directory, for an operator: read while processes use it, and nothing of it changed.

Of no log is the lock taken for longer than it takes to see whether somebody has it, and only while nobody takes over: a
start that met one of them locked would take it for a living process's, and leave it out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from enhanced_checkpointing.journal import codec
from enhanced_checkpointing.journal.disk import LOCKS, QUARANTINE, RealDisk, holders
from enhanced_checkpointing.journal.format import Signer
from enhanced_checkpointing.journal.recovery import LOCK, Adopted, FoundRecord, adopt, books_in, strays_in
from enhanced_checkpointing.private_files import own_directory

PATIENCE = 2.0
"""Seconds that a process which adopts just now is waited for."""

LOOKS, LOOK_SECONDS = 5, 0.05
"""How often the book of a living process is read before what looks like damage is believed; seconds between."""


class Owner(StrEnum):
    """Whether the process that a book belongs to lives."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """Another process adopts just now."""


@dataclass(frozen=True, slots=True)
class BuriedRecord:
    """A dead letter: a record that the primary refused for good, and its error. `sequence` is the book's."""

    thread_id: str
    operation: str
    checkpoint_ns: str | None
    checkpoint_id: str | None
    sequence: int
    written_at: float
    size: int
    error: str


@dataclass(frozen=True, slots=True)
class SurveyedBook:
    """The files of one process's journal. Sizes are bytes, times are wall-clock seconds.

    `waiting` tells of each thread how many records wait for the primary; dead letters are not among them. `faults` say
    what is damaged, `damaged_threads` whose records may be lost by that.
    """

    identity: str
    begun_at: float
    owner: Owner
    process_ids: tuple[int, ...]
    home: str | None = None
    files: tuple[str, ...] = ()
    size: int = 0
    waiting: tuple[tuple[str, int], ...] = ()
    oldest_at: float | None = None
    dead_letters: tuple[BuriedRecord, ...] = ()
    faults: tuple[str, ...] = ()
    damaged_threads: tuple[str, ...] = ()

    @property
    def pending(self) -> int:
        return sum(count for _, count in self.waiting)


@dataclass(frozen=True, slots=True)
class QuarantinedFile:
    """A copy of a damaged file; `book` is the identity of the book that it belongs to."""

    name: str
    book: str | None
    size: int
    copied_at: float


@dataclass(frozen=True, slots=True)
class Survey:
    """A directory of the journal. `adopting` are the processes that hold it as a whole, which nobody does for long."""

    directory: Path
    exists: bool
    books: tuple[SurveyedBook, ...] = ()
    quarantined: tuple[QuarantinedFile, ...] = ()
    strays: tuple[str, ...] = ()
    adopting: tuple[int, ...] = ()

    @property
    def frozen_threads(self) -> frozenset[str]:
        """The threads that a dead letter or damage keeps from being drained."""
        refused = {letter.thread_id for book in self.books for letter in book.dead_letters}
        return frozenset(refused.union(*(book.damaged_threads for book in self.books)))

    def drainable(self, book: SurveyedBook) -> int:
        """How many operations of a book wait for nothing but the primary."""
        return sum(count for thread_id, count in book.waiting if thread_id not in self.frozen_threads)


def survey(directory: Path, *, patience: float = PATIENCE, locks: Path = LOCKS, signer: Signer | None = None) -> Survey:
    """Look at all books of a directory; it need not be there. Signatures are looked at with a `signer` only.

    Raises:
        OSError: the directory or a file cannot be read, or is not to be trusted.
    """
    if not directory.exists():
        return Survey(directory, exists=False)
    names = RealDisk(directory).names()
    owners = _owners(directory, books_in(names), patience)
    adopting = holders(directory, locks) if Owner.UNKNOWN in owners.values() else ()
    signer = signer or Signer(None)
    books = (_read(directory, identity, owner, locks, signer) for identity, owner in owners.items())
    return Survey(
        directory,
        exists=True,
        books=tuple(book for book in books if book is not None),
        quarantined=_quarantined(directory),
        strays=tuple(strays_in(names)),
        adopting=adopting,
    )


def _owners(directory: Path, identities: Sequence[str], patience: float) -> dict[str, Owner]:
    ends_at = time.monotonic() + patience
    disk = RealDisk(directory)
    while True:
        with disk.alone() as alone:
            if alone:
                taken = (disk.is_taken(f"{identity}{LOCK}") for identity in identities)
                return dict(zip(identities, (Owner.ALIVE if each else Owner.DEAD for each in taken), strict=True))
        if time.monotonic() >= ends_at:
            return dict.fromkeys(identities, Owner.UNKNOWN)
        time.sleep(LOOK_SECONDS)


class _ReadingDisk(RealDisk):
    """Opens files for reading only, and takes no lock."""

    def open(self, name: str) -> int:
        return self._open(name, os.O_RDONLY)

    def lock(self, name: str) -> int | None:
        try:
            return self.open(name)
        except FileNotFoundError:
            return self._held(
                os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            )  # as empty as the one that an adoption would make

    def sync(self, handle: int) -> None:
        """Nothing is built upon what is read here."""


def _read(directory: Path, identity: str, owner: Owner, locks: Path, signer: Signer) -> SurveyedBook | None:
    """One book; None if it has gone meanwhile. That of a living process may change while it is read."""
    disk = _ReadingDisk(directory)
    lock = directory / f"{identity}{LOCK}"
    for look in range(LOOKS):
        files = [name for name in disk.names() if name.startswith(identity)]
        if not files:
            return None
        try:
            size = sum((directory / name).lstat().st_size for name in files)
            process_ids = holders(lock, locks) if owner is Owner.ALIVE else ()
            found = adopt(disk, identity, time.time, is_ours=lambda _: False, signer=signer)
        except FileNotFoundError:
            time.sleep(LOOK_SECONDS)
            continue
        assert found is not None  # a disk that takes no locks finds none taken
        found.book.release()
        if owner is Owner.DEAD or not found.faults or look == LOOKS - 1:
            return _surveyed(found, owner, process_ids, tuple(files), size)
        time.sleep(LOOK_SECONDS)
    return None


def _surveyed(
    found: Adopted, owner: Owner, process_ids: tuple[int, ...], files: tuple[str, ...], size: int
) -> SurveyedBook:
    errors = found.book.buried
    waiting: dict[str, int] = {}
    letters: list[BuriedRecord] = []
    oldest: float | None = None
    for record in found.records:
        if record.sequence in errors:
            letters.append(_buried(record, errors[record.sequence]))
        else:
            waiting[record.draft.thread_id] = waiting.get(record.draft.thread_id, 0) + 1
            oldest = min(oldest or record.draft.written_at, record.draft.written_at)
    return SurveyedBook(
        identity=found.book.identity,
        begun_at=_begun_at(found.book.identity),
        owner=owner,
        process_ids=process_ids,
        home=found.book.home,
        files=files,
        size=size,
        waiting=tuple(waiting.items()),
        oldest_at=oldest,
        dead_letters=tuple(letters),
        faults=tuple(found.faults),
        damaged_threads=tuple(sorted(found.damaged_threads)),
    )


def _buried(record: FoundRecord, error: str) -> BuriedRecord:
    draft = record.draft
    described = codec.describe(draft.body)
    return BuriedRecord(
        thread_id=draft.thread_id,
        operation=described.name,
        checkpoint_ns=described.checkpoint_ns,
        checkpoint_id=described.checkpoint_id,
        sequence=record.sequence,
        written_at=draft.written_at,
        size=record.size,
        error=error,
    )


def _begun_at(identity: str) -> float:
    return int(identity[:16], 16) / 1e6


def _quarantined(directory: Path) -> tuple[QuarantinedFile, ...]:
    found = []
    try:
        with own_directory(directory) as above, own_directory(QUARANTINE, folder=above) as folder:
            for name in sorted(os.listdir(folder)):
                known, stat = books_in([name]), os.stat(name, dir_fd=folder, follow_symlinks=False)
                found.append(QuarantinedFile(name, known[0] if known else None, stat.st_size, stat.st_mtime))
    except FileNotFoundError:
        return ()
    return tuple(found)


def held_in(directory: Path) -> frozenset[str]:
    """The threads of which any process's journal in this directory holds anything, whatever its database is called
    there: it may be the same one under another name."""
    held: set[str] = set()
    for book in survey(directory).books:
        held.update(thread_id for thread_id, _ in book.waiting)
        held.update(letter.thread_id for letter in book.dead_letters)
        held.update(book.damaged_threads)
    return frozenset(held)
