"""What the next process finds: all that was acknowledged, or word of what is missing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal import codec
from enhanced_checkpointing.journal import format as frames
from enhanced_checkpointing.journal import log_file as log_module
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.journal.format import (
    FORMAT,
    Draft,
    Kind,
    Predecessor,
    applied_record,
    dead_letter_record,
    redirection_record,
    scan,
)
from enhanced_checkpointing.journal.log_file import ProcessLog
from enhanced_checkpointing.journal.recovery import OrphanedLog, logs_in, take_over_log
from tests.support.faulty_disk import Died, FaultyDisk
from tests.support.journal_files import CANARY, FileMaker, record

IDENTITY = bytes(range(16)).hex()


@pytest.fixture(autouse=True)
def any_bytes_are_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at here, and not what their records say: tests/unit/test_strange_records.py does that."""
    monkeypatch.setattr(codec, "describe", lambda body: None)


class FoundFiles:
    """A directory with one log in it, made file by file, or by a log that was left open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = FaultyDisk(directory)

    def path(self, number: int) -> Path:
        return self.directory / f"{IDENTITY}.{number:06}.journal"

    @property
    def lock(self) -> Path:
        return self.directory / f"{IDENTITY}.lock"

    def log(self) -> ProcessLog:
        lock = self.disk.lock(self.lock.name)
        assert lock is not None
        return ProcessLog(self.disk, IDENTITY, lock, lambda: 1.0)

    def adopted(self) -> OrphanedLog:
        found = take_over_log(self.disk, IDENTITY, lambda: 1.0)
        assert found is not None
        return found

    def seen(self) -> OrphanedLog:
        """What is adopted, which is given back at once."""
        found = self.adopted()
        found.log.release()
        return found

    def replace(self, number: int, old: bytes, new: bytes) -> None:
        content = self.path(number).read_bytes()
        assert old in content
        self.path(number).write_bytes(content.replace(old, new))


@pytest.fixture
def logs(tmp_path: Path) -> FoundFiles:
    return FoundFiles(tmp_path)


def bodies(found: OrphanedLog) -> list[bytes]:
    return [each.draft.body for each in found.records]


@pytest.fixture
def three_files(logs: FoundFiles, monkeypatch: pytest.MonkeyPatch) -> FoundFiles:
    """Each file has a record of one thread that is pending: `a` in the first, `b`, and `c` in the newest."""
    monkeypatch.setattr(log_module, "FILE_LIMIT", 300)
    log = logs.log()
    for thread_id in "abc":
        log.append([record(thread_id, f"needle {thread_id}".encode().ljust(300))])
    assert len(log.files) == 3
    log.release()
    return logs


def test_books_are_found_by_any_of_their_files_oldest_first(tmp_path: Path) -> None:
    names = [f"{3:032x}.lock", f"{1:032x}.000001.journal", f"{2:032x}.spare", "README.md", "short.lock"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f"{4:032x}.lock").mkdir()
    assert logs_in(RealDisk(tmp_path).names()) == [f"{number:032x}" for number in (1, 2, 3)]


def test_book_of_a_process_that_is_alive_is_not_adopted(logs: FoundFiles) -> None:
    log = logs.log()
    log.append([record("a")])
    assert take_over_log(RealDisk(logs.directory), IDENTITY, lambda: 1.0) is None
    log.release()
    assert bodies(logs.seen()) == [b"body"]


OWNER = """
import sys
from pathlib import Path
from tests.unit.test_recovery import IDENTITY, FoundFiles
from tests.support.journal_files import record

