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
from enhanced_checkpointing.journal import log_file as book_module
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
from enhanced_checkpointing.journal.log_file import Book
from enhanced_checkpointing.journal.recovery import Adopted, adopt, books_in
from tests.support.faulty_disk import Died, FaultyDisk
from tests.support.journal_files import CANARY, FileMaker, record

IDENTITY = bytes(range(16)).hex()


@pytest.fixture(autouse=True)
def any_bytes_are_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at here, and not what their records say: tests/unit/test_strange_records.py does that."""
    monkeypatch.setattr(codec, "describe", lambda body: None)


class Shelf:
    """A directory with one book in it, made file by file, or by a book that was left open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = FaultyDisk(directory)

    def path(self, number: int) -> Path:
        return self.directory / f"{IDENTITY}.{number:06}.journal"

    @property
    def lock(self) -> Path:
        return self.directory / f"{IDENTITY}.lock"

    def book(self) -> Book:
        lock = self.disk.lock(self.lock.name)
        assert lock is not None
        return Book(self.disk, IDENTITY, lock, lambda: 1.0)

    def adopted(self) -> Adopted:
        found = adopt(self.disk, IDENTITY, lambda: 1.0)
        assert found is not None
        return found

    def seen(self) -> Adopted:
        """What is adopted, which is given back at once."""
        found = self.adopted()
        found.book.release()
        return found

    def replace(self, number: int, old: bytes, new: bytes) -> None:
        content = self.path(number).read_bytes()
        assert old in content
        self.path(number).write_bytes(content.replace(old, new))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def bodies(found: Adopted) -> list[bytes]:
    return [each.draft.body for each in found.records]


