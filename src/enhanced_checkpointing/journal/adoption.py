"""Reading the books that are on the disk: what is pending in them, and what is damaged. Nothing is passed over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal import codec, marks
from enhanced_checkpointing.journal.book import Book, JournalFile, Place
from enhanced_checkpointing.journal.disk import Disk
from enhanced_checkpointing.journal.frames import (
    FORMAT,
    SIGNED_FORMAT,
    Damage,
    Draft,
    FileHeader,
    Frame,
    Kind,
    Scan,
    Signer,
    format_of,
    scan,
)
from enhanced_checkpointing.journal.slot import Slot, read_slot

LOCK, SPARE, FILE = ".lock", ".spare", ".journal"

HOME_UNKNOWN = "unknown: the lock file is damaged"
"""Stands for the home of a book that cannot be read any more."""

_NAME = re.compile(r"(0[0-9a-f]{31})(?:\.lock|\.spare|\.([0-9]{6,8}|[0-4][0-9]{8})\.journal)")
"""Every file of a book: the book's identity, and the number of a file with records.

Neither is the last that there could be: the next one needs a name, too. An identity begins with a time in microseconds,
of which 2**60 are 36,500 years.
"""

MOST_NAMED = 100
"""Places of damage that are named of one book."""


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record that is not applied, in the book's order."""

    sequence: int
    draft: Draft
    size: int


@dataclass(frozen=True, slots=True)
class Adopted:
    """A book of a process that is gone. `faults` say what is damaged, `damaged_threads` whose records may be lost.

    One that `is_foreign` is of another primary.
    """

    book: Book
    records: Sequence[FoundRecord]
    faults: Sequence[str]
    damaged_threads: frozenset[str]
    is_foreign: bool = False


@dataclass(frozen=True, slots=True)
class _FileRead:
    """A file; `frames` and `damages` are what counts of it."""

    file: JournalFile
    header: FileHeader | None
    frames: Sequence[Frame]
    damages: Sequence[Damage]

    @property
    def number(self) -> int:
        return self.file.number

    @property
    def last_hash(self) -> bytes | None:
        """What the next file says of this one."""
        if self.frames:
            return self.frames[-1].hash
        return self.header.previous_hash if self.header is not None else None


def books_in(names: Iterable[str]) -> list[str]:
    """The identities of all books, oldest first."""
    return sorted({found[1] for name in names if (found := _NAME.fullmatch(name))})


def strays_in(names: Iterable[str]) -> list[str]:
    """The files that nobody here has made. Hidden ones are somebody's business."""
    return [name for name in names if not name.startswith(".") and not _NAME.fullmatch(name)]


def adopt(
    disk: Disk,
    identity: str,
    wall_clock: Callable[[], float],
    is_ours: Callable[[str | None], bool] = lambda home: True,
    signer: Signer | None = None,
) -> Adopted | None:
    """Take over a book; None if the process that writes it is alive. `is_ours` tells whether we are to drain what is
    for a primary; the files of a book that is not ours are left as they are. With a `signer` what is not signed is
    damage.

    Raises:
        CheckpointerConfigurationError: it is of a newer format, or signed, and there is no signer.
        OSError: the disk does not answer.
    """
    lock = disk.lock(f"{identity}{LOCK}")
    if lock is None:
        return None
    book = Book(disk, identity, lock, wall_clock, signer=signer)
    try:
        slot = read_slot(disk.read(lock, 0, disk.size(lock)), book.signer_of(0))
        book.home = HOME_UNKNOWN if slot.home_damaged else slot.home
        if is_ours(book.home):
            return _read_book(disk, book, slot)
        return _look_into(disk, book, slot)
    except BaseException:
        book.release()
        raise


def _look_into(disk: Disk, book: Book, slot: Slot) -> Adopted:
    """Read a book that is not ours, and change nothing."""
    try:
        return replace(_read_book(disk, book, slot, is_ours=False), is_foreign=True)
    except CheckpointerConfigurationError as error:
        return Adopted(book, [], [str(error)], frozenset(), is_foreign=True)


