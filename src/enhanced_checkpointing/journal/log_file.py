"""A log: the files of one process's journal, appended to by that process alone. Synchronous, on the journal's thread.

An append is acknowledged by one write and one sync. A file in which one of them failed is never written again: the
next file takes what was not acknowledged. Each file begins with what is known of the records in those before it, so
that any of them can go when its own records are done.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from enhanced_checkpointing.journal.disk import Disk
from enhanced_checkpointing.journal.format import (
    NO_HASH,
    Draft,
    FileHeader,
    FileSigner,
    Frame,
    Kind,
    Predecessor,
    Sequences,
    Signer,
    applied_in,
    applied_ranges_record,
    applied_record,
    dead_letter_in,
    dead_letter_record,
    file_head,
    frame_bytes,
    hash_of,
    lock_file_bytes,
    read_frame,
    redirection_in,
    redirection_record,
    retirement_record,
)

FILE_LIMIT = 16 * 1024 * 1024
"""Bytes after which the next file is begun: what a record that cannot be applied keeps on the disk at most."""
TIDY_ABOVE = 256 * 1024
"""Bytes of records that are all done which are not worth a new file."""
SPARE_SIZE = 64 * 1024
"""Bytes set aside for the marks of a drain on a full disk: a drain of a thread takes about 100."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class LogFile:
    """One file of a log. `end` is where the next frame goes, `end_sequence` what would be its sequence.

    `open_records` are not applied yet. A file that is `for_marks` was begun in the room that is set aside for them.
    Without a `handle` it is opened whenever it is read: those of many processes that are gone may be there.
    """

    number: int
    handle: int | None
    first_sequence: int
    end_sequence: int
    end: int = 0
    open_records: set[int] = field(default_factory=set)
    damaged: bool = False
    for_marks: bool = False


@dataclass(frozen=True, slots=True)
class RecordLocation:
    """Where a record is: the number of its file, and bytes in it."""

    file: int
    offset: int
    length: int


_Written: TypeAlias = tuple[Sequence[Draft], list[int], Sequence[RecordLocation], Sequence[int]]
"""Frames that were written, their sequences and places, and the files that they make unnecessary."""