@pytest.fixture
def three_files(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Each file has a record of one thread that is pending: `a` in the first, `b`, and `c` in the newest."""
    monkeypatch.setattr(book_module, "FILE_LIMIT", 300)
    book = shelf.book()
    for thread_id in "abc":
        book.append([record(thread_id, f"needle {thread_id}".encode().ljust(300))])
    assert len(book.files) == 3
    book.release()
    return shelf


def test_books_are_found_by_any_of_their_files_oldest_first(tmp_path: Path) -> None:
    names = [f"{3:032x}.lock", f"{1:032x}.000001.journal", f"{2:032x}.spare", "README.md", "short.lock"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f"{4:032x}.lock").mkdir()
    assert books_in(RealDisk(tmp_path).names()) == [f"{number:032x}" for number in (1, 2, 3)]


def test_book_of_a_process_that_is_alive_is_not_adopted(shelf: Shelf) -> None:
    book = shelf.book()
    book.append([record("a")])
    assert adopt(RealDisk(shelf.directory), IDENTITY, lambda: 1.0) is None
    book.release()
    assert bodies(shelf.seen()) == [b"body"]


OWNER = """
import sys
from pathlib import Path
from tests.unit.test_recovery import IDENTITY, Shelf
from tests.support.journal_files import record

book = Shelf(Path(sys.argv[1])).book()
book.append([record("a", b"theirs")])
print("ready", flush=True)
sys.stdin.read()
"""


def test_book_of_another_process_is_adopted_when_that_is_killed(shelf: Shelf) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(shelf.directory)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert adopt(shelf.disk, IDENTITY, lambda: 1.0) is None
    finally:
        owner.kill()
        owner.communicate()
    assert bodies(shelf.seen()) == [b"theirs"]


def test_book_without_a_file_is_empty_and_goes(shelf: Shelf) -> None:
    shelf.book().release()
    found = shelf.adopted()
    assert (found.records, found.faults) == ([], [])
    found.book.close()
    assert list(shelf.directory.iterdir()) == []


def test_file_that_was_never_begun_to_the_end_is_left_out_and_removed_at_the_end(shelf: Shelf) -> None:
    book = shelf.book()
    book.append([record("a")])
    book.release()
    whole = shelf.path(1).read_bytes()
    shelf.path(2).write_bytes(whole[:40])
    shelf.path(3).write_bytes(random.Random(1).randbytes(2000))
    shelf.path(4).touch()
    found = shelf.adopted()
    assert (bodies(found), found.faults) == ([b"body"], [])
    assert found.book.leftovers == {2, 3, 4}
    found.book.append([record("a", b"next")])
    assert found.book.newest == 5, "a number is never used twice"
    found.book.append([applied_record(found.book.places)])
    found.book.close()
    assert list(shelf.directory.iterdir()) == []


def test_torn_tail_is_cut_off_and_the_next_file_goes_on_there(shelf: Shelf) -> None:
    book = shelf.book()
    book.append([record("a", b"one")])
    book.append([record("a", b"two")])
    book.release()
    content = shelf.path(1).read_bytes()
    shelf.path(1).write_bytes(content[:-1])
    found = shelf.adopted()
    assert (bodies(found), found.faults) == ([b"one"], [])
    found.book.append([record("a", b"three")])
    found.book.release()
    again = shelf.seen()
    assert (bodies(again), again.faults) == ([b"one", b"three"], [])


def test_file_that_is_cut_at_any_byte_keeps_what_is_in_front_of_it(shelf: Shelf) -> None:
    book = shelf.book()
    for number in range(3):
        book.append([record("a", f"{number}".encode() * 30)])
    book.release()
    content = shelf.path(1).read_bytes()
    found = scan(content)
    ends = [frame.offset + frame.length for frame in found.frames]
    for size in range(len(content) + 1):
        shelf.path(1).write_bytes(content[:size])
        seen = shelf.seen()
        assert len(seen.records) == sum(end <= size for end in ends[1:]), size
        assert bool(seen.faults) is (size < ends[0]), "only its beginning is known to have been whole"


def test_damaged_record_freezes_its_thread_and_no_other(three_files: Shelf) -> None:
    three_files.replace(2, b"needle b", b"noodle b")
    found = three_files.seen()
    assert found.damaged_threads == {"b"}
    assert [each.draft.thread_id for each in found.records] == ["a", "c"]
    (fault,) = found.faults
    assert "the body of a record is not what was written" in fault
    assert three_files.path(2).name in fault


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damaged_head_freezes_every_thread_of_the_book(three_files: Shelf, number: int) -> None:
    content = three_files.path(number).read_bytes()
    at = content.rindex(b"ECJR")
    three_files.path(number).write_bytes(content[: at + 8] + bytes([content[at + 8] ^ 1]) + content[at + 9 :])
    found = three_files.seen()
    assert found.damaged_threads == {"a", "b", "c"} - {"abc"[number - 1]}
    assert found.faults


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damaged_beginning_of_a_file_freezes_every_thread_and_loses_no_record(three_files: Shelf, number: int) -> None:
    content = three_files.path(number).read_bytes()
    three_files.path(number).write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    found = three_files.seen()
    assert found.damaged_threads == {"a", "b", "c"}
    assert [each.draft.thread_id for each in found.records] == ["a", "b", "c"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_missing_file_is_missed_and_freezes_every_thread_of_the_book(three_files: Shelf, number: int) -> None:
    three_files.path(number).unlink()
    found = three_files.adopted()
    assert found.faults == [f"{three_files.path(number).name}: the file is missing"]
    assert found.damaged_threads == {"a", "b", "c"} - {"abc"[number - 1]}
    found.book.append([record("d")])
    found.book.release()
    again = three_files.seen()
    assert again.faults == found.faults, "the next start misses it, too"
    assert again.damaged_threads > found.damaged_threads


def test_file_that_was_emptied_is_missed(three_files: Shelf) -> None:
    three_files.path(3).write_bytes(b"")
    found = three_files.adopted()
    assert found.faults == [f"{three_files.path(3).name}, byte 0: its beginning, which was whole, is not"]
    assert found.damaged_threads == {"a", "b"}
    assert found.book.next_sequence > max(each.sequence for each in found.records), "no number is used twice"
    found.book.append([record("d")])
    found.book.release()
    again = three_files.seen()
    assert len(again.faults) == 1
    assert again.damaged_threads == {"a", "b", "d"}
    assert [each.draft.thread_id for each in again.records] == ["a", "b", "d"]


def test_file_in_the_middle_that_was_emptied_is_missed(three_files: Shelf) -> None:
    three_files.path(2).write_bytes(b"")
    found = three_files.seen()
    assert found.faults == [f"{three_files.path(2).name}, byte 0: records up to 4 are missing"]
    assert found.damaged_threads == {"a", "c"}


def test_only_file_of_a_book_is_missed(shelf: Shelf) -> None:
    book = shelf.book()
    book.append([record("a")])
    book.release()
    shelf.path(1).unlink()
    found = shelf.adopted()
    assert found.faults == [f"{shelf.path(1).name}: the file is missing"]
    assert found.damaged_threads == frozenset(), "nobody knows whose records they were"
    found.book.close()
    assert list(shelf.directory.iterdir()) == []


def test_file_whose_records_are_all_applied_is_not_missed(three_files: Shelf) -> None:
    found = three_files.adopted()
    found.book.append([applied_record([found.records[0].sequence])])
    assert not three_files.path(1).exists()
    found.book.release()
    again = three_files.seen()
    assert (bodies(again)[0][:8], again.faults) == (b"needle b", [])


def test_file_that_was_not_needed_any_more_brings_nothing_back(three_files: Shelf) -> None:
    """Its name may survive a crash that the files with its marks do not."""
    found = three_files.adopted()
    unneeded = three_files.path(1).read_bytes()
    found.book.append([applied_record([found.records[0].sequence])])
    found.book.append([record("d", b"x" * 400)])
    found.book.append([record("e")])  # a new file, in whose beginning the first one is not named any more
    found.book.release()
    three_files.path(1).write_bytes(unneeded)
    again = three_files.adopted()
    assert [each.draft.thread_id for each in again.records] == ["b", "c", "d", "e"]
    assert again.faults == []
    assert again.book.leftovers == {1}
    again.book.append([applied_record(list(again.book.places))])
    again.book.close()
    assert list(three_files.directory.iterdir()) == []


def test_file_that_outlived_its_marks_brings_nothing_back(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "FILE_LIMIT", 300)
    monkeypatch.setattr(book_module, "TIDY_ABOVE", 300)
    book = shelf.book()
    (first,) = book.append([record("a", bytes(400))])
    (second,) = book.append([record("b", bytes(400))])
    outlived = shelf.path(1).read_bytes()
    book.append([applied_record([first, second])])
    book.append([record("c")])
    assert not shelf.path(2).exists(), "the marks of the first file were in it"
    book.release()
    shelf.path(1).write_bytes(outlived)
    found = shelf.adopted()
    assert ([each.draft.thread_id for each in found.records], found.faults) == (["c"], [])
    found.book.append([applied_record(list(found.book.places))])
    found.book.close()
    assert list(shelf.directory.iterdir()) == []


@pytest.mark.parametrize("number", range(1, 16))
def test_end_of_a_book_of_several_files_may_be_interrupted_anywhere(tmp_path: Path, number: int) -> None:
    """The mark that retires the first file is torn off; nothing is pending in it nevertheless."""
    shelf = Shelf(tmp_path)
    shelf.book().release()
    first = began().write(record("a"))
    second = FileMaker(2, 3, first.previous_hash, [Predecessor(1, 3)], bytes.fromhex(IDENTITY)).write(CANARY)
    write(shelf, first, second.write(applied_record([2])))
    found = shelf.adopted()
    assert found.book.is_settled
    shelf.disk.calls.clear()
    shelf.disk.fails_at, shelf.disk.error = number, None
    with suppress(Died):
        found.book.close()
    shelf.disk.heal()
    again = shelf.adopted()
    assert (again.records, again.faults) == ([], [])
    again.book.close()
    assert list(tmp_path.iterdir()) == []


def test_records_that_are_missing_at_the_end_of_a_file_are_missed_when_there_is_a_next_one(three_files: Shelf) -> None:
    content = three_files.path(2).read_bytes()
    three_files.path(2).write_bytes(content[: content.rindex(b"ECJR")])
    found = three_files.seen()
    assert len(found.faults) == 1
    assert "are missing" in found.faults[0]
    assert found.damaged_threads == {"a", "c"}


def write(shelf: Shelf, *makers: FileMaker) -> None:
    for number, maker in enumerate(makers, 1):
        shelf.path(number).write_bytes(maker.data())


def began() -> FileMaker:
    return FileMaker(book=bytes.fromhex(IDENTITY)).write(CANARY)


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
def test_gap_freezes_the_thread_whose_records_are_missing(shelf: Shelf, place: int, frozen: set[str]) -> None:
    maker = began().write(record("a"), record("b")).write(record("a")).write(record("b"))
    maker.write(Draft(Kind.DIVERTED, "c", b"d")).write(record("a"), record("c"))
    if place in (3,):
        maker.write(record("b"))
    del maker.parts[place]
    write(shelf, maker)
    found = shelf.seen()
    assert found.damaged_threads == frozen | ({"c"} if len(frozen) > 1 else set())
    assert len(found.faults) == 1


def test_gap_that_does_not_add_up_freezes_every_thread(shelf: Shelf) -> None:
    maker = began().write(record("a"), record("b"), record("a"), record("c"))
    del maker.parts[2:4]  # the first of a, which is missed, and the only one of b, which is not
    write(shelf, maker)
    assert shelf.seen().damaged_threads == {"a", "c"}


def test_gap_beside_other_damage_freezes_every_thread(shelf: Shelf) -> None:
    maker = began().write(record("a"), record("b", b"needle"), record("b"), record("a"), record("c"))
    del maker.parts[2]
    write(shelf, maker)
    shelf.replace(1, b"needle", b"noodle")
    assert shelf.seen().damaged_threads == {"a", "b", "c"}


def test_damaged_record_that_the_primary_has_is_reported_and_freezes_nothing(shelf: Shelf) -> None:
    write(shelf, began().write(record("a", b"needle"), record("b")).write(applied_record([2])))
    shelf.replace(1, b"needle", b"noodle")
    found = shelf.seen()
    assert len(found.faults) == 1
    assert found.damaged_threads == frozenset()


def test_damage_is_found_again_by_every_start_and_also_behind_new_files(three_files: Shelf) -> None:
    three_files.replace(3, b"needle c", b"noodle c")
    for number in range(4):
        found = three_files.adopted()
        assert "c" in found.damaged_threads, number
        assert any("the body" in fault for fault in found.faults)
        found.book.append([record("d", f"{number}".encode())])
        found.book.release()
    assert [body for body in bodies(found) if len(body) == 1] == [b"0", b"1", b"2"], "what comes later is kept"


def test_damaged_file_is_copied_into_quarantine_once(three_files: Shelf) -> None:
    three_files.replace(2, b"needle b", b"noodle b")
    damaged = three_files.path(2).read_bytes()
    three_files.seen()
    (kept,) = (three_files.directory / "quarantine").iterdir()
    assert (kept.name, kept.read_bytes()) == (three_files.path(2).name, damaged)
    kept.write_bytes(b"somebody works on it")
    three_files.seen()
    assert kept.read_bytes() == b"somebody works on it"


def test_damage_that_cannot_be_copied_is_a_fault_more(three_files: Shelf) -> None:
    three_files.replace(2, b"needle b", b"noodle b")
    three_files.disk.failing = {"keep_copy"}
    assert "could not be copied to quarantine: Input/output error" in three_files.seen().faults[1]


def test_damaged_file_stays_although_nothing_waits_in_it(shelf: Shelf) -> None:
    write(shelf, began().write(record("a", b"needle")).write(applied_record([2])))
    shelf.replace(1, b"needle", b"noodle")
    found = shelf.adopted()
    assert found.records == []
    found.book.append([Draft(Kind.CANARY)])
    found.book.close()
    assert shelf.path(1).exists()


def test_damaged_lock_is_reported_and_freezes_nothing(three_files: Shelf) -> None:
    slot = three_files.lock.read_bytes()
    three_files.lock.write_bytes(slot[:-1] + b"?")
    found = three_files.seen()
    assert found.faults == [f"{three_files.lock.name}: it is not what was written"]
    assert (len(found.records), found.damaged_threads) == (3, frozenset())


def test_lock_that_was_deleted_costs_nothing(three_files: Shelf) -> None:
    three_files.lock.unlink()
    found = three_files.seen()
    assert (len(found.records), found.faults) == (3, [])


def test_file_of_another_book_is_noticed(shelf: Shelf) -> None:
    write(shelf, FileMaker(book=b"another one's id").write(CANARY).write(record("a")))
    found = shelf.seen()
    assert "it is file 1 of 616e6f74686572206f6e652773206964" in found.faults[0]
    assert found.damaged_threads == {"a"}


def test_files_that_were_swapped_are_noticed(three_files: Shelf) -> None:
    one, other = three_files.path(1).read_bytes(), three_files.path(3).read_bytes()
    three_files.path(1).write_bytes(other)
    three_files.path(3).write_bytes(one)
    found = three_files.seen()
    assert found.damaged_threads == {each.draft.thread_id for each in found.records}
    assert len([fault for fault in found.faults if "it is file" in fault]) == 2


def test_file_that_does_not_follow_from_the_one_before_it_is_noticed(shelf: Shelf) -> None:
    first = began().write(record("a"))
    second = FileMaker(2, 3, b"another history!", [Predecessor(1, 3)], bytes.fromhex(IDENTITY)).write(CANARY)
    write(shelf, first, second.write(record("b")))
    found = shelf.seen()
    assert found.faults == [f"{shelf.path(2).name}, byte 0: it does not follow from file 1"]
    assert found.damaged_threads == {"a", "b"}


def test_file_that_follows_from_an_empty_one_is_whole(shelf: Shelf) -> None:
    first = began()
    first.parts.pop()
    first.next_sequence, first.previous_hash = 1, frames.NO_HASH
    second = FileMaker(2, 1, frames.NO_HASH, [Predecessor(1, 1)], bytes.fromhex(IDENTITY)).write(CANARY)
    write(shelf, first, second.write(record("b")))
    found = shelf.seen()
    assert (bodies(found), found.faults) == ([b"body"], [])


def test_beginning_that_was_whole_once_is_missed(shelf: Shelf) -> None:
    """The marks at the beginning of a file may be the only ones."""
    book = shelf.book()
    book.append([record("a")])
    book.release()
    header = scan(shelf.path(1).read_bytes()).frames[0].offset
    shelf.path(1).write_bytes(shelf.path(1).read_bytes()[:header])
    found = shelf.seen()
    assert "its beginning, which was whole, is not" in found.faults[0]


@pytest.mark.parametrize("everything", [False, True])
def test_newer_format_is_refused_loudly_and_touched_by_nobody(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    monkeypatch.setattr(frames, "FORMAT", FORMAT + 2)
    write(shelf, began().write(record("a")))
    monkeypatch.setattr(frames, "FORMAT", FORMAT)
    if everything:
        shelf.path(1).write_bytes(shelf.path(1).read_bytes()[:10] + b"all else is another format, too")
    before = shelf.path(1).read_bytes()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointerConfigurationError, match=r"is of format 3; this release reads up to 2\. Start"):
        shelf.adopted()
    assert shelf.path(1).read_bytes() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors, "everything is given back"
    shelf.path(1).unlink()
    assert shelf.seen().records == [], "nor is the lock kept"


def flipped_everywhere(content: bytes, step: int) -> list[bytes]:
    return [
        content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
        for bit in range(0, 8 * len(content), step)
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_flipped_bit_is_read_past_silently(three_files: Shelf, number: int) -> None:
    content = three_files.path(number).read_bytes()
    for position, flipped in enumerate(flipped_everywhere(content, 31)):
        three_files.path(number).write_bytes(flipped)
        found = three_files.seen()
        missing = {"a", "b", "c"} - {each.draft.thread_id for each in found.records}
        assert found.faults, position
        assert missing <= found.damaged_threads or found.damaged_threads == {"a", "b", "c"} - missing, position
        for kept in (three_files.directory / "quarantine").iterdir():
            kept.unlink()


def test_disk_that_does_not_answer_gives_everything_back(three_files: Shelf) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for failing in ("names", "open", "read"):
        three_files.disk.failing = {failing}
        with pytest.raises(OSError, match="Input/output"):
            three_files.adopted()
        assert len(os.listdir("/proc/self/fd")) == descriptors, failing
    three_files.disk.heal()
    assert len(three_files.seen().records) == 3


def test_what_is_believed_is_synced_first(three_files: Shelf) -> None:
    """The page cache may hold what its dead writer never synced: the next loss of power would take it back."""
    three_files.disk.calls.clear()
    three_files.seen()
    assert three_files.disk.calls[-9:] == ["open", "sync", "read"] * 3


def drained(shelf: Shelf, then: Callable[[Adopted], None]) -> Adopted:
    found = shelf.adopted()
    then(found)
    found.book.release()
    return shelf.seen()


def test_what_was_decided_of_records_is_known_to_every_later_process(three_files: Shelf) -> None:
    def decide(found: Adopted) -> None:
        one, _, three = (each.sequence for each in found.records)
        found.book.append(
            [dead_letter_record(one, "refused"), redirection_record("b", "sibling"), redirection_record("c", "x")]
        )
        found.book.append([redirection_record("c", ""), applied_record([three])])

    for _ in range(3):
        found = drained(three_files, decide if not _ else lambda found: found.book.check())
        assert found.book.buried == {found.records[0].sequence: "refused"}
        assert found.book.diverted == {"b": "sibling"}
        assert [each.draft.thread_id for each in found.records] == ["a", "b"]
        assert found.faults == []