def _read_book(disk: Disk, book: Book, slot: Slot, *, is_ours: bool = True) -> Adopted:
    newest_begun = slot.newest
    names = disk.names()
    if is_ours and book.spare_name in names:
        book.find_spare()
    ours = (found for name in names if (found := _NAME.fullmatch(name)) and found[1] == book.identity)
    numbers = sorted(int(found[2]) for found in ours if found[2])
    book.newest = max([newest_begun or 0, *numbers])
    reads = _needed(book, [_read_file(disk, book, number) for number in numbers], newest_begun)
    frames = [frame for read in reads for frame in read.frames]
    # All at once, before the records that they name: what a mark names is not counted out.
    marked = (marks.applied_in(frame.draft) for frame in frames if frame.draft.kind is Kind.APPLIED)
    book.applied = marks.Sequences(part for ranges in marked for part in ranges)
    records: dict[int, FoundRecord] = {}
    for read in reads:
        for frame in read.frames:
            if frame.draft.kind is Kind.APPLIED or frame.sequence in book.applied:
                continue
            book.take(frame.draft, frame.sequence, Place(read.number, frame.offset, frame.length))
            if frame.draft.kind is Kind.RECORD:
                records[frame.sequence] = FoundRecord(frame.sequence, frame.draft, frame.length)
        book.next_sequence, book.previous_hash = read.file.end_sequence, read.last_hash or book.previous_hash
    book.buried = {sequence: error for sequence, error in book.buried.items() if sequence not in book.applied}
    pending = [records[sequence] for sequence in sorted(book.places)]
    # Its home is written before the first record: without records it may have been torn.
    slot_is_damaged = newest_begun is None or (slot.home_damaged and bool(pending))
    faults = [f"{book.lock_name}: it is not what was written"] if slot_is_damaged else []
    faults += [f"{book.name_of(number)}: the file is missing" for number in sorted(book.missing)]
    doubts = [_threads_in_doubt(read, book.applied) for read in reads] + ([None] if book.missing else [])
    threads: set[str] = set()
    for doubt in doubts:
        threads |= {record.draft.thread_id for record in pending} if doubt is None else doubt
    for read in reads:
        named = {damage.thread_id for damage in read.damages if damage.sequence not in book.applied}
        threads |= {thread_id for thread_id in named if thread_id is not None}
        faults += [f"{book.name_of(read.number)}, byte {damage.offset}: {damage.what}" for damage in read.damages]
        if read.file.damaged and is_ours:
            faults += _keep_copy(disk, book.name_of(read.number))
    if len(faults) > MOST_NAMED:
        faults = [*faults[:MOST_NAMED], f"and {len(faults) - MOST_NAMED} more places of {book.identity}"]
    return Adopted(book, pending, faults, frozenset(threads))


def _read_file(disk: Disk, book: Book, number: int) -> tuple[JournalFile, Scan]:
    handle = disk.open(book.name_of(number))
    try:
        disk.sync(handle)  # what is believed, and built upon, must survive a loss of power too
        data = disk.read(handle, 0, disk.size(handle))
    finally:
        disk.close(handle)
    file = book.files[number] = JournalFile(number, None, first_sequence=1, end_sequence=1)
    signer, format_ = book.signer_of(number), format_of(data) or FORMAT
    if format_ == SIGNED_FORMAT and signer is None:
        raise CheckpointerConfigurationError(
            f"The journal file {book.name_of(number)} is signed, and CHECKPOINT_JOURNAL_KEY is not set: what is in it "
            "cannot be told from a forgery. Set it to the key that the file was written with. Nothing in it was "
            "changed."
        )
    if format_ > SIGNED_FORMAT:
        raise CheckpointerConfigurationError(
            f"The journal file {book.name_of(number)} is of format {format_}; this release reads up to "
            f"{SIGNED_FORMAT}. Start the release that wrote it, which drains it, or move it out of "
            "CHECKPOINT_JOURNAL_DIR. Nothing in it was changed."
        )
    found = _sensible(scan(data, signer))
    if found.header is not None and (found.header.book.hex(), found.header.number) != (book.identity, number):
        misplaced = Damage(0, f"it is file {found.header.number} of {found.header.book.hex()}")
        found = replace(found, header=None, damages=[misplaced, *found.damages])
    return file, found


def _sensible(found: Scan) -> Scan:
    """A file without the frames that are what was written and make no sense: each is damage of its thread."""
    wrong = {frame.offset: what for frame in found.frames if (what := _fault_in(frame)) is not None}
    if not wrong:
        return found
    damages = [
        Damage(frame.offset, wrong[frame.offset], frame.draft.thread_id or None, frame.sequence)
        for frame in found.frames
        if frame.offset in wrong
    ]
    frames = [frame for frame in found.frames if frame.offset not in wrong]
    return replace(found, frames=frames, damages=[*found.damages, *damages])


def _fault_in(frame: Frame) -> str | None:
    try:
        if frame.draft.kind is Kind.RECORD:
            codec.describe(frame.draft.body)
        else:
            marks.check(frame.draft, frame.sequence)
    except Exception as error:  # noqa: BLE001  # whatever strange content raises: nothing of it may end a start
        return f"a record makes no sense, although it is what was written ({type(error).__name__})"
    return None


