"""What ended processes left in the directory: read, nothing passed over, and taken over as a whole, so that its order
is kept. What is pending in it, what is damaged, which of it is ours, and what its operator is told.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

from enhanced_checkpointing.errors import CheckpointerConfigurationError, listed
from enhanced_checkpointing.journal import codec
from enhanced_checkpointing.journal.disk import Disk, reason
from enhanced_checkpointing.journal.format import (
    FORMAT,
    SIGNED_FORMAT,
    Damage,
    Draft,
    FileHeader,
    Frame,
    Kind,
    LockFile,
    Scan,
    Sequences,
    Signer,
    applied_in,
    check_control_record,
    format_of,
    read_lock_file,
    retired_in,
    scan,
)
from enhanced_checkpointing.journal.log_file import LogFile, ProcessLog, RecordLocation
from enhanced_checkpointing.observability.events import Notice, Telemetry

LOCK, SPARE, FILE = ".lock", ".spare", ".journal"

DATABASE_UNKNOWN = "unknown: the lock file is damaged"
"""Stands for the home of a log that cannot be read any more."""

_NAME = re.compile(r"(0[0-9a-f]{31})(?:\.lock|\.spare|\.([0-9]{6,8}|[0-4][0-9]{8})\.journal)")
"""Every file of a log: the log's identity, and the number of a file with records.

Neither is the last that there could be: the next one needs a name, too. An identity begins with a time in microseconds,
of which 2**60 are 36,500 years.
"""

MOST_NAMED = 100
"""Places of damage that are named of one log."""


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record that is not applied, in the log's order."""

    sequence: int
    draft: Draft
    size: int


@dataclass(frozen=True, slots=True)
class OrphanedLog:
    """A log of a process that is gone. `faults` say what is damaged, `damaged_threads` whose records may be lost.

    One that `is_foreign` is of another primary.
    """

    log: ProcessLog
    records: Sequence[FoundRecord]
    faults: Sequence[str]
    damaged_threads: frozenset[str]
    is_foreign: bool = False


@dataclass(frozen=True, slots=True)
class _FileRead:
    """A file; `frames` and `damages` are what counts of it."""

    file: LogFile
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


def logs_in(names: Iterable[str]) -> list[str]:
    """The identities of all logs, oldest first."""
    return sorted({found[1] for name in names if (found := _NAME.fullmatch(name))})


def strays_in(names: Iterable[str]) -> list[str]:
    """The files that nobody here has made. Hidden ones are somebody's business."""
    return [name for name in names if not name.startswith(".") and not _NAME.fullmatch(name)]


def take_over_log(
    disk: Disk,
    identity: str,
    wall_clock: Callable[[], float],
    is_ours: Callable[[str | None], bool] = lambda home: True,
    signer: Signer | None = None,
) -> OrphanedLog | None:
    """Take over a log; None if the process that writes it is alive. `is_ours` tells whether we are to drain what is
    for a primary; the files of a log that is not ours are left as they are. With a `signer` what is not signed is
    damage.

    Raises:
        CheckpointerConfigurationError: it is of a newer format, or signed, and there is no signer.
        OSError: the disk does not answer.
    """
    lock = disk.lock(f"{identity}{LOCK}")
    if lock is None:
        return None
    log = ProcessLog(disk, identity, lock, wall_clock, signer=signer)
    try:
        lock_file = read_lock_file(disk.read(lock, 0, disk.size(lock)), log.signer_of(0))
        log.home = DATABASE_UNKNOWN if lock_file.home_damaged else lock_file.home
        if is_ours(log.home):
            return _read_log(disk, log, lock_file)
        return _look_into(disk, log, lock_file)
    except BaseException:
        log.release()
        raise


def _look_into(disk: Disk, log: ProcessLog, lock_file: LockFile) -> OrphanedLog:
    """Read a log that is not ours, and change nothing."""
    try:
        return replace(_read_log(disk, log, lock_file, is_ours=False), is_foreign=True)
    except CheckpointerConfigurationError as error:
        return OrphanedLog(log, [], [str(error)], frozenset(), is_foreign=True)


