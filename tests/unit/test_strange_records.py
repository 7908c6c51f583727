"""Journal files that are whole and make no sense: damage of a thread or a file, told, and the end of nothing."""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.errors import CheckpointCorruptionError, CheckpointerConfigurationError
from enhanced_checkpointing.journal import codec
from enhanced_checkpointing.journal.api import UNKNOWN
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.journal.format import (
    FORMAT,
    MOST_FILES,
    NO_HASH,
    Draft,
    FileHeader,
    Kind,
    Predecessor,
    Sequences,
    applied_in,
    applied_record,
    dead_letter_record,
    file_head,
    lock_file_bytes,
    read_lock_file,
    redirection_record,
    scan,
)
from enhanced_checkpointing.journal.inspect import survey
from enhanced_checkpointing.journal.recovery import take_over_log
from enhanced_checkpointing.observability.events import Notice
from enhanced_checkpointing.operations import DeleteThread
from enhanced_checkpointing.serialization import SharingSerializer
from tests.support.journal_files import BOOK, CANARY, FileMaker, record
from tests.support.journals import add, opened_journal, operations_in
from tests.support.recorder import Recorder

SOUND = codec.encode(DeleteThread("x"), UNKNOWN, SharingSerializer())
HEAD = struct.Struct(">4sBBIQQQQd16s")
KIND, SEQUENCE, WRITTEN_AT = 2, 5, 8

IDENTITY = BOOK.hex()


def body(description: object, tag: bytes = b"null", payload: bytes = b"") -> bytes:
    text = description if isinstance(description, bytes) else json.dumps(description).encode()
    return struct.pack(">IH", len(text), len(tag)) + text + tag + payload


def put_by(directory: Path, *files: FileMaker, home: str | None = None) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    for number, file in enumerate(files, start=1):
        (directory / f"{IDENTITY}.{number:06}.journal").write_bytes(file.data())
    (directory / f"{IDENTITY}.lock").write_bytes(lock_file_bytes(len(files), home))


def file_with(*drafts: Draft) -> FileMaker:
    """A sound record of one thread, the others, and a sound one of another thread."""
    return FileMaker().write(CANARY).write(record("before", SOUND)).write(*drafts).write(record("behind", SOUND))


def forged(file: FileMaker, part: int, field: int, value: object) -> FileMaker:
    """A file in which a field of the head of one frame is another one, with the right checksum."""
    frame = file.parts[part]
    fields = list(HEAD.unpack_from(frame))
    fields[field] = value
    head = HEAD.pack(*fields)
    file.parts[part] = head + struct.pack(">I", crc32(head)) + frame[HEAD.size + 4 :]
    return file


async def started(directory: Path) -> tuple[list[str], dict[str, bool], list[str]]:
    """What a start has to drain, which threads are frozen, and what it says."""
    recorder = Recorder()
    async with opened_journal(directory, telemetry=recorder) as journal:
        waiting = [*journal.waiting_threads()]
        for thread_id in waiting:
            await operations_in(journal, thread_id)
        frozen = {thread_id: journal.is_frozen(thread_id) for thread_id in journal.held_threads()}
        await add(journal, "new")
        return waiting, frozen, [notice.message for notice in recorder.of(Notice)]


DEEP = b"[" * 100_000 + b"]" * 100_000

STRANGE_BODIES = {
    "nothing": b"",
    "short": b"\0\0",
    "longer than it is": struct.pack(">IH", 2**31, 4) + b"{}",
    "no JSON": body(b"{"),
    "no UTF-8": body(b'{"name": "\xff"}'),
    "deep": body(b'{"name": ' + DEEP + b"}"),
    "a list": body([1]),
    "a number": body(1),
    "a number of 5,000 digits": body(b'{"name": ' + b"9" * 5000 + b"}"),
    "no name": body({}),
    "unknown name": body({"name": "os.system", "ns": "", "id": "1"}),
    "a name that is a list": body({"name": ["put"], "ns": "", "id": "1"}),
    "no place": body({"name": "put"}),
    "a place that is a number": body({"name": "put", "ns": 1, "id": "1"}),
    "a base that is a list": body({"name": "put", "ns": "", "id": "1", "base": []}),
    "a deletion with a place": body({"name": "delete", "ns": ""}),
}


@pytest.mark.parametrize("strange", STRANGE_BODIES)
async def test_record_with_a_right_checksum_that_makes_no_sense_is_damage_of_its_thread(strange: str) -> None:
    put_by(Path("journal"), file_with(record("strange", STRANGE_BODIES[strange])))
    seen = survey(Path("journal")).logs[0]
    assert (dict(seen.waiting), seen.damaged_threads) == ({"before": 1, "behind": 1}, ("strange",))
    waiting, frozen, said = await started(Path("journal"))
    assert (waiting, frozen) == (["before", "behind"], {"before": False, "strange": True, "behind": False})
    assert any("damaged" in each and f"{IDENTITY}.000001.journal" in each for each in said)
    assert (Path("journal/quarantine") / f"{IDENTITY}.000001.journal").exists()
    assert (await started(Path("journal")))[1]["strange"], "for ever, until somebody decides"


