"""The files of one process: whatever its disk does, what was acknowledged is found, and what was marked is gone."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from enhanced_checkpointing.journal import codec
from enhanced_checkpointing.journal import log_file as log_module
from enhanced_checkpointing.journal.disk import Disk, RealDisk
from enhanced_checkpointing.journal.format import (
    Kind,
    LockFile,
    applied_record,
    dead_letter_record,
    lock_file_bytes,
    read_lock_file,
    redirection_record,
    scan,
)
from enhanced_checkpointing.journal.log_file import ProcessLog
from enhanced_checkpointing.journal.recovery import OrphanedLog, take_over_log
from tests.support.disks import fill, make_room, small_disk
from tests.support.faulty_disk import Died, FaultyDisk
from tests.support.journal_files import record

IDENTITY = f"{1:016x}" + "ab" * 8


@pytest.fixture(autouse=True)
def any_bytes_are_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at here, and not what their records say: tests/unit/test_strange_records.py does that."""
    monkeypatch.setattr(codec, "describe", lambda body: None)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many files in few steps."""
    monkeypatch.setattr(log_module, "FILE_LIMIT", 700)
    monkeypatch.setattr(log_module, "TIDY_ABOVE", 400)


def wall_clock() -> float:
    return 1000.0


def new_log(disk: Disk, identity: str = IDENTITY) -> ProcessLog:
    disk.prepare()
    lock = disk.lock(f"{identity}.lock")
    assert lock is not None
    return ProcessLog(disk, identity, lock, wall_clock)


def adopted(directory: Path | Disk) -> OrphanedLog:
    found = take_over_log(RealDisk(directory) if isinstance(directory, Path) else directory, IDENTITY, wall_clock)
    assert found is not None
    return found


def pending(found: OrphanedLog) -> dict[str, list[bytes]]:
    """The bodies of what is pending, by thread."""
    bodies: dict[str, list[bytes]] = defaultdict(list)
    for each in found.records:
        bodies[each.draft.thread_id].append(each.draft.body)
    return dict(bodies)


class Writer:
    """Does to a log what a journal does, and keeps what it was promised."""

    def __init__(self, log: ProcessLog) -> None:
        self.log = log
        self.open: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        self.uncertain: set[bytes] = set()
        """Bodies that were refused, or whose mark was: they may be there or not."""
        self.done: set[bytes] = set()
        self.failures = 0
        self.failed_in_a_row = 0
        self._made = 0

    def append(self, *threads: str, size: int = 40) -> None:
        bodies = []
        for thread_id in threads:
            self._made += 1
            bodies.append(f"{thread_id}{self._made:04}".encode().ljust(size, b"."))
        drafts = [record(thread_id, body) for thread_id, body in zip(threads, bodies, strict=True)]
        self.uncertain |= set(bodies)
        sequences = self._tried(lambda: self.log.append(drafts))
        if sequences is not None:
            self.uncertain -= set(bodies)
            for thread_id, body, sequence in zip(threads, bodies, sequences, strict=False):
                self.open[thread_id].append((sequence, body))

    def mark(self, thread_id: str, count: int = 1) -> None:
        oldest = self.open[thread_id][:count]
        bodies = {body for _, body in oldest}
        before = set(self.uncertain)
        self.uncertain |= bodies
        if oldest and self._tried(lambda: self.log.append([applied_record(sequence for sequence, _ in oldest)])):
            self.uncertain = before
            self.done |= bodies
            self.open[thread_id] = self.open[thread_id][len(oldest) :]

    def dead_letter(self, thread_id: str) -> None:
        if self.open[thread_id]:
            self._tried(lambda: self.log.append([dead_letter_record(self.open[thread_id][0][0], "refused")]))

    def redirect(self, thread_id: str) -> None:
        self._tried(lambda: self.log.append([redirection_record(thread_id, "sibling")]))

    def check(self) -> None:
        self._tried(self.log.check)

    def close(self) -> None:
        self._tried(self.log.close)

    def _tried(self, work: Callable[[], list[int] | None]) -> list[int] | None:
        try:
            result = work()
        except OSError:
            self.failures += 1
            self.failed_in_a_row += 1
            return None
        self.failed_in_a_row = 0
        return result

    def verify(self, found: OrphanedLog) -> None:
        """What was found keeps every promise."""
        assert found.faults == []
        assert found.damaged_threads == frozenset()
        there = pending(found)
        bodies = [each.draft.body for each in found.records]
        assert self.done.isdisjoint(bodies), "a record that was marked came back"
        for thread_id, expected in self.open.items():
            certain = [body for _, body in expected if body not in self.uncertain]
            assert [body for body in there.get(thread_id, []) if body in set(certain)] == certain, (
                "lost, or in disorder"
            )
        known = self.uncertain.union(*({body for _, body in those} for those in self.open.values()))
        assert known.issuperset(bodies), "a record that nobody wrote"


def work(writer: Writer) -> None:
    """Fill several files, and make some of them unnecessary, some not."""
    writer.check()
    writer.append("a", "b")
    writer.append("a")
    writer.append("c", size=400)
    writer.append("a", "b", "d")
    writer.check()
    writer.mark("a", 2)
    writer.dead_letter("c")
    writer.redirect("b")
    writer.append("d", size=400)
    writer.mark("b", 2)
    writer.check()
    writer.append("a", "b")
    writer.mark("a", 9)
    writer.append("e", size=700)
    writer.mark("d", 9)
    writer.mark("e", 9)
    writer.check()
    writer.append("a")


def drain(found: OrphanedLog) -> None:
    for each in found.records:
        found.log.append([applied_record([each.sequence])])
    assert found.log.is_settled
    found.log.close()


FAULTS = list(itertools.product([errno.EIO, errno.ENOSPC, None], [False, True]))


@pytest.mark.thorough
@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(("error", "short"), FAULTS)
def test_call_that_fails_or_is_the_last_one_breaks_no_promise_whichever_it_is(
    tmp_path: Path, error: int | None, short: bool
) -> None:
    failures = 0
    for number in itertools.count(1):
        directory = tmp_path / str(number)
        disk = FaultyDisk(directory, fails_at=number, error=error, short=short)
        writer = Writer(new_log(disk))
        with suppress(Died):
            work(writer)
        assert writer.failures <= 1, "one fault refuses one call at most, and the next one works again"
        failures += writer.failures
        disk.heal()
        writer.log.release()
        found = adopted(FaultyDisk(directory))
        writer.verify(found)
        drain(found)
        assert list(directory.iterdir()) == []
        if disk.counted < number:
            break
    assert number > 50, "the script reaches that many calls"
    assert (failures > 0) is (error is not None)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_disk_that_fails_for_a_while_loses_nothing_and_takes_everything_afterwards(tmp_path: Path, error: int) -> None:
    for number in range(1, 70, 2):
        disk = FaultyDisk(tmp_path / str(number), fails_at=number, error=error, lasting=True, short=True)
        writer = Writer(new_log(disk))
        work(writer)
        disk.heal()
        writer.append("a", "z")
        writer.mark("z")
        assert writer.failed_in_a_row == 0
        writer.log.release()
        found = adopted(FaultyDisk(tmp_path / str(number)))
        writer.verify(found)
        drain(found)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("error", [errno.EIO, None])
def test_end_of_a_settled_book_that_is_interrupted_brings_nothing_back(tmp_path: Path, error: int | None) -> None:
    for number in range(1, 30):
        directory = tmp_path / str(number)
        disk = FaultyDisk(directory, error=error)
        writer = Writer(new_log(disk))
        writer.append("a", size=800)
        writer.append("b", size=800)
        writer.append("a", size=800)
        disk.failing = {"remove"}
        disk.error = errno.EIO
        writer.mark("a", 2)
        writer.mark("b", 1)
        disk.failing = set()
        disk.error = error
        disk.calls.clear()
        disk.fails_at = number
        with suppress(Died):
            writer.close()
        disk.heal()
        for identity_file in directory.glob("*.lock"):
            assert identity_file.name.startswith(IDENTITY)
        found = adopted(directory)
        assert found.records == []
        assert found.faults == []
        found.log.close()
        assert list(directory.iterdir()) == []


@pytest.mark.usefixtures("small_files")
def test_nothing_is_acknowledged_before_it_is_written_and_synced(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    log.append([record("a")])
    disk.calls.clear()
    log.append([record("a"), record("b"), redirection_record("a", "sibling")])
    assert disk.calls == ["write", "sync"], "one write and one sync for all of them"


def test_new_file_is_begun_with_its_name_and_its_number_synced_before_anything_is_acknowledged_in_it(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    disk.calls.clear()
    log.append([record("a")])
    assert disk.calls == ["create", "write", "write", "sync", "sync_names", "write", "sync", "write", "sync"]


def test_file_whose_sync_failed_is_never_written_or_synced_again(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    log.append([record("a", b"first")])
    (first,) = log.files.values()
    assert first.handle is not None
    size = disk.size(first.handle)
    disk.fails_at = sum(call in {"write", "sync", "create", "sync_names"} for call in disk.calls) + 2
    log.append([record("a", b"second")])
    assert [len(file.open_records) for file in log.files.values()] == [1, 1]
    assert disk.size(first.handle) == size, "nor is what failed left in it"
    log.append([record("a", b"third")])
    log.release()
    assert pending(adopted(tmp_path)) == {"a": [b"first", b"second", b"third"]}


def test_tail_that_could_not_be_cut_off_is_void(tmp_path: Path) -> None:
    """The first try stays in the first file whole: nobody must find it there once more."""
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    log.append([record("a", b"first")])
    disk.failing = {"sync", "truncate"}
    with pytest.raises(OSError, match="Input/output"):
        log.append([record("a", b"refused")])
    disk.heal()
    before = disk.calls.count("create")
    log.append([record("a", b"second")])
    assert disk.calls.count("create") == before + 1, "the file whose sync failed is not used again"
    log.release()
    found = adopted(tmp_path)
    assert pending(found) == {"a": [b"first", b"second"]}
    assert found.faults == []


def test_records_are_read_back_and_a_changed_one_is_not(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    one, two = log.append([record("a", b"needle"), record("a", b"other")])
    assert (draft := log.read(one)) is not None
    assert (draft.thread_id, draft.body) == ("a", b"needle")
    path = tmp_path / log.name_of(1)
    path.write_bytes(path.read_bytes().replace(b"needle", b"noodle"))
    assert log.read(one) is None
    assert log.read(two) is not None
    log.places[one] = log.places[two]
    assert log.read(one) is None, "another record than the one that was asked for"
    log.release()


@pytest.mark.usefixtures("small_files")
def test_files_go_when_their_own_records_are_done_and_not_before(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    sequences = [log.append([record("a", bytes(800))])[0] for _ in range(4)]

    def numbers() -> list[int]:
        return sorted(int(path.name.split(".")[1]) for path in tmp_path.glob("*.journal"))

    assert numbers() == [1, 2, 3, 4]
    log.append([applied_record(sequences[1:3])])
    assert numbers() == [1, 4, 5], "not because of their age"
    log.append([applied_record(sequences[:1])])
    assert 1 not in numbers()
    assert 4 in numbers()
    log.release()
    found = adopted(tmp_path)
    assert [each.sequence for each in found.records] == [sequences[3]]
    assert found.faults == []
    drain(found)


def test_canaries_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "TIDY_ABOVE", 2000)
    log = new_log(RealDisk(tmp_path))
    for _ in range(200):
        log.check()
    assert sum(path.stat().st_size for path in tmp_path.glob("*.journal")) < 2500
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_canary_that_is_not_read_as_it_was_written_is_an_error(tmp_path: Path) -> None:
    class Lying(RealDisk):
        def read(self, handle: int, offset: int, length: int) -> bytes:
            return bytes(length)

    log = new_log(Lying(tmp_path))
    with pytest.raises(OSError, match="what was written is not what is read"):
        log.check()
    before = log.newest
    log.append([record("a")])
    assert log.newest == before + 1, "such a file is not trusted with more"
    log.release()


def test_room_that_was_set_aside_is_kept_until_it_is_needed(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    log.check()
    log.check()
    assert disk.count("reserve") == 1
    (spare,) = tmp_path.glob("*.spare")
    assert spare.stat().st_size == log_module.SPARE_SIZE
    log.release()
    again = adopted(disk)
    again.log.check()
    assert disk.count("reserve") == 1, "the next process finds it"
    again.log.release()


def test_room_that_could_not_be_set_aside_is_an_error_and_is_tried_again(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path, error=errno.ENOSPC)
    log = new_log(disk)
    disk.failing = {"reserve"}
    with pytest.raises(OSError, match="No space"):
        log.check()
    assert not list(tmp_path.glob("*.spare"))
    disk.failing = {"reserve", "remove"}
    with pytest.raises(OSError, match="No space"):
        log.check()
    assert list(tmp_path.glob("*.spare"))
    disk.heal()
    log.check()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_room_that_was_used_although_its_name_says_otherwise_is_not_used_twice(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    log.check()
    log.release()
    (spare,) = tmp_path.glob("*.spare")
    spare.write_bytes(b"a file" + bytes(100))
    found = adopted(tmp_path)
    assert not spare.exists()
    found.log.close()


class OnFullDisk:
    """A log with pending records, on a disk that has just filled up."""

    def __init__(self, directory: Path) -> None:
        self.disk = FaultyDisk(directory)
        self.log = new_log(self.disk)
        self.log.check()
        self.sequences = [self.log.append([record("a", b"x" * 300)])[0] for _ in range(40)]
        self.disk.full = True


def test_full_disk_refuses_records_and_takes_the_marks_of_a_drain(tmp_path: Path) -> None:
    full = OnFullDisk(tmp_path)
    for sequence in full.sequences[:20]:
        with pytest.raises(OSError, match="No space"):
            full.log.append([record("b", b"y" * 300)])
        full.log.append([applied_record([sequence])])
    with pytest.raises(OSError, match="No space"):
        full.log.check()
    full.log.release()
    found = adopted(tmp_path)
    assert [each.sequence for each in found.records] == full.sequences[20:]
    assert found.faults == []
    drain(found)


def test_small_records_do_not_take_the_room_of_the_marks(tmp_path: Path) -> None:
    full = OnFullDisk(tmp_path)
    full.log.append([applied_record(full.sequences[:1])])
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            full.log.append([record("b")])
    for sequence in full.sequences[1:]:
        full.log.append([applied_record([sequence])])
    full.disk.full = False
    full.log.append([record("b")])
    assert [file.for_marks for file in full.log.files.values()][-1] is False
    full.log.release()


def test_marks_are_refused_when_the_room_for_them_is_used_up_and_nothing_is_lost(tmp_path: Path) -> None:
    full = OnFullDisk(tmp_path)
    many = [full.sequences[0]] * 3000
    full.log.append([applied_record([sequence]) for sequence in full.sequences[:2]])
    with pytest.raises(OSError, match="what was set aside for marks"):
        full.log.append([applied_record([sequence]) for sequence in many])
    with pytest.raises(OSError, match="what was set aside for marks"):
        full.log.append([applied_record(full.sequences[2:3])])
    full.disk.full = False
    full.log.append([applied_record(full.sequences[2:4])])
    full.log.release()
    assert [each.sequence for each in adopted(tmp_path).records] == full.sequences[4:]


def test_disk_that_is_really_full_takes_the_marks_of_a_drain(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as folder:
        disk = RealDisk(folder / "journal")
        log = new_log(disk)
        log.check()
        sequences = [log.append([record("a", b"x" * 1000)])[0] for _ in range(200)]
        fill(folder)
        with suppress(OSError):
            log.append([record("b", b"y" * 1000)])  # it may fit into what is left of a block
        with pytest.raises(OSError, match="No space"):
            log.append([record("b", b"y" * 5000)])
        for sequence in sequences[:150]:
            log.append([applied_record([sequence])])
        with pytest.raises(OSError, match="No space"):
            log.append([record("b", b"y" * 5000)])
        log.release()
        found = adopted(folder / "journal")
        left = [each.sequence for each in found.records if each.draft.thread_id == "a"]
        assert left == sequences[150:]
        assert found.faults == []
        make_room(folder)
        drain(found)
        assert list((folder / "journal").iterdir()) == []


LIMITED = """
import sys
from pathlib import Path
from enhanced_checkpointing.journal import codec
from enhanced_checkpointing.journal.format import applied_record, dead_letter_record, redirection_record
from enhanced_checkpointing.journal.disk import RealDisk
from tests.support.journal_files import record
from tests.unit.test_log_file import adopted, new_log, pending