class ProcessLog:
    """The one owner of its files. `identity` is 32 hexadecimal digits; logs sort by the time when they were begun."""

    def __init__(
        self,
        disk: Disk,
        identity: str,
        lock: int,
        wall_clock: Callable[[], float],
        home: str | None = None,
        signer: Signer | None = None,
    ) -> None:
        self.identity = identity
        self._signer = signer
        self.home = home
        """Which primary it is for; None: that is not told."""
        self.files: dict[int, LogFile] = {}
        self.places: dict[int, RecordLocation] = {}
        """Of every record that is not applied, dead letters included."""
        self.applied = Sequences()
        """Of the records in the files that are still needed, those that are applied."""
        self.dead_letters: dict[int, str] = {}
        self.redirected: dict[str, str] = {}
        self.next_sequence = 1
        self.previous_hash = NO_HASH
        self.newest = 0
        """The number of the newest file that was begun."""
        self.missing: set[int] = set()
        """The files that are needed and are not there."""
        self.leftovers: set[int] = set()
        """The files that are not needed and are still there."""
        self.is_lost = False
        """Somebody has removed its files."""
        self.in_doubt = False
        """Behind the end of a file there may be frames that nobody was told of, and no later file says that they are
        void: the next process would take them for stored."""
        self._disk = disk
        self._lock = lock
        self._wall_clock = wall_clock
        self._active: LogFile | None = None
        self._appended: Counter[str] = Counter()
        """Records of each thread in the active file."""
        self._has_spare = False
        self._moved: dict[int, int] = {}
        """Of the records that were written anew: by which sequence each was known before, and which it has now."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing in it is needed any more."""
        return not self.places and not any(file.damaged for file in self.files.values())

    def name_of(self, number: int) -> str:
        return f"{self.identity}.{number:06}.journal"

    def signer_of(self, number: int) -> FileSigner | None:
        """What signs in the file of that number; 0: in the lock file."""
        return self._signer.at(self.identity, number) if self._signer is not None else None

    @property
    def spare_name(self) -> str:
        return f"{self.identity}.spare"

    @property
    def lock_name(self) -> str:
        return f"{self.identity}.lock"

    # Writing

    def append(self, drafts: Sequence[Draft]) -> list[int]:
        """Store these frames; all are durable when this returns. Returns their sequences.

        Raises:
            OSError: nothing of it is acknowledged.
        """
        for_marks = all(draft.kind is not Kind.RECORD for draft in drafts)
        drafts = [self._renumbered(draft) for draft in drafts]
        if self.is_lost:
            return self._append_lost(drafts, for_marks=for_marks)
        try:
            return self._append_to(self._ready(for_marks=for_marks), drafts)
        except OSError as error:
            full = error.errno in NO_ROOM
            if full and not for_marks:
                raise
            return self._append_to(self._begin_file(spare=full), drafts)

    def is_in_place(self) -> bool:
        """Whether its files are still where the next process looks for them."""
        files = {self.name_of(file.number): file.handle for file in self.files.values()}
        return all(
            self._disk.is_named(name, handle)
            for name, handle in {self.lock_name: self._lock, **files}.items()
            if handle is not None
        )

    def lose(self) -> None:
        """Take no more records: somebody has removed its files. What is in them can be read until they are closed."""
        self.is_lost = True

    def _append_lost(self, drafts: Sequence[Draft], *, for_marks: bool) -> list[int]:
        """Marks need no disk where their records have none; but some of the files may still be there."""
        if not for_marks:
            raise OSError(errno.ESTALE, "the files of the journal were removed")
        if self._active is not None:
            with suppress(OSError):
                return self._append_to(self._active, drafts)
        sequences = list(range(self.next_sequence, self.next_sequence + len(drafts)))
        self.next_sequence += len(drafts)
        for draft, sequence in zip(drafts, sequences, strict=True):
            self.take(draft, sequence, RecordLocation(0, 0, 0))
        return sequences

    def check(self) -> None:
        """Write a frame that means nothing, and read it back.

        Raises:
            OSError: that did not work.
        """
        self._keep_spare()
        file = self._ready(for_marks=False)
        at = file.end
        sequence = self.next_sequence
        self._append_to(file, [self._canary()])
        found = read_frame(self._read(file, at, file.end - at), 0, self.signer_of(file.number))
        if not isinstance(found, Frame) or found.sequence != sequence:
            self._active = None
            raise OSError(errno.EIO, "what was written is not what is read")

    def rewrite(self, gone: Collection[int]) -> None:
        """Drop records, and write the others that are needed into a new file, which counts only with all of them. What
        else the files before it held is nowhere then; a damaged file stays, and so do its unreadable records.

        A record stays known by the sequence that it had before.

        Raises:
            OSError: nothing was done, or files that are not needed any more are still there; it may be asked for again.
        """
        if self.is_lost or not self.files:
            return
        gone = {self._moved.get(sequence, sequence) for sequence in gone} & self.places.keys()
        read = {sequence: self._read_at(sequence) for sequence in sorted(self.places.keys() - gone)}
        kept = {sequence: draft for sequence, draft in read.items() if draft is not None}
        new: dict[int, int] = {}

        def drafts(first: int) -> list[Draft]:
            new.update(zip(kept, range(first, first + len(kept)), strict=True))
            dead_letters = [
                dead_letter_record(new[one], error) for one, error in self.dead_letters.items() if one in new
            ]
            done = [*gone, *kept]
            return [*kept.values(), *dead_letters, *([applied_record(done)] if done else [])]

        self._begin_file(spare=False, holding=drafts)
        self._moved = {known: new.get(now, now) for known, now in self._moved.items() if now not in gone} | new
        self._moved = {known: now for known, now in self._moved.items() if now in self.places}
        for number in sorted(self.leftovers):
            with suppress(FileNotFoundError):
                self._disk.remove(self.name_of(number))
            self.leftovers.discard(number)
        self._disk.sync_names()

    def _renumbered(self, draft: Draft) -> Draft:
        """A mark of records that were written anew, made of what they were known by before."""
        if self._moved and draft.kind is Kind.APPLIED:
            return applied_record(self._moved.get(one, one) for one in _sequences_in(draft))
        if self._moved and draft.kind is Kind.DEAD_LETTER:
            sequence, error = dead_letter_in(draft)
            return dead_letter_record(self._moved.get(sequence, sequence), error)
        return draft

    def read(self, sequence: int) -> Draft | None:
        """A record as it is on the disk; None where that is not what was written.

        Raises:
            OSError: the disk does not answer.
        """
        return self._read_at(self._moved.get(sequence, sequence))

    def _read_at(self, sequence: int) -> Draft | None:
        place = self.places[sequence]
        try:
            data = self._read(self.files[place.file], place.offset, place.length)
            frame = read_frame(data, 0, self.signer_of(place.file))
        except FileNotFoundError:
            return None
        return frame.draft if isinstance(frame, Frame) and frame.sequence == sequence else None

    def _read(self, file: LogFile, offset: int, length: int) -> bytes:
        if file.handle is not None:
            return self._disk.read(file.handle, offset, length)
        handle = self._disk.open(self.name_of(file.number))
        try:
            return self._disk.read(handle, offset, length)
        finally:
            self._disk.close(handle)

    # What its frames say, when they are written and when they are found

    def take(self, draft: Draft, sequence: int, place: RecordLocation) -> None:
        """Know what a frame says that this process writes, or one that it takes over from has written."""
        if draft.kind is Kind.RECORD:
            self.places[sequence] = place
            self.files[place.file].open_records.add(sequence)
        elif draft.kind is Kind.APPLIED:
            self.applied.add(applied_in(draft))
            for gone in _sequences_in(draft):
                self.dead_letters.pop(gone, None)  # it was tried again
                if (known := self.places.pop(gone, None)) is not None:
                    self.files[known.file].open_records.discard(gone)
        elif draft.kind is Kind.DEAD_LETTER:
            refused, error = dead_letter_in(draft)
            self.dead_letters[refused] = error
        elif draft.kind is Kind.REDIRECTED:
            thread_id, target = redirection_in(draft)
            self.redirected[thread_id] = target
            if not target:
                del self.redirected[thread_id]

    # Files

    def close(self) -> None:
        """Leave the log for the next process; when nothing in it is needed, nothing of it stays.

        Raises:
            OSError: something of it stays.
        """
        try:
            if self.is_settled and not self.is_lost:
                self._remove_all()
        finally:
            self.release()

    def release(self) -> None:
        """Give its files back as they are."""
        with ExitStack() as stack:
            for handle in (self._lock, *(file.handle for file in self.files.values())):
                if handle is not None:
                    stack.callback(self._disk.close, handle)
        self.files, self._active = {}, None

    def find_spare(self) -> None:
        """Use the room that an earlier process set aside, if it did not use it."""
        handle = self._disk.open(self.spare_name)
        try:
            self._has_spare = not any(self._disk.read(handle, 0, SPARE_SIZE))
        finally:
            self._disk.close(handle)
        if not self._has_spare:
            self._disk.remove(self.spare_name)

    def leave_out(self, number: int) -> None:
        """A file that was found is not needed."""
        del self.files[number]
        self.leftovers.add(number)

    def _ready(self, *, for_marks: bool) -> LogFile:
        """The file that takes the next frame."""
        file = self._active
        if file is None or file.end > (FILE_LIMIT if file.open_records else TIDY_ABOVE):
            return self._begin_file(spare=False)
        if file.for_marks and not for_marks:
            return self._begin_file(spare=False)  # records must not take the room of the marks
        return file

    def _begin_file(self, *, spare: bool, holding: Callable[[int], list[Draft]] = lambda _: []) -> LogFile:
        """The next file. What it is to be `holding` from the beginning, made for the sequence of the first of it,
        counts with it or not at all."""
        if spare and not self._has_spare:
            raise OSError(errno.ENOSPC, "the disk is full, and so is what was set aside for marks")
        self.newest += 1  # also when the rest fails: a number is never used twice
        before = self.next_sequence, self.previous_hash, self._appended
        needed = [known for known in self.files.values() if known.open_records or known.damaged]
        header = FileHeader(
            log=bytes.fromhex(self.identity),
            number=self.newest,
            created_at=self._wall_clock(),
            first_sequence=self.next_sequence,
            previous_hash=self.previous_hash,
            predecessors=(
                *(Predecessor(known.number, known.end_sequence) for known in needed),
                *(Predecessor(number, 0) for number in sorted(self.missing)),
            ),
        )
        name = self.name_of(header.number)
        handle = self._disk.open(self.spare_name) if spare else self._disk.create(name)
        file = LogFile(header.number, handle, self.next_sequence, self.next_sequence, for_marks=spare)
        is_durable = False
        try:
            if spare:
                self._disk.rename(self.spare_name, name)
                self._has_spare = False
            head = file_head(header, self.signer_of(header.number))
            self._disk.write(handle, 0, head)
            file.end = len(head)
            self._appended = Counter()
            self._write(file, self._summary(needed))
            written = self._write_with_retired(file, holding(self.next_sequence))
            self._disk.sync_names()
            is_durable = True
            self._write_lock_file()
        except OSError:
            self._discard(file, remove=not is_durable)  # its lock_file may be there, and would miss it
            if is_durable:
                self._active = None  # and end the file before it where that ends now
            else:
                self.next_sequence, self.previous_hash, self._appended = before
            raise
        self.files[file.number] = file
        self._active = file
        self.in_doubt = False
        self._take_written(*written)
        for known in [known for known in self.files.values() if known not in needed and known is not file]:
            self._discard(self.files.pop(known.number))
        return file

    def _summary(self, needed: Iterable[LogFile]) -> list[Draft]:
        """What the files so far say of the records in those that stay."""
        oldest = min((file.first_sequence for file in needed), default=self.next_sequence)
        self.applied = self.applied.since(oldest)
        return [
            *([applied_ranges_record(self.applied)] if self.applied.ranges else []),
            *(dead_letter_record(sequence, error) for sequence, error in self.dead_letters.items()),
            *(redirection_record(thread_id, target) for thread_id, target in self.redirected.items()),
            self._canary(),  # so that there is always something to sync
        ]

    def _canary(self) -> Draft:
        return Draft(Kind.SELF_CHECK, written_at=self._wall_clock())

    def _append_to(self, file: LogFile, drafts: Sequence[Draft]) -> list[int]:
        """Write frames, and the marks of files that they make unnecessary; remove those then."""
        written = self._write_with_retired(file, drafts)
        return self._take_written(*written)

    def _write_with_retired(self, file: LogFile, drafts: Sequence[Draft]) -> _Written:
        if not drafts:
            return [], [], [], []
        done = self._done_with(file, drafts)
        drafts = [*drafts, *(retirement_record(number) for number in done)]
        return drafts, *self._write(file, drafts), done

    def _take_written(
        self, drafts: Sequence[Draft], sequences: list[int], places: Sequence[RecordLocation], done: Sequence[int]
    ) -> list[int]:
        for draft, sequence, place in zip(drafts, sequences, places, strict=True):
            self.take(draft, sequence, place)
        for number in done:
            self._discard(self.files.pop(number))
        return sequences

    def _done_with(self, active: LogFile, drafts: Sequence[Draft]) -> list[int]:
        """The files that these marks make unnecessary."""
        gone = {sequence for draft in drafts if draft.kind is Kind.APPLIED for sequence in _sequences_in(draft)}
        return [
            file.number
            for file in self.files.values()
            if file is not active and not file.damaged and file.open_records <= gone
        ]

    def _write(self, file: LogFile, drafts: Sequence[Draft]) -> tuple[list[int], list[RecordLocation]]:
        """Write frames at the end of a file and sync it; only then is anything known of them."""
        batch = sequence = self.next_sequence
        previous, offset = self.previous_hash, file.end
        appended: Counter[str] = Counter()
        packed: list[bytes] = []
        places: list[RecordLocation] = []
        signer = self.signer_of(file.number)
        for draft in drafts:
            thread_sequence = 0
            if draft.kind is Kind.RECORD:
                appended[draft.thread_id] += 1
                thread_sequence = self._appended[draft.thread_id] + appended[draft.thread_id]
            frame = frame_bytes(draft, sequence, thread_sequence, batch, previous, signer)
            places.append(RecordLocation(file.number, offset, len(frame)))
            packed.append(frame)
            sequence, previous, offset = sequence + 1, hash_of(frame), offset + len(frame)
        self._store(file, b"".join(packed))
        self._appended.update(appended)
        self.next_sequence, self.previous_hash = sequence, previous
        file.end, file.end_sequence = offset, sequence
        return list(range(batch, sequence)), places

    def _store(self, file: LogFile, data: bytes) -> None:
        """Write at the end of a file and sync it. After a failure it is not known what it holds behind that."""
        assert file.handle is not None
        try:
            self._disk.write(file.handle, file.end, data)
            self._disk.sync(file.handle)
        except OSError:
            if self._active is file:
                self._active = None
            try:
                self._disk.truncate(file.handle, file.end)
            except OSError:
                self.in_doubt = True  # until the next file says that it is void
            raise

    def _discard(self, file: LogFile, *, remove: bool = True) -> None:
        """Close a file of which nothing is needed. Where it cannot be removed, every later file says so."""
        self.leftovers.add(file.number)
        with suppress(OSError):  # tried again at the end
            if file.handle is not None:
                self._disk.close(file.handle)
            if remove:
                self._disk.remove(self.name_of(file.number))
                self.leftovers.discard(file.number)

    def _remove_all(self) -> None:
        """Remove the newest file last: it says that those before it are not needed, and the lock that it is there."""
        if self.newest and self.files.keys() != {self.newest}:
            self._begin_file(spare=False)
        there = set(self._disk.names())
        for name in (self.name_of(number) for number in sorted(self.leftovers)):
            if name in there:
                self._disk.remove(name)
        self._disk.sync_names()
        self._disk.truncate(self._lock, 0)
        self._disk.sync(self._lock)
        for name in (*(self.name_of(number) for number in self.files), self.spare_name, self.lock_name):
            if name in there:
                self._disk.remove(name)

    def _keep_spare(self) -> None:
        """Set room aside for marks, while there is some."""
        if self._has_spare:
            return
        there = self.spare_name in self._disk.names()
        handle = self._disk.open(self.spare_name) if there else self._disk.create(self.spare_name)
        try:
            self._disk.reserve(handle, SPARE_SIZE)
            self._disk.sync(handle)
        except OSError:
            self._disk.close(handle)
            self._disk.remove(self.spare_name)
            raise
        self._disk.close(handle)
        self._has_spare = True

    def _write_lock_file(self) -> None:
        self._disk.write(self._lock, 0, lock_file_bytes(self.newest, self.home, self.signer_of(0)))
        self._disk.sync(self._lock)


def _sequences_in(draft: Draft) -> Iterator[int]:
    """What a mark of this process names: records that it has, each by itself."""
    return (sequence for part in applied_in(draft) for sequence in range(*part))