log = FoundFiles(Path(sys.argv[1])).log()
log.append([record("a", b"theirs")])
print("ready", flush=True)
sys.stdin.read()
"""


def test_book_of_another_process_is_adopted_when_that_is_killed(logs: FoundFiles) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(logs.directory)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert take_over_log(logs.disk, IDENTITY, lambda: 1.0) is None
    finally:
        owner.kill()
        owner.communicate()
    assert bodies(logs.seen()) == [b"theirs"]


def test_book_without_a_file_is_empty_and_goes(logs: FoundFiles) -> None:
    logs.log().release()
    found = logs.adopted()
    assert (found.records, found.faults) == ([], [])
    found.log.close()
    assert list(logs.directory.iterdir()) == []


def test_file_that_was_never_begun_to_the_end_is_left_out_and_removed_at_the_end(logs: FoundFiles) -> None:
    log = logs.log()
    log.append([record("a")])
    log.release()
    whole = logs.path(1).read_bytes()
    logs.path(2).write_bytes(whole[:40])
    logs.path(3).write_bytes(random.Random(1).randbytes(2000))
    logs.path(4).touch()
    found = logs.adopted()
    assert (bodies(found), found.faults) == ([b"body"], [])
    assert found.log.leftovers == {2, 3, 4}
    found.log.append([record("a", b"next")])
    assert found.log.newest == 5, "a number is never used twice"
    found.log.append([applied_record(found.log.places)])
    found.log.close()
    assert list(logs.directory.iterdir()) == []


def test_torn_tail_is_cut_off_and_the_next_file_goes_on_there(logs: FoundFiles) -> None:
    log = logs.log()
    log.append([record("a", b"one")])
    log.append([record("a", b"two")])
    log.release()
    content = logs.path(1).read_bytes()
    logs.path(1).write_bytes(content[:-1])
    found = logs.adopted()
    assert (bodies(found), found.faults) == ([b"one"], [])
    found.log.append([record("a", b"three")])
    found.log.release()
    again = logs.seen()
    assert (bodies(again), again.faults) == ([b"one", b"three"], [])


def test_file_that_is_cut_at_any_byte_keeps_what_is_in_front_of_it(logs: FoundFiles) -> None:
    log = logs.log()
    for number in range(3):
        log.append([record("a", f"{number}".encode() * 30)])
    log.release()
    content = logs.path(1).read_bytes()
    found = scan(content)
    ends = [frame.offset + frame.length for frame in found.frames]
    for size in range(len(content) + 1):
        logs.path(1).write_bytes(content[:size])
        seen = logs.seen()
        assert len(seen.records) == sum(end <= size for end in ends[1:]), size
        assert bool(seen.faults) is (size < ends[0]), "only its beginning is known to have been whole"


def test_damaged_record_freezes_its_thread_and_no_other(three_files: FoundFiles) -> None:
    three_files.replace(2, b"needle b", b"noodle b")
    found = three_files.seen()
    assert found.damaged_threads == {"b"}
    assert [each.draft.thread_id for each in found.records] == ["a", "c"]
    (fault,) = found.faults
    assert "the body of a record is not what was written" in fault
    assert three_files.path(2).name in fault


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damaged_head_freezes_every_thread_of_the_log(three_files: FoundFiles, number: int) -> None:
    content = three_files.path(number).read_bytes()
    at = content.rindex(b"ECJR")
    three_files.path(number).write_bytes(content[: at + 8] + bytes([content[at + 8] ^ 1]) + content[at + 9 :])
    found = three_files.seen()
    assert found.damaged_threads == {"a", "b", "c"} - {"abc"[number - 1]}
    assert found.faults


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damaged_beginning_of_a_file_freezes_every_thread_and_loses_no_record(
    three_files: FoundFiles, number: int
) -> None:
    content = three_files.path(number).read_bytes()
    three_files.path(number).write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    found = three_files.seen()
    assert found.damaged_threads == {"a", "b", "c"}
    assert [each.draft.thread_id for each in found.records] == ["a", "b", "c"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_missing_file_is_missed_and_freezes_every_thread_of_the_log(three_files: FoundFiles, number: int) -> None:
    three_files.path(number).unlink()
    found = three_files.adopted()
    assert found.faults == [f"{three_files.path(number).name}: the file is missing"]
    assert found.damaged_threads == {"a", "b", "c"} - {"abc"[number - 1]}
    found.log.append([record("d")])
    found.log.release()
    again = three_files.seen()
    assert again.faults == found.faults, "the next start misses it, too"
    assert again.damaged_threads > found.damaged_threads


def test_file_that_was_emptied_is_missed(three_files: FoundFiles) -> None:
    three_files.path(3).write_bytes(b"")
    found = three_files.adopted()
    assert found.faults == [f"{three_files.path(3).name}, byte 0: its beginning, which was whole, is not"]
    assert found.damaged_threads == {"a", "b"}
    assert found.log.next_sequence > max(each.sequence for each in found.records), "no number is used twice"
    found.log.append([record("d")])
    found.log.release()
    again = three_files.seen()
    assert len(again.faults) == 1
    assert again.damaged_threads == {"a", "b", "d"}
    assert [each.draft.thread_id for each in again.records] == ["a", "b", "d"]


def test_file_in_the_middle_that_was_emptied_is_missed(three_files: FoundFiles) -> None:
    three_files.path(2).write_bytes(b"")
    found = three_files.seen()
    assert found.faults == [f"{three_files.path(2).name}, byte 0: records up to 4 are missing"]
    assert found.damaged_threads == {"a", "c"}


def test_only_file_of_a_book_is_missed(logs: FoundFiles) -> None:
    log = logs.log()
    log.append([record("a")])
    log.release()
    logs.path(1).unlink()
    found = logs.adopted()
    assert found.faults == [f"{logs.path(1).name}: the file is missing"]
    assert found.damaged_threads == frozenset(), "nobody knows whose records they were"
    found.log.close()
    assert list(logs.directory.iterdir()) == []


def test_file_whose_records_are_all_applied_is_not_missed(three_files: FoundFiles) -> None:
    found = three_files.adopted()
    found.log.append([applied_record([found.records[0].sequence])])
    assert not three_files.path(1).exists()
    found.log.release()
    again = three_files.seen()
    assert (bodies(again)[0][:8], again.faults) == (b"needle b", [])


def test_file_that_was_not_needed_any_more_brings_nothing_back(three_files: FoundFiles) -> None:
    """Its name may survive a crash that the files with its marks do not."""
    found = three_files.adopted()
    unneeded = three_files.path(1).read_bytes()
    found.log.append([applied_record([found.records[0].sequence])])
    found.log.append([record("d", b"x" * 400)])
    found.log.append([record("e")])  # a new file, in whose beginning the first one is not named any more
    found.log.release()
    three_files.path(1).write_bytes(unneeded)
    again = three_files.adopted()
    assert [each.draft.thread_id for each in again.records] == ["b", "c", "d", "e"]
    assert again.faults == []
    assert again.log.leftovers == {1}
    again.log.append([applied_record(list(again.log.places))])
    again.log.close()
    assert list(three_files.directory.iterdir()) == []


def test_file_that_outlived_its_marks_brings_nothing_back(logs: FoundFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "FILE_LIMIT", 300)
    monkeypatch.setattr(log_module, "TIDY_ABOVE", 300)
    log = logs.log()
    (first,) = log.append([record("a", bytes(400))])
    (second,) = log.append([record("b", bytes(400))])
    outlived = logs.path(1).read_bytes()
    log.append([applied_record([first, second])])
    log.append([record("c")])
    assert not logs.path(2).exists(), "the marks of the first file were in it"
    log.release()
    logs.path(1).write_bytes(outlived)
    found = logs.adopted()
    assert ([each.draft.thread_id for each in found.records], found.faults) == (["c"], [])
    found.log.append([applied_record(list(found.log.places))])
    found.log.close()
    assert list(logs.directory.iterdir()) == []


@pytest.mark.parametrize("number", range(1, 16))
def test_end_of_a_book_of_several_files_may_be_interrupted_anywhere(tmp_path: Path, number: int) -> None:
    """The mark that retires the first file is torn off; nothing is pending in it nevertheless."""
    logs = FoundFiles(tmp_path)
    logs.log().release()
    first = began().write(record("a"))
    second = FileMaker(2, 3, first.previous_hash, [Predecessor(1, 3)], bytes.fromhex(IDENTITY)).write(CANARY)
    write(logs, first, second.write(applied_record([2])))
    found = logs.adopted()
    assert found.log.is_settled
    logs.disk.calls.clear()
    logs.disk.fails_at, logs.disk.error = number, None
    with suppress(Died):
        found.log.close()
    logs.disk.heal()
    again = logs.adopted()
    assert (again.records, again.faults) == ([], [])
    again.log.close()
    assert list(tmp_path.iterdir()) == []


def test_records_that_are_missing_at_the_end_of_a_file_are_missed_when_there_is_a_next_one(
    three_files: FoundFiles,
) -> None:
    content = three_files.path(2).read_bytes()
    three_files.path(2).write_bytes(content[: content.rindex(b"ECJR")])
    found = three_files.seen()
    assert len(found.faults) == 1
    assert "are missing" in found.faults[0]
    assert found.damaged_threads == {"a", "c"}


def write(logs: FoundFiles, *makers: FileMaker) -> None:
    for number, maker in enumerate(makers, 1):
        logs.path(number).write_bytes(maker.data())


def began() -> FileMaker:
    return FileMaker(log=bytes.fromhex(IDENTITY)).write(CANARY)


@pytest.mark.parametrize(
    ("place", "frozen"),
    [
        (2, {"a"}),  # its next one tells
        (3, {"b"}),
        (4, {"a"}),
        (5, {"a", "b"}),  # the last of b: no later one tells
        (6, {"a", "b"}),  # a mark
    ],
)
def test_gap_freezes_the_thread_whose_records_are_missing(logs: FoundFiles, place: int, frozen: set[str]) -> None:
    maker = began().write(record("a"), record("b")).write(record("a")).write(record("b"))
    maker.write(Draft(Kind.REDIRECTED, "c", b"d")).write(record("a"), record("c"))
    if place in (3,):
        maker.write(record("b"))
    del maker.parts[place]
    write(logs, maker)
    found = logs.seen()
    assert found.damaged_threads == frozen | ({"c"} if len(frozen) > 1 else set())
    assert len(found.faults) == 1


def test_gap_that_does_not_add_up_freezes_every_thread(logs: FoundFiles) -> None:
    maker = began().write(record("a"), record("b"), record("a"), record("c"))
    del maker.parts[2:4]  # the first of a, which is missed, and the only one of b, which is not
    write(logs, maker)
    assert logs.seen().damaged_threads == {"a", "c"}


def test_gap_beside_other_damage_freezes_every_thread(logs: FoundFiles) -> None:
    maker = began().write(record("a"), record("b", b"needle"), record("b"), record("a"), record("c"))
    del maker.parts[2]
    write(logs, maker)
    logs.replace(1, b"needle", b"noodle")
    assert logs.seen().damaged_threads == {"a", "b", "c"}


def test_damaged_record_that_the_primary_has_is_reported_and_freezes_nothing(logs: FoundFiles) -> None:
    write(logs, began().write(record("a", b"needle"), record("b")).write(applied_record([2])))
    logs.replace(1, b"needle", b"noodle")
    found = logs.seen()
    assert len(found.faults) == 1
    assert found.damaged_threads == frozenset()


def test_damage_is_found_again_by_every_start_and_also_behind_new_files(three_files: FoundFiles) -> None:
    three_files.replace(3, b"needle c", b"noodle c")
    for number in range(4):
        found = three_files.adopted()
        assert "c" in found.damaged_threads, number
        assert any("the body" in fault for fault in found.faults)
        found.log.append([record("d", f"{number}".encode())])
        found.log.release()
    assert [body for body in bodies(found) if len(body) == 1] == [b"0", b"1", b"2"], "what comes later is kept"


def test_damaged_file_is_copied_into_quarantine_once(three_files: FoundFiles) -> None:
    three_files.replace(2, b"needle b", b"noodle b")
    damaged = three_files.path(2).read_bytes()
    three_files.seen()
    (kept,) = (three_files.directory / "quarantine").iterdir()
    assert (kept.name, kept.read_bytes()) == (three_files.path(2).name, damaged)
    kept.write_bytes(b"somebody works on it")
    three_files.seen()
    assert kept.read_bytes() == b"somebody works on it"


def test_damage_that_cannot_be_copied_is_a_fault_more(three_files: FoundFiles) -> None:
    three_files.replace(2, b"needle b", b"noodle b")
    three_files.disk.failing = {"keep_copy"}
    assert "could not be copied to quarantine: Input/output error" in three_files.seen().faults[1]


def test_damaged_file_stays_although_nothing_waits_in_it(logs: FoundFiles) -> None:
    write(logs, began().write(record("a", b"needle")).write(applied_record([2])))
    logs.replace(1, b"needle", b"noodle")
    found = logs.adopted()
    assert found.records == []
    found.log.append([Draft(Kind.SELF_CHECK)])
    found.log.close()
    assert logs.path(1).exists()


def test_damaged_lock_is_reported_and_freezes_nothing(three_files: FoundFiles) -> None:
    lock_file = three_files.lock.read_bytes()
    three_files.lock.write_bytes(lock_file[:-1] + b"?")
    found = three_files.seen()
    assert found.faults == [f"{three_files.lock.name}: it is not what was written"]
    assert (len(found.records), found.damaged_threads) == (3, frozenset())


def test_lock_that_was_deleted_costs_nothing(three_files: FoundFiles) -> None:
    three_files.lock.unlink()
    found = three_files.seen()
    assert (len(found.records), found.faults) == (3, [])


def test_file_of_another_book_is_noticed(logs: FoundFiles) -> None:
    write(logs, FileMaker(log=b"another one's id").write(CANARY).write(record("a")))
    found = logs.seen()
    assert "it is file 1 of 616e6f74686572206f6e652773206964" in found.faults[0]
    assert found.damaged_threads == {"a"}


def test_files_that_were_swapped_are_noticed(three_files: FoundFiles) -> None:
    one, other = three_files.path(1).read_bytes(), three_files.path(3).read_bytes()
    three_files.path(1).write_bytes(other)
    three_files.path(3).write_bytes(one)
    found = three_files.seen()
    assert found.damaged_threads == {each.draft.thread_id for each in found.records}
    assert len([fault for fault in found.faults if "it is file" in fault]) == 2


def test_file_that_does_not_follow_from_the_one_before_it_is_noticed(logs: FoundFiles) -> None:
    first = began().write(record("a"))
    second = FileMaker(2, 3, b"another history!", [Predecessor(1, 3)], bytes.fromhex(IDENTITY)).write(CANARY)
    write(logs, first, second.write(record("b")))
    found = logs.seen()
    assert found.faults == [f"{logs.path(2).name}, byte 0: it does not follow from file 1"]
    assert found.damaged_threads == {"a", "b"}


def test_file_that_follows_from_an_empty_one_is_whole(logs: FoundFiles) -> None:
    first = began()
    first.parts.pop()
    first.next_sequence, first.previous_hash = 1, frames.NO_HASH
    second = FileMaker(2, 1, frames.NO_HASH, [Predecessor(1, 1)], bytes.fromhex(IDENTITY)).write(CANARY)
    write(logs, first, second.write(record("b")))
    found = logs.seen()
    assert (bodies(found), found.faults) == ([b"body"], [])


def test_beginning_that_was_whole_once_is_missed(logs: FoundFiles) -> None:
    """The marks at the beginning of a file may be the only ones."""
    log = logs.log()
    log.append([record("a")])
    log.release()
    header = scan(logs.path(1).read_bytes()).frames[0].offset
    logs.path(1).write_bytes(logs.path(1).read_bytes()[:header])
    found = logs.seen()
    assert "its beginning, which was whole, is not" in found.faults[0]


@pytest.mark.parametrize("everything", [False, True])
def test_newer_format_is_refused_loudly_and_touched_by_nobody(
    logs: FoundFiles, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    monkeypatch.setattr(frames, "FORMAT", FORMAT + 2)
    write(logs, began().write(record("a")))
    monkeypatch.setattr(frames, "FORMAT", FORMAT)
    if everything:
        logs.path(1).write_bytes(logs.path(1).read_bytes()[:10] + b"all else is another format, too")
    before = logs.path(1).read_bytes()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointerConfigurationError, match=r"is of format 3; this release reads up to 2\. Start"):
        logs.adopted()
    assert logs.path(1).read_bytes() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors, "everything is given back"
    logs.path(1).unlink()
    assert logs.seen().records == [], "nor is the lock kept"


def flipped_everywhere(content: bytes, step: int) -> list[bytes]:
    return [
        content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
        for bit in range(0, 8 * len(content), step)
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_flipped_bit_is_read_past_silently(three_files: FoundFiles, number: int) -> None:
    content = three_files.path(number).read_bytes()
    for position, flipped in enumerate(flipped_everywhere(content, 31)):
        three_files.path(number).write_bytes(flipped)
        found = three_files.seen()
        missing = {"a", "b", "c"} - {each.draft.thread_id for each in found.records}
        assert found.faults, position
        assert missing <= found.damaged_threads or found.damaged_threads == {"a", "b", "c"} - missing, position
        for kept in (three_files.directory / "quarantine").iterdir():
            kept.unlink()


def test_disk_that_does_not_answer_gives_everything_back(three_files: FoundFiles) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for failing in ("names", "open", "read"):
        three_files.disk.failing = {failing}
        with pytest.raises(OSError, match="Input/output"):
            three_files.adopted()
        assert len(os.listdir("/proc/self/fd")) == descriptors, failing
    three_files.disk.heal()
    assert len(three_files.seen().records) == 3


def test_what_is_believed_is_synced_first(three_files: FoundFiles) -> None:
    """The page cache may hold what its dead writer never synced: the next loss of power would take it back."""
    three_files.disk.calls.clear()
    three_files.seen()
    assert three_files.disk.calls[-9:] == ["open", "sync", "read"] * 3


def drained(logs: FoundFiles, then: Callable[[OrphanedLog], None]) -> OrphanedLog:
    found = logs.adopted()
    then(found)
    found.log.release()
    return logs.seen()


def test_what_was_decided_of_records_is_known_to_every_later_process(three_files: FoundFiles) -> None:
    def decide(found: OrphanedLog) -> None:
        one, _, three = (each.sequence for each in found.records)
        found.log.append(
            [dead_letter_record(one, "refused"), redirection_record("b", "sibling"), redirection_record("c", "x")]
        )
        found.log.append([redirection_record("c", ""), applied_record([three])])

    for _ in range(3):
        found = drained(three_files, decide if not _ else lambda found: found.log.check())
        assert found.log.dead_letters == {found.records[0].sequence: "refused"}
        assert found.log.redirected == {"b": "sibling"}
        assert [each.draft.thread_id for each in found.records] == ["a", "b"]
        assert found.faults == []