codec.describe = lambda body: None
directory = Path(sys.argv[1])
log = new_log(RealDisk(directory))
log.check()
sequences = [log.append([record("a", b"x" * 30_000)])[0] for _ in range(10)]
try:
    log.append([record("b", b"y" * 200_000)])
except OSError as error:
    print(error.errno)
log.append([applied_record(sequences[:5])])
log.release()
found = adopted(directory)
assert found.faults == [], found.faults
print(len(found.records), len(list(directory.glob("*.journal"))) > 1)
"""


@pytest.mark.thorough
def test_limit_on_the_size_of_files_begins_new_ones_and_refuses_what_fits_in_none(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "journal")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(errno.EFBIG), "5", "True"]


def test_book_that_nobody_needs_leaves_nothing_behind(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    assert log.is_settled
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_book_with_records_stays(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    log.check()
    log.append([record("a")])
    log.close()
    assert pending(adopted(tmp_path)) == {"a": [b"body"]}


def test_end_that_fails_gives_everything_back_nevertheless(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    log.check()
    before = len(os.listdir("/proc/self/fd"))
    disk.failing = {"truncate"}
    with pytest.raises(OSError, match="Input/output"):
        log.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2, "the lock and the file"
    disk.heal()
    adopted(tmp_path).log.close()
    assert list(tmp_path.iterdir()) == []


def test_file_that_cannot_be_removed_is_removed_at_the_end(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    (sequence,) = log.append([record("a", bytes(300_000))])
    disk.failing = {"remove"}
    log.append([applied_record([sequence])])
    assert log.append([record("b")]), "what cannot be tidied up does not stop the rest"
    assert log.leftovers == {1}
    log.release()
    disk.heal()
    found = adopted(tmp_path)
    assert pending(found) == {"b": [b"body"]}, "the marks of the first file are gone, and so is what they marked"
    drain(found)
    assert list(tmp_path.iterdir()) == []


def test_file_that_was_removed_although_an_error_was_reported_is_not_missed_at_the_end(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    (sequence,) = log.append([record("a", bytes(300_000))])
    disk.failing = {"remove"}
    log.append([applied_record([sequence])])
    log.check()
    disk.heal()
    (tmp_path / log.name_of(1)).unlink()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_slot_tells_the_newest_file_and_whether_it_is_damaged(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    log.append([record("a")])
    lock_file = (tmp_path / log.lock_name).read_bytes()
    assert read_lock_file(b"") == LockFile(0)
    assert read_lock_file(lock_file) == LockFile(1)
    assert read_lock_file(lock_file[:-1]) == LockFile(0), "it never arrived as a whole"
    assert read_lock_file(lock_file + b"x") == LockFile(1, home_damaged=True)
    for bit in range(8 * len(lock_file)):
        flipped = bytearray(lock_file)
        flipped[bit // 8] ^= 1 << bit % 8
        assert read_lock_file(bytes(flipped)) == LockFile(None)
    log.release()


def test_slot_tells_for_which_primary_a_book_is_and_whether_that_is_damaged(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    log.home = "postgres://hé:5432/prod"
    log.append([record("a")])
    lock_file = (tmp_path / log.lock_name).read_bytes()
    assert lock_file == lock_file_bytes(1, log.home)
    assert read_lock_file(lock_file) == LockFile(1, log.home)
    for size in range(13, len(lock_file)):
        assert read_lock_file(lock_file[:size]) == LockFile(1, home_damaged=True)
    for bit in range(8 * len(lock_file)):
        flipped = bytearray(lock_file)
        flipped[bit // 8] ^= 1 << bit % 8
        assert read_lock_file(bytes(flipped)) in (LockFile(None, log.home), LockFile(1, home_damaged=True))
    log.release()


def test_home_is_on_the_disk_before_the_first_record(tmp_path: Path) -> None:
    """Whoever dies in between leaves nothing that could be taken for another one's."""
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        disk = FaultyDisk(folder, fails_at=number, error=None)
        log = new_log(disk)
        log.home = "here"
        try:
            log.append([record("a")])
        except Died:
            pass
        else:
            break
        finally:
            log.release()
        found = take_over_log(RealDisk(folder), IDENTITY, wall_clock, lambda home: home == "here")
        assert found is not None
        assert not (found.is_foreign and found.records)
        found.log.release()
    assert number > 5


