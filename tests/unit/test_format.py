"""The bytes of a journal file: nothing that was changed in them goes unnoticed."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.journal import format as frames
from enhanced_checkpointing.journal.format import (
    FORMAT,
    LATEST,
    MOST_SEQUENCE,
    NO_HASH,
    SECTOR,
    Damage,
    Draft,
    FileHeader,
    Frame,
    Kind,
    Predecessor,
    file_head,
    format_of,
    frame_size,
    read_frame,
    read_header,
    scan,
)
from tests.support.journal_files import BOOK, FileMaker, file_of, record

thread_ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
bodies = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda before, zeros, after: before + bytes(zeros) + after, st.binary(), st.integers(0, 3000), st.binary()
    ),
)
drafts = st.builds(Draft, st.sampled_from(Kind), thread_ids, bodies, st.floats(0, LATEST))
headers = st.builds(
    FileHeader,
    st.binary(min_size=16, max_size=16),
    st.integers(1, 2**32 - 1),
    st.floats(0, 1e12),
    st.integers(1, MOST_SEQUENCE),
    st.binary(min_size=16, max_size=16),
    st.lists(st.builds(Predecessor, st.integers(1, 2**32 - 1), st.integers(0, MOST_SEQUENCE)), max_size=4).map(tuple),
)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@given(st.lists(st.lists(drafts, min_size=1, max_size=4), max_size=4))
def test_what_was_written_is_read_back(batches: list[list[Draft]]) -> None:
    maker = FileMaker()
    for batch in batches:
        maker.write(*batch)
    found = scan(maker.data())
    written = list(itertools.chain(*batches))
    assert [frame.draft for frame in found.frames] == written
    assert [frame.sequence for frame in found.frames] == list(range(1, len(written) + 1))
    assert (found.damages, found.torn, found.end) == ([], 0, len(maker.data()))
    assert [frame.length for frame in found.frames] == [frame_size(draft.thread_id, draft.body) for draft in written]
    first_of_each = [sum(map(len, batches[:place])) + 1 for place, batch in enumerate(batches) for _ in batch]
    assert [frame.batch for frame in found.frames] == first_of_each


@given(headers)
def test_header_is_read_back(header: FileHeader) -> None:
    written = file_head(header)
    assert read_header(written + b"more") == (header, len(written))
    assert format_of(written) == FORMAT
    assert scan(written).header == header


def test_records_of_a_thread_are_counted_in_each_file() -> None:
    found = scan(file_of([record("a"), record("b")], [record("a")]).data())
    assert [frame.thread_sequence for frame in found.frames] == [0, 1, 1, 2]


@pytest.mark.thorough
@pytest.mark.parametrize("bits", [(0, 1), (2, 3), (4, 5), (6, 7)], ids=str)
def test_every_flipped_bit_of_16_kib_is_detected(bits: tuple[int, int]) -> None:
    data = file_of([record("thread", noise(10_000))], [record("other", bytes(6_300))]).data()
    assert len(data) >= 16 * 1024
    assert scan(data).damages == []
    buffer = bytearray(data)
    silent = []
    for position, bit in itertools.product(range(len(data)), bits):
        buffer[position] ^= 1 << bit
        found = scan(bytes(buffer))
        if not found.damages or found.torn:
            silent.append((position, bit))
        buffer[position] ^= 1 << bit
    assert silent == []


def test_flipped_bit_costs_its_own_record_only() -> None:
    maker = file_of([record("a", b"1")], [record("other", b"x" * 20)], [record("a", b"2")])
    start = sum(map(len, maker.parts[:3]))
    for bit in range(8 * len(maker.parts[3])):
        broken = bytearray(maker.data())
        broken[start + bit // 8] ^= 1 << bit % 8
        found = scan(bytes(broken))
        assert [frame.draft.body for frame in found.frames] == [b"", b"1", b"2"], bit
        assert found.damages[0].offset == start, bit


def test_damaged_body_does_not_hide_whose_record_it_was() -> None:
    maker = file_of([record("a", b"needle")], [record("b")])
    found = scan(maker.data().replace(b"needle", b"noodle"))
    (damage,) = found.damages
    assert (damage.thread_id, damage.sequence, damage.missing) == ("a", 2, 0)
    assert "body" in damage.what


def test_damaged_mark_belongs_to_no_thread() -> None:
    maker = file_of([record("a")], [Draft(Kind.APPLIED, body=b"needle")])
    (damage,) = scan(maker.data().replace(b"needle", b"noodle")).damages
    assert damage.thread_id is None


def test_damaged_thread_is_told_by_the_number_of_its_record() -> None:
    (damage,) = scan(file_of([record("needle")]).data().replace(b"needle", b"noodle")).damages
    assert (damage.thread_id, damage.sequence) == (None, 2)
    assert "thread" in damage.what


def test_file_that_is_cut_at_any_byte_keeps_what_is_in_front_of_it_and_is_not_damaged() -> None:
    maker = file_of([record("a", noise(700))], [record("b"), record("a", bytes(1500))])
    data = maker.data()
    ends = [*itertools.accumulate(map(len, maker.parts))]
    for size in range(len(data) + 1):
        found = scan(data[:size])
        whole = sum(end <= size for end in ends)
        assert found.damages == [], size
        assert len(found.frames) == max(0, whole - 1), size
        assert (found.header is not None) is (whole > 0)
        assert found.end + found.torn == size


def test_file_whose_tail_was_set_aside_and_not_used_is_whole() -> None:
    maker = file_of([record("a", noise(700))])
    found = scan(maker.data() + bytes(5000))
    assert (found.damages, found.torn, found.end, len(found.frames)) == ([], 0, len(maker.data()), 2)


@pytest.mark.thorough
@settings(max_examples=300)
@given(st.data())
def test_last_write_of_which_sectors_never_arrived_is_torn_and_nothing_else_is(data: st.DataObject) -> None:
    acknowledged = file_of([record("a", noise(900, 2))], [record("b", bytes(1200))])
    kept = len(acknowledged.data())
    acknowledged.write(record("a", noise(700, 3)), record("b", bytes(900)), record("c", b"short"))
    whole = acknowledged.data()
    sectors = range(kept // SECTOR, -(-len(whole) // SECTOR))
    lost = data.draw(st.sets(st.sampled_from(sectors), min_size=1))
    torn = bytearray(whole)
    for sector in lost:
        start = max(kept, sector * SECTOR)
        torn[start : (sector + 1) * SECTOR] = bytes(len(torn[start : (sector + 1) * SECTOR]))
    found = scan(bytes(torn))
    assert found.damages == []
    assert [frame.draft.body for frame in found.frames[:3]] == [b"", noise(900, 2), bytes(1200)]
    assert all(frame.draft.body != b"short" for frame in found.frames)


def test_sector_that_vanished_from_an_earlier_write_is_damage() -> None:
    maker = file_of([record("a", noise(2000))], [record("b")])
    data = bytearray(maker.data())
    data[SECTOR : 2 * SECTOR] = bytes(SECTOR)
    (damage,) = scan(bytes(data)).damages
    assert damage.thread_id == "a"


def test_sector_that_vanished_in_a_file_without_header_is_damage() -> None:
    maker = file_of([record("a", noise(2000))], [record("b")])
    data = bytearray(maker.data())
    data[:SECTOR] = bytes(SECTOR)
    found = scan(bytes(data))
    assert [frame.draft.thread_id for frame in found.frames] == ["b"]
    assert "header" in found.damages[0].what


def test_body_of_zeros_is_not_taken_for_one_that_never_arrived() -> None:
    maker = file_of([record("a", bytes(5000))])
    assert bytes(SECTOR) not in maker.data()
    flipped = bytearray(maker.data())
    flipped[-2000] ^= 1
    (damage,) = scan(bytes(flipped)).damages
    assert damage.thread_id == "a"


THREE = [[record("a", b"1")], [record("b", b"2")], [record("a", b"3")], [record("a", b"4")]]


@pytest.mark.parametrize("place", [2, 3, 4])
def test_record_that_was_cut_out_is_missed(place: int) -> None:
    maker = file_of(*THREE)
    del maker.parts[place]
    (damage,) = scan(maker.data()).damages
    assert damage.missing == 1
    assert damage.what == f"records {place} to {place} are missing"


def test_records_that_were_cut_out_are_counted() -> None:
    maker = file_of(*THREE)
    del maker.parts[2:4]
    (damage,) = scan(maker.data()).damages
    assert damage.missing == 2


@pytest.mark.parametrize("place", [2, 3, 4])
def test_records_that_were_swapped_are_noticed(place: int) -> None:
    maker = file_of(*THREE)
    maker.parts[place], maker.parts[place + 1] = maker.parts[place + 1], maker.parts[place]
    assert any("comes after" in damage.what for damage in scan(maker.data()).damages)


@pytest.mark.parametrize("place", [2, 3, 5])
def test_record_that_is_there_twice_is_noticed(place: int) -> None:
    maker = file_of(*THREE)
    maker.parts.append(maker.parts[place])
    (damage,) = scan(maker.data()).damages
    assert "comes after" in damage.what


def test_record_that_was_replaced_by_a_whole_one_is_noticed() -> None:
    maker, other = file_of(*THREE), file_of([record("a", b"1")], [record("b", b"X")])
    maker.parts[3] = other.parts[3]
    (damage,) = scan(maker.data()).damages
    assert damage.what == "record 4 does not follow from the one before it"


def test_file_that_was_put_behind_another_beginning_is_noticed() -> None:
    maker = file_of(*THREE)
    header = FileHeader(BOOK, 1, 1.0, 1, b"another beginning")
    maker.parts[0] = file_head(header)
    (damage,) = scan(maker.data()).damages
    assert "does not follow" in damage.what


def test_frames_of_a_file_without_header_are_read_and_the_header_is_missed() -> None:
    maker = file_of(*THREE)
    maker.parts[0] = b"nonsense"
    found = scan(maker.data())
    assert len(found.frames) == 5
    assert [damage.what for damage in found.damages] == ["its header is not what was written"]


def test_what_looks_like_a_head_inside_a_record_is_not_taken_for_one() -> None:
    maker = file_of([record("a", b"ECJR" * 50)], [record("b", b"ECJRECJF")])
    broken = bytearray(maker.parts[2])
    broken[0] ^= 1  # the head of the first record cannot be believed: the next one is looked for
    maker.parts[2] = bytes(broken)
    found = scan(maker.data())
    assert [frame.draft.thread_id for frame in found.frames] == ["", "b"]


def test_magic_behind_the_last_head_is_not_taken_for_one() -> None:
    maker = file_of([record("a", noise(3000))], [record("b", b"ECJR")])
    data = bytearray(maker.data())
    data[SECTOR : 2 * SECTOR] = bytes(SECTOR)
    (damage,) = scan(bytes(data)).damages
    assert damage.thread_id == "a"


def test_file_that_is_nothing_but_noise_is_damaged() -> None:
    found = scan(noise(3000))
    assert (found.header, found.frames) == (None, [])
    assert len(found.damages) == 1


def test_frame_of_another_format_is_damage_although_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FORMAT", FORMAT + 1)
    newer = FileMaker().write(record("a")).parts[1]
    monkeypatch.setattr(frames, "FORMAT", FORMAT)
    found = read_frame(newer, 0)
    assert isinstance(found, Damage)
    assert (found.what, found.thread_id) == (f"a record is of format {FORMAT + 1}", "a")


def test_format_of_a_newer_file_is_known_although_its_header_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FORMAT", FORMAT + 1)
    newer = FileMaker().data()
    monkeypatch.setattr(frames, "FORMAT", FORMAT)
    assert format_of(newer) == FORMAT + 1
    assert read_header(newer) is None


@pytest.mark.parametrize("data", [b"", b"ECJF", noise(100), file_head(FileHeader(BOOK, 1, 1.0, 1, NO_HASH))[1:]])
def test_what_is_no_journal_file_has_no_format(data: bytes) -> None:
    assert format_of(data) is None


def test_frame_knows_where_it_is() -> None:
    maker = file_of(*THREE)
    data, first = maker.data(), len(maker.parts[0])
    found = read_frame(data, first)
    assert isinstance(found, Frame)
    assert (found.offset, found.length) == (first, len(maker.parts[1]))
    assert read_frame(data, first + 1) is None