def _read_log(disk: Disk, log: ProcessLog, lock_file: LockFile, *, is_ours: bool = True) -> OrphanedLog:
    newest_begun = lock_file.newest
    names = disk.names()
    if is_ours and log.spare_name in names:
        log.find_spare()
    ours = (found for name in names if (found := _NAME.fullmatch(name)) and found[1] == log.identity)
    numbers = sorted(int(found[2]) for found in ours if found[2])
    log.newest = max([newest_begun or 0, *numbers])
    reads = _needed(log, [_read_file(disk, log, number) for number in numbers], newest_begun)
    frames = [frame for read in reads for frame in read.frames]
    # All at once, before the records that they name: what a mark names is not counted out.
    marked = (applied_in(frame.draft) for frame in frames if frame.draft.kind is Kind.APPLIED)
    log.applied = Sequences(part for ranges in marked for part in ranges)
    records: dict[int, FoundRecord] = {}
    for read in reads:
        for frame in read.frames:
            if frame.draft.kind is Kind.APPLIED or frame.sequence in log.applied:
                continue
            log.take(frame.draft, frame.sequence, RecordLocation(read.number, frame.offset, frame.length))
            if frame.draft.kind is Kind.RECORD:
                records[frame.sequence] = FoundRecord(frame.sequence, frame.draft, frame.length)
        log.next_sequence, log.previous_hash = read.file.end_sequence, read.last_hash or log.previous_hash
    log.dead_letters = {sequence: error for sequence, error in log.dead_letters.items() if sequence not in log.applied}
    pending = [records[sequence] for sequence in sorted(log.places)]
    # Its home is written before the first record: without records it may have been torn.
    lock_file_is_damaged = newest_begun is None or (lock_file.home_damaged and bool(pending))
    faults = [f"{log.lock_name}: it is not what was written"] if lock_file_is_damaged else []
    faults += [f"{log.name_of(number)}: the file is missing" for number in sorted(log.missing)]
    doubts = [_threads_in_doubt(read, log.applied) for read in reads] + ([None] if log.missing else [])
    threads: set[str] = set()
    for doubt in doubts:
        threads |= {record.draft.thread_id for record in pending} if doubt is None else doubt
    for read in reads:
        named = {damage.thread_id for damage in read.damages if damage.sequence not in log.applied}
        threads |= {thread_id for thread_id in named if thread_id is not None}
        faults += [f"{log.name_of(read.number)}, byte {damage.offset}: {damage.what}" for damage in read.damages]
        if read.file.damaged and is_ours:
            faults += _keep_copy(disk, log.name_of(read.number))
    if len(faults) > MOST_NAMED:
        faults = [*faults[:MOST_NAMED], f"and {len(faults) - MOST_NAMED} more places of {log.identity}"]
    return OrphanedLog(log, pending, faults, frozenset(threads))


def _read_file(disk: Disk, log: ProcessLog, number: int) -> tuple[LogFile, Scan]:
    handle = disk.open(log.name_of(number))
    try:
        disk.sync(handle)  # what is believed, and built upon, must survive a loss of power too
        data = disk.read(handle, 0, disk.size(handle))
    finally:
        disk.close(handle)
    file = log.files[number] = LogFile(number, None, first_sequence=1, end_sequence=1)
    signer, format_ = log.signer_of(number), format_of(data) or FORMAT
    if format_ == SIGNED_FORMAT and signer is None:
        raise CheckpointerConfigurationError(
            f"The journal file {log.name_of(number)} is signed, and CHECKPOINT_JOURNAL_KEY is not set: what is in it "
            "cannot be told from a forgery. Set it to the key that the file was written with. Nothing in it was "
            "changed."
        )
    if format_ > SIGNED_FORMAT:
        raise CheckpointerConfigurationError(
            f"The journal file {log.name_of(number)} is of format {format_}; this release reads up to "
            f"{SIGNED_FORMAT}. Start the release that wrote it, which drains it, or move it out of "
            "CHECKPOINT_JOURNAL_DIR. Nothing in it was changed."
        )
    found = _sensible(scan(data, signer))
    if found.header is not None and (found.header.log.hex(), found.header.number) != (log.identity, number):
        misplaced = Damage(0, f"it is file {found.header.number} of {found.header.log.hex()}")
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
            check_control_record(frame.draft, frame.sequence)
    except Exception as error:  # noqa: BLE001  # whatever strange content raises: nothing of it may end a start
        return f"a record makes no sense, although it is what was written ({type(error).__name__})"
    return None