@pytest.mark.parametrize(("error", "then"), [(None, ""), (errno.EIO, ""), (errno.EIO, "goes on"), (errno.EIO, "again")])
def test_rewriting_that_is_interrupted_anywhere_leaves_each_record_once_and_in_its_order(
    error: int | None, then: str, tmp_path: Path
) -> None:
    bodies = [f"kept {number}".encode().ljust(90, b".") for number in range(6)]
    erased_at_last = 0
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        disk = FaultyDisk(folder, error=error, short=True)
        log = new_log(disk)
        gone = log.append([record("gone", b"gone"), *(record("kept", body) for body in bodies)])[:1]
        gone += log.append([record("gone", b"gone")])
        disk.calls.clear()
        disk.fails_at = number
        with suppress(Died, OSError):
            log.rewrite(gone)
        is_over = disk.counted < number
        disk.heal()
        if then == "again":
            log.rewrite(gone)
        if then:
            log.append([record("kept", b"more")])
        log.release()
        found = adopted(folder)
        assert found.faults == []
        left = pending(found)
        assert left["kept"] == [*bodies, *([b"more"] if then else [])]
        assert left.get("gone", []) in ([[]] if then == "again" else ([], [b"gone", b"gone"]))
        erased_at_last = len(left.get("gone", []))
        drain(found)
        if is_over:
            break
    assert number > 5
    assert erased_at_last == 0


