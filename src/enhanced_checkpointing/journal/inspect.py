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
from enhanced_checkpointing.journal.recovery import LOCK, FoundRecord, OrphanedLog, logs_in, strays_in, take_over_log
from enhanced_checkpointing.private_files import own_directory

PATIENCE = 2.0
"""Seconds that a process which takes over just now is waited for."""

LOOKS, LOOK_SECONDS = 5, 0.05
"""How often the log of a living process is read before what looks like damage is believed; seconds between."""


class Owner(StrEnum):
    """Whether the process that a log belongs to lives."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """Another process takes over just now."""


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """A dead letter: a record that the primary refused for good, and its error. `sequence` is the log's."""

    thread_id: str
    operation: str
    checkpoint_ns: str | None
    checkpoint_id: str | None
    sequence: int
    written_at: float
    size: int
    error: str


@dataclass(frozen=True, slots=True)
class SurveyedLog:
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
    dead_letters: tuple[DeadLetterRecord, ...] = ()
    faults: tuple[str, ...] = ()
    damaged_threads: tuple[str, ...] = ()

    @property
    def pending(self) -> int:
        return sum(count for _, count in self.waiting)


@dataclass(frozen=True, slots=True)
class QuarantinedFile:
    """A copy of a damaged file; `log` is the identity of the log that it belongs to."""

    name: str
    log: str | None
    size: int
    copied_at: float


@dataclass(frozen=True, slots=True)
class Survey:
    """A directory of the journal. `adopting` are the processes that hold it as a whole, which nobody does for long."""

    directory: Path
    exists: bool
    logs: tuple[SurveyedLog, ...] = ()
    quarantined: tuple[QuarantinedFile, ...] = ()
    strays: tuple[str, ...] = ()
    adopting: tuple[int, ...] = ()

    @property
    def frozen_threads(self) -> frozenset[str]:
        """The threads that a dead letter or damage keeps from being drained."""
        refused = {letter.thread_id for log in self.logs for letter in log.dead_letters}
        return frozenset(refused.union(*(log.damaged_threads for log in self.logs)))

    def drainable(self, log: SurveyedLog) -> int:
        """How many operations of a log wait for nothing but the primary."""
        return sum(count for thread_id, count in log.waiting if thread_id not in self.frozen_threads)


def survey(directory: Path, *, patience: float = PATIENCE, locks: Path = LOCKS, signer: Signer | None = None) -> Survey:
    """Look at all logs of a directory; it need not be there. Signatures are looked at with a `signer` only.

    Raises:
        OSError: the directory or a file cannot be read, or is not to be trusted.
    """
    if not directory.exists():
        return Survey(directory, exists=False)
    names = RealDisk(directory).names()
    owners = _owners(directory, logs_in(names), patience)
    adopting = holders(directory, locks) if Owner.UNKNOWN in owners.values() else ()
    signer = signer or Signer(None)
    logs = (_read(directory, identity, owner, locks, signer) for identity, owner in owners.items())
    return Survey(
        directory,
        exists=True,
        logs=tuple(log for log in logs if log is not None),
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
            )  # as empty as the one that a takeover would make

    def sync(self, handle: int) -> None:
        """Nothing is built upon what is read here."""


def _read(directory: Path, identity: str, owner: Owner, locks: Path, signer: Signer) -> SurveyedLog | None:
    """One log; None if it has gone meanwhile. That of a living process may change while it is read."""
    disk = _ReadingDisk(directory)
    lock = directory / f"{identity}{LOCK}"
    for look in range(LOOKS):
        files = [name for name in disk.names() if name.startswith(identity)]
        if not files:
            return None
        try:
            size = sum((directory / name).lstat().st_size for name in files)
            process_ids = holders(lock, locks) if owner is Owner.ALIVE else ()
            found = take_over_log(disk, identity, time.time, is_ours=lambda _: False, signer=signer)
        except FileNotFoundError:
            time.sleep(LOOK_SECONDS)
            continue
        assert found is not None  # a disk that takes no locks finds none taken
        found.log.release()
        if owner is Owner.DEAD or not found.faults or look == LOOKS - 1:
            return _surveyed(found, owner, process_ids, tuple(files), size)
        time.sleep(LOOK_SECONDS)
    return None


def _surveyed(
    found: OrphanedLog, owner: Owner, process_ids: tuple[int, ...], files: tuple[str, ...], size: int
) -> SurveyedLog:
    errors = found.log.dead_letters
    waiting: dict[str, int] = {}
    letters: list[DeadLetterRecord] = []
    oldest: float | None = None
    for record in found.records:
        if record.sequence in errors:
            letters.append(_buried(record, errors[record.sequence]))
        else:
            waiting[record.draft.thread_id] = waiting.get(record.draft.thread_id, 0) + 1
            oldest = min(oldest or record.draft.written_at, record.draft.written_at)
    return SurveyedLog(
        identity=found.log.identity,
        begun_at=_begun_at(found.log.identity),
        owner=owner,
        process_ids=process_ids,
        home=found.log.home,
        files=files,
        size=size,
        waiting=tuple(waiting.items()),
        oldest_at=oldest,
        dead_letters=tuple(letters),
        faults=tuple(found.faults),
        damaged_threads=tuple(sorted(found.damaged_threads)),
    )


def _buried(record: FoundRecord, error: str) -> DeadLetterRecord:
    draft = record.draft
    described = codec.describe(draft.body)
    return DeadLetterRecord(
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
                known, stat = logs_in([name]), os.stat(name, dir_fd=folder, follow_symlinks=False)
                found.append(QuarantinedFile(name, known[0] if known else None, stat.st_size, stat.st_mtime))
    except FileNotFoundError:
        return ()
    return tuple(found)


def held_in(directory: Path) -> frozenset[str]:
    """The threads of which any process's journal in this directory holds anything, whatever its database is called
    there: it may be the same one under another name."""
    held: set[str] = set()
    for log in survey(directory).logs:
        held.update(thread_id for thread_id, _ in log.waiting)
        held.update(letter.thread_id for letter in log.dead_letters)
        held.update(log.damaged_threads)
    return frozenset(held)