def ranges(*parts: tuple[int, int]) -> Draft:
    return Draft(Kind.APPLIED, body=b"".join(struct.pack(">QQ", *part) for part in parts))


@pytest.mark.parametrize(
    "strange",
    [
        ranges((1, 2**40)),
        ranges((0, 2**64 - 1)),
        ranges((2, 1)),
        ranges((2, 3), (1, 2)),
        Draft(Kind.APPLIED, body=b"short"),
        Draft(Kind.DEAD_LETTER, body=b"short"),
        Draft(Kind.DEAD_LETTER, body=struct.pack(">Q", 2**63) + b"later"),
        Draft(Kind.DEAD_LETTER, body=struct.pack(">Q", 1) + b"\xff"),
        Draft(Kind.REDIRECTED, "", b"\xff"),
        Draft(Kind.RETIRED, body=b"123"),
    ],
)
async def test_mark_that_makes_no_sense_is_damage_of_its_file(strange: Draft) -> None:
    put_by(Path("journal"), file_with(strange))
    began = time.monotonic()
    _, frozen, said = await started(Path("journal"))
    assert frozen == {"before": True, "behind": True}, "it may have said anything of them"
    assert any("makes no sense" in each for each in said)
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("field", "value", "lost"),
    [
        (KIND, 99, {"strange"}),
        (KIND, 0, {"strange"}),
        (1, 77, {"strange"}),
        (SEQUENCE, 2**64 - 1, {"strange"}),
        (WRITTEN_AT, float("nan"), {"strange"}),
        (WRITTEN_AT, float("inf"), {"strange"}),
        (WRITTEN_AT, 1e300, {"strange"}),
    ],
)
async def test_head_with_a_right_checksum_that_none_has_is_damage(field: int, value: object, lost: set[str]) -> None:
    put_by(Path("journal"), forged(file_with(record("strange", SOUND)), 3, field, value))
    _, frozen, _ = await started(Path("journal"))
    assert lost <= {thread_id for thread_id, is_frozen in frozen.items() if is_frozen}
    async with opened_journal(Path("journal")) as journal:
        assert (await add(journal, "later")).journaled_at < 2**33, "the clock of this process goes on"


async def test_thread_that_is_no_text_is_damage() -> None:
    file = file_with(record("strange", SOUND))
    frame = file.parts[3]
    at = HEAD.size + 4
    file.parts[3] = frame[:at] + b"\xff" * 7 + struct.pack(">I", crc32(b"\xff" * 7)) + frame[at + 11 :]
    put_by(Path("journal"), file)
    assert (await started(Path("journal")))[1] == {"before": True, "behind": True}


@pytest.mark.parametrize(
    "header",
    [
        FileHeader(BOOK, 1, 1.0, 2**63, NO_HASH),
        FileHeader(BOOK, 1, 1.0, 1, NO_HASH, (Predecessor(7, 2**63),)),
        FileHeader(BOOK, 1, 1.0, 1, NO_HASH, tuple(Predecessor(number, 1) for number in range(2, 100_000))),
    ],
)
async def test_header_that_none_has_is_damage_and_costs_no_time(header: FileHeader) -> None:
    file = file_with()
    file.parts[0] = file_head(header)
    put_by(Path("journal"), file)
    began = time.monotonic()
    _, _, said = await started(Path("journal"))
    assert 0 < len([each for each in said if "damaged" in each]) < 200
    assert sum(map(len, said)) < 100_000
    async with opened_journal(Path("journal")) as journal:
        for thread_id in journal.waiting_threads():
            await journal.mark_applied(journal.entries(thread_id))
    assert time.monotonic() - began < 10.0


async def test_lock_file_that_names_no_file_that_could_be_is_damaged() -> None:
    assert read_lock_file(lock_file_bytes(MOST_FILES + 1, None)).newest is None
    text = lock_file_bytes(1, "x" * 2)[:-6] + b"\xff\xff"
    lock_file = text + struct.pack(">I", crc32(text[12:]))
    assert read_lock_file(lock_file).home_damaged
    put_by(Path("journal"), file_with())
    (Path("journal") / f"{IDENTITY}.lock").write_bytes(lock_file)
    _, _, said = await started(Path("journal"))
    assert any("lock" in each for each in said)


async def test_names_that_leave_no_next_one_are_none_of_the_journals() -> None:
    put_by(Path("journal"), file_with())
    last = [f"{'f' * 32}.lock", f"{IDENTITY}.999999999.journal"]
    for name in last:
        (Path("journal") / name).touch()
    assert (await started(Path("journal")))[0] == ["before", "behind"]
    assert (await started(Path("journal")))[0] == ["before", "behind", "new"], (
        "what was acknowledged beside it is found"
    )
    assert set(survey(Path("journal")).strays) == set(last)


def frame_within(payload: bytes) -> FileMaker:
    return file_with(record("outer", body({"name": "delete"}, payload=payload)))