def _needed(log: ProcessLog, found: Sequence[tuple[LogFile, Scan]], newest_begun: int | None) -> list[_FileRead]:
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
    if newest_begun and reads and not any(frame.draft.kind is Kind.SELF_CHECK for frame in reads[-1].frames):
        reads[-1] = _with_damage(reads[-1], "its beginning, which was whole, is not")
    retired = {retired_in(frame.draft) for read in reads for frame in read.frames if frame.draft.kind is Kind.RETIRED}
    reads = [read for read in reads if read.number not in retired and (read.header or read.frames or read.damages)]
    there = {read.number for read in reads}
    for number in log.files.keys() - there:
        log.leave_out(number)
    log.missing = {*ends, newest_begun or newest} - retired - there
    log.missing.discard(0)
    return _linked(reads)


def _up_to(file: LogFile, found: Scan, end: int | None) -> _FileRead:
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


def _threads_in_doubt(read: _FileRead, applied: Sequences) -> set[str] | None:
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


MEMORY = "memory"
"""The home of what a primary in memory did not take."""


@dataclass(frozen=True, slots=True)
class Orphans:
    """`logs` are ours now. `foreign` are of other primaries: of each log that stays as it is, the home.

    `strays` are files that nobody here has made.
    """

    logs: Sequence[OrphanedLog] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)
    strays: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class OrphanedRecord:
    """A record with its log. `stamp` is when it was written, wall-clock time, and never before its predecessors."""

    stamp: float
    found: OrphanedLog
    record: FoundRecord

    @property
    def thread_id(self) -> str:
        return self.record.draft.thread_id


Settle = Callable[[Set[str], Sequence[OrphanedLog]], None]
"""Is told of the identities of the logs of processes that run, and of the logs that were taken over."""


def belongs(theirs: str | None, ours: str | None, *, takes_over_all: bool) -> bool:
    """Whether what was acknowledged for one primary may be drained into another.

    Memory takes only what was meant for it, as nothing that it takes outlives the process. A log of an earlier release
    does not say whose it is, and counts as ours.
    """
    if ours is None or theirs == ours:
        return True
    return ours != MEMORY and (theirs is None or takes_over_all)


def take_over(
    disk: Disk,
    wall_clock: Callable[[], float],
    is_ours: Callable[[str | None], bool],
    *,
    held: Set[str] = frozenset(),
    foreign: Mapping[str, str] | None = None,
    signer: Signer | None = None,
    settle: Settle = lambda alive, logs: None,
) -> Orphans | None:
    """Take over every log of a process that is gone; None if another process does that just now.

    All of them or none: the records of one thread may be in several logs, and must not be drained by two processes.
    `held` are the identities of this process's own logs, `foreign` those that are known to be of other primaries. A
    log without anything in it goes. `settle` is told before another process may look: whose logs are alive, and what
    was taken over.

    Raises:
        CheckpointerConfigurationError: one is of a newer format, or signed without a signer. None was taken over.
        OSError: the disk does not answer. None was taken over.
    """
    with disk.alone() as alone, ExitStack() as undoing:
        if not alone:
            return None
        names = disk.names()
        logs: list[OrphanedLog] = []
        strangers: dict[str, str] = {}
        alive: set[str] = set()
        for identity in logs_in(names):
            if identity in held:
                continue
            if foreign is not None and identity in foreign:
                if _is_dead(disk, identity):
                    strangers[identity] = foreign[identity]
                else:
                    alive.add(identity)
                continue
            found = take_over_log(disk, identity, wall_clock, is_ours, signer)
            if found is None:
                alive.add(identity)
                continue
            if not found.records and not found.faults and found.log.is_settled:
                with suppress(OSError):  # a full disk, perhaps: the next process tries it again
                    found.log.close()
            elif found.is_foreign:
                strangers[identity] = found.log.home or "an earlier release, which did not say"
                found.log.release()
            else:
                undoing.callback(found.log.release)
                logs.append(found)
        settle(alive, logs)
        undoing.pop_all()
        return Orphans(logs, strangers, strays_in(names))


def in_order(logs: Sequence[OrphanedLog]) -> list[OrphanedRecord]:
    """The records of all logs in the order in which they were written, those of one log always in its own."""
    return list(heapq.merge(*map(_stamped, logs), key=lambda each: each.stamp))