def _needed(book: Book, found: Sequence[tuple[JournalFile, Scan]], newest_begun: int | None) -> list[_FileRead]:
    """The files that count, oldest first; the newest header tells which those are, and where each of them ends.

    A file that was not begun to the end has nothing in it that was acknowledged.
    """
    begun = [(file, scan) for file, scan in found if not newest_begun or file.number <= newest_begun]
    headers = [scan.header for _, scan in begun if scan.header is not None]
    newest = headers[-1].number if headers else 0
    ends = {known.number: known.end for known in headers[-1].predecessors} if headers else {}
    reads = [
        _up_to(file, scan, ends.get(file.number))
        for file, scan in begun
        if file.number in ends or file.number >= newest
    ]
    if newest_begun and reads and not any(frame.draft.kind is Kind.CANARY for frame in reads[-1].frames):
        reads[-1] = _with_damage(reads[-1], "its beginning, which was whole, is not")
    retired = {
        marks.retired_in(frame.draft) for read in reads for frame in read.frames if frame.draft.kind is Kind.RETIRED
    }
    reads = [read for read in reads if read.number not in retired and (read.header or read.frames or read.damages)]
    there = {read.number for read in reads}
    for number in book.files.keys() - there:
        book.leave_out(number)
    book.missing = {*ends, newest_begun or newest} - retired - there
    book.missing.discard(0)
    return _linked(reads)


def _up_to(file: JournalFile, found: Scan, end: int | None) -> _FileRead:
    """A file without what is behind its end, where the next one took over after a failure."""
    file.first_sequence = found.header.first_sequence if found.header is not None else 1
    frames = [frame for frame in found.frames if end is None or frame.sequence < end]
    reached = frames[-1].sequence + 1 if frames else file.first_sequence
    damages = found.damages
    if end is not None and reached != end:
        damages = damages or [Damage(0, f"records up to {end - 1} are missing")]
    elif end is not None:
        last = frames[-1].offset if frames else 0
        damages = [damage for damage in damages if damage.offset <= last]
    file.damaged = bool(damages)
    file.end_sequence = reached if end is None else end
    return _FileRead(file, found.header, frames, damages)


def _with_damage(read: _FileRead, what: str) -> _FileRead:
    read.file.damaged = True
    return replace(read, damages=[*read.damages, Damage(0, what)])


def _linked(reads: Sequence[_FileRead]) -> list[_FileRead]:
    """The same files, each seen to follow from the one before it."""
    linked: list[_FileRead] = []
    for read in reads:
        before = linked[-1] if linked else None
        if before is not None and read.header is None:
            read.file.first_sequence = before.file.end_sequence
            read.file.end_sequence = max(read.file.end_sequence, before.file.end_sequence)
        if (
            before is not None
            and read.header is not None
            and read.header.first_sequence == before.file.end_sequence
            and not before.file.damaged
            and read.header.previous_hash != before.last_hash
        ):
            read = _with_damage(read, f"it does not follow from file {before.number}")
        linked.append(read)
    if linked and linked[-1].file.damaged:
        # The numbers of what is damaged are not used again: by that the next start finds it damaged, too.
        file, known = linked[-1].file, [damage.sequence or 0 for damage in linked[-1].damages]
        file.end_sequence = max(file.end_sequence, *known) + 1
    return linked


def _threads_in_doubt(read: _FileRead, applied: marks.Sequences) -> set[str] | None:
    """The threads that lost something in this file; None where it cannot be told.

    What the primary has already is no loss. A gap in the numbers of a thread tells whose records are missing.
    """
    losses = [damage for damage in read.damages if damage.sequence not in applied]
    if all(damage.thread_id is not None for damage in losses):
        return {damage.thread_id for damage in losses if damage.thread_id is not None}
    gaps = _gaps(read.frames)
    if all(damage.missing for damage in read.damages) and gaps.total() == sum(d.missing for d in read.damages):
        return set(gaps)
    return None


def _gaps(frames: Sequence[Frame]) -> Counter[str]:
    """How many records of each thread are left out in front of one that is there."""
    gaps: Counter[str] = Counter()
    last: Counter[str] = Counter()
    for frame in frames:
        if frame.draft.kind is Kind.RECORD:
            thread_id = frame.draft.thread_id
            if left_out := frame.thread_sequence - last[thread_id] - 1:
                gaps[thread_id] += left_out
            last[thread_id] = frame.thread_sequence
    return gaps


def _keep_copy(disk: Disk, name: str) -> list[str]:
    try:
        disk.keep_copy(name)
    except OSError as error:
        return [f"{name} could not be copied to quarantine: {error.strerror}"]
    return []