async def test_frame_inside_of_a_damaged_record_is_no_frame() -> None:
    """An application's value may hold the bytes of one."""
    inner = FileMaker().write(record("inner", SOUND)).parts[1]
    file = frame_within(inner)
    file.parts[3] = file.parts[3][:-1] + bytes([file.parts[3][-1] ^ 1])
    put_by(Path("journal"), file)
    waiting, frozen, _ = await started(Path("journal"))
    assert (waiting, frozen) == (["before", "behind"], {"before": False, "outer": True, "behind": False})


def test_file_made_to_be_read_again_and_again_is_read_once() -> None:
    """Heads that all claim the rest of the file, and a tail full of what looks like heads."""
    frame = FileMaker().write(record("x", SOUND)).parts[1]
    fields = list(HEAD.unpack_from(frame))
    parts = []
    for number in range(5000):
        fields[4] = (5000 - number) * (HEAD.size + 4) // 2
        head = HEAD.pack(*fields)
        parts.append(head + struct.pack(">I", crc32(head)))
    data = b"".join(parts) + b"ECJR" * 100_000
    began = time.process_time()
    assert scan(data).damages
    assert time.process_time() - began < 10.0


def test_ranges_are_kept_as_a_set_of_them() -> None:
    kept = Sequences([(5, 8), (1, 3), (3, 4)])
    assert kept.ranges == [(1, 4), (5, 8)]
    kept.add([(4, 5), (20, 2**50)])
    assert kept.ranges == [(1, 8), (20, 2**50)]
    assert [each in kept for each in (None, 0, 1, 7, 8, 19, 20, 2**50)] == [
        *(False, False, True, True, False, False, True, False)
    ]
    assert kept.since(6).ranges == [(6, 8), (20, 2**50)]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda one: (one[0], one[0] + one[1])), max_size=12)
)
def test_set_of_ranges_is_the_set_of_their_numbers(parts: list[tuple[int, int]]) -> None:
    kept = Sequences(parts[:3])
    kept.add(parts[3:])
    expected = {number for part in parts for number in range(*part)}
    assert {number for number in range(80) if number in kept} == expected
    assert kept.ranges == sorted(kept.ranges)
    assert applied_in(applied_record(expected)) == kept.ranges


# Anything at all


def sound_file() -> bytes:
    return file_with(
        record("strange", SOUND),
        applied_record([2]),
        dead_letter_record(3, "no"),
        redirection_record("before", "there"),
    ).data()


def mutated(changes: Sequence[tuple[int, int]]) -> bytes:
    """A sound file with bytes changed, and all checksums made right again."""
    file = file_with(
        record("strange", SOUND), applied_record([2]), dead_letter_record(3, "no"), redirection_record("before", "x")
    )
    for number, (at, byte) in enumerate(changes):
        part = 1 + (at + number) % (len(file.parts) - 1)
        data = bytearray(file.parts[part])
        data[at % len(data)] = byte
        thread_length, body_length = struct.unpack_from(">IQ", data, 6)
        ends = [HEAD.size]
        if thread_length + body_length + HEAD.size + 12 == len(data):
            ends += [HEAD.size + 4 + thread_length, HEAD.size + 8 + thread_length + body_length]
        start = 0
        for end in ends:
            struct.pack_into(">I", data, end, crc32(data[start:end]))
            start = end + 4
        file.parts[part] = bytes(data)
    return file.data()


bytes_of_files: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=400),
    st.binary(max_size=300).map(lambda tail: sound_file()[:90] + tail),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6).map(mutated),
    st.lists(
        st.builds(Draft, st.sampled_from(list(Kind)), st.text(max_size=3), st.binary(max_size=60), st.floats()),
        max_size=5,
    ).map(lambda drafts: file_with(*(each for each in drafts if "\ud800" not in each.thread_id)).data()),
)


@given(bytes_of_files, st.one_of(st.binary(max_size=40), st.just(lock_file_bytes(1, "here"))))
@settings(max_examples=40, deadline=None)
def test_no_file_ends_a_start_a_survey_or_a_drain(data: bytes, lock: bytes) -> None:
    directory = Path(tempfile.mkdtemp(dir="."))
    (directory / f"{IDENTITY}.000001.journal").write_bytes(data)
    (directory / f"{IDENTITY}.lock").write_bytes(lock)
    survey(directory)

    async def start_and_drain() -> None:
        try:
            async with opened_journal(directory) as journal:
                for thread_id in journal.waiting_threads():
                    try:
                        await journal.read(journal.entries(thread_id))
                    except CheckpointCorruptionError:
                        continue
                    await journal.mark_applied(journal.entries(thread_id))
                await add(journal, "new")
        except CheckpointerConfigurationError:
            assert struct.unpack_from(">H", data, 4)[0] > FORMAT, "it is of another format"
            return
        async with opened_journal(directory) as journal:
            assert journal.entries("new"), "what was acknowledged beside it is found"

    asyncio.run(start_and_drain())


def test_adoption_of_a_strange_file_gives_everything_back(tmp_path: Path) -> None:
    put_by(tmp_path, file_with(record("strange", b"")))
    found = take_over_log(RealDisk(tmp_path), IDENTITY, time.time)
    assert found is not None
    found.log.release()