def _stamped(found: OrphanedLog) -> Iterator[OrphanedRecord]:
    """A clock may have jumped back while the log was written."""
    stamps = accumulate((record.draft.written_at for record in found.records), max)
    return (OrphanedRecord(stamp, found, record) for stamp, record in zip(stamps, found.records, strict=True))


def foreign_notices(foreign: Mapping[str, str], known: Mapping[str, str]) -> Iterator[str]:
    """For each home of which there are logs that were not known: what that means, and what to do."""
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
    named = listed(map(repr, strays))
    return f"in the journal's directory are files that are not the journal's, and are ignored: {named}"


def _is_dead(disk: Disk, identity: str) -> bool:
    """Whether nobody holds a log."""
    lock = disk.lock(f"{identity}{LOCK}")
    if lock is None:
        return False
    disk.close(lock)
    return True


class OrphanRecovery:
    """Looks into the directory of the journal that is for the primary of this `home`. What was said is not said again.

    What is for another primary is left alone, unless it `takes_over_all`. Without a home all of it is ours.
    """

    def __init__(
        self,
        disk: Disk,
        telemetry: Telemetry,
        wall_clock: Callable[[], float],
        *,
        home: str | None,
        takes_over_all: bool,
        signer: Signer | None = None,
    ) -> None:
        self._disk = disk
        self._signer = signer
        self._telemetry = telemetry
        self._wall_clock = wall_clock
        self._is_ours = partial(belongs, ours=home, takes_over_all=takes_over_all)
        self._written_until = -math.inf
        self._foreign: Mapping[str, str] = {}
        """The logs that are for other primaries, and the home of each."""
        self._strays: set[str] = set()
        self._fault: str | None = None

    @property
    def foreign(self) -> tuple[tuple[str, int], ...]:
        """For every home that is not ours, how many logs there are."""
        return tuple(sorted(Counter(self._foreign.values()).items()))

    def now(self) -> float:
        """When something is written, by the wall clock, but after all that was taken over: after a clock that jumped
        back it would else be drained before what it grew from."""
        return max(self._wall_clock(), math.nextafter(self._written_until, math.inf))

    def take_over(self, held: Set[str], settle: Settle) -> Orphans | None:
        """See `orphans.take_over`; `held` are the identities of our own logs. Runs where the disk may block."""
        return take_over(
            self._disk,
            self._wall_clock,
            self._is_ours,
            held=held,
            foreign=self._foreign,
            signer=self._signer,
            settle=settle,
        )

    def by_thread(self, orphans: Orphans, number: Callable[[], int]) -> dict[str, list[tuple[int, OrphanedRecord]]]:
        """What was left of each thread in its order, numbered over all threads; threads of which all is lost, too."""
        threads: dict[str, list[tuple[int, OrphanedRecord]]] = {}
        for each in in_order(orphans.logs):
            threads.setdefault(each.thread_id, []).append((number(), each))
            self._written_until = max(self._written_until, each.stamp)
        for found in orphans.logs:
            for thread_id in found.damaged_threads:
                threads.setdefault(thread_id, [])
        return threads

    def tell(self, orphans: Orphans, news: Sequence[str]) -> None:
        """Say what was taken over, what is damaged, what was left alone, and what else is `news`."""
        self._fault = None
        for what in news:
            self._say("WARNING", what)
        for found in orphans.logs:
            for fault in found.faults:
                self._say("ERROR", f"the journal is damaged: {fault}. Threads that may lack something are frozen")
            if found.records:
                count = len(found.records)
                self._say("WARNING", f"{count} operations that an earlier process acknowledged wait in the journal")
        for what in foreign_notices(orphans.foreign, self._foreign):
            self._say("ERROR", what)
        self._foreign = orphans.foreign
        if strays := [name for name in orphans.strays if name not in self._strays]:
            self._strays.update(strays)
            self._say("WARNING", stray_notice(strays))

    def tell_fault(self, error: Exception) -> None:
        """Say why nothing can be taken over now. It is tried again and again, and said once."""
        fault = reason(error) if isinstance(error, OSError) else str(error)
        if fault != self._fault:
            what = f"what ended processes left in the journal cannot be taken over now, and is left as it is ({fault})"
            self._say("ERROR", what)
        self._fault = fault

    def _say(self, level: str, what: str) -> None:
        self._telemetry.emit(Notice(level, what))