def test_every_file_names_those_that_are_needed_and_where_they_end(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    log.append([record("a", bytes(17 * 1024 * 1024))])
    log.append([record("a")])
    header = scan((tmp_path / log.name_of(2)).read_bytes()).header
    assert header is not None
    assert [(known.number, known.end) for known in header.predecessors] == [(1, 3)]
    kinds = [frame.draft.kind for frame in scan((tmp_path / log.name_of(2)).read_bytes()).frames]
    assert kinds == [Kind.SELF_CHECK, Kind.RECORD]
    log.release()


def test_book_whose_files_were_removed_takes_marks_and_no_records(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log = new_log(disk)
    first, second = log.append([record("a"), record("b")])
    assert log.is_in_place()
    (tmp_path / log.lock_name).unlink()
    assert not log.is_in_place()
    log.lose()
    with pytest.raises(OSError, match="were removed"):
        log.append([record("a")])
    log.append([applied_record([first])])
    disk.failing = {"write"}
    log.append([applied_record([second])])
    assert log.is_settled
    log.append([redirection_record("a", "b")])
    assert log.redirected == {"a": "b"}
    log.close()
    assert len(list(tmp_path.glob("*.journal"))) == 1, "its name may be another one's by now"


def test_mark_that_is_stored_twice_says_what_it_said_once(tmp_path: Path) -> None:
    log = new_log(RealDisk(tmp_path))
    first, second = log.append([record("a", b"1"), record("b", b"2")])
    for _ in range(2):  # the first one was synced, and its process was not told
        log.append([applied_record([first])])
    assert log.places.keys() == {second}
    log.release()
    found = adopted(tmp_path)
    assert pending(found) == {"b": [b"2"]}
    found.log.release()
