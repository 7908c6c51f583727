"""A journal that is signed with a key: what anybody else wrote, moved or changed in it is damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enhanced_checkpointing import CheckpointerConfig, create_sqlite_checkpointer
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal.format import SIGNATURE_SIZE, Kind, Signer, scan
from enhanced_checkpointing.journal.inspect import held_in, survey
from enhanced_checkpointing.journal.opening import open_journal, signer_of
from enhanced_checkpointing.observability.events import Notice
from enhanced_checkpointing.serialization import SharingSerializer
from tests.support.journals import add, opened_journal, operations_in
from tests.support.recorder import Recorder

KEY = "a key that is as long as it has to be"
SIGNER = Signer(KEY)
JOURNAL = Path("journal")


def files(pattern: str = "*", directory: Path = JOURNAL) -> list[Path]:
    return sorted(path for path in directory.glob(pattern) if path.is_file())


async def leave(*thread_ids: str, signer: Signer | None = SIGNER, directory: Path = JOURNAL) -> list[Path]:
    """What a process that is gone left; returns its files with records."""
    before = files("*.journal", directory)
    async with opened_journal(directory, signer=signer) as journal:
        for thread_id in thread_ids:
            await add(journal, thread_id)
    return [path for path in files("*.journal", directory) if path not in before]


async def found(signer: Signer | None = SIGNER) -> tuple[list[str], list[str], str]:
    """What a start takes over: the threads that can be drained, those that are frozen, and what it says."""
    recorder = Recorder()
    async with opened_journal(JOURNAL, signer=signer, telemetry=recorder) as journal:
        waiting = [*journal.waiting_threads()]
        for thread_id in waiting:
            await operations_in(journal, thread_id)
        frozen = [thread_id for thread_id in journal.held_threads() if journal.is_frozen(thread_id)]
        return waiting, frozen, "\n".join(notice.message for notice in recorder.of(Notice))


async def test_signed_journal_is_adopted_drained_and_removed_with_its_key() -> None:
    await leave("a", "b", "a")
    async with opened_journal(JOURNAL, signer=SIGNER) as journal:
        assert (journal.waiting_threads(), journal.status().damages) == (["a", "b"], 0)
        size = journal.entries("b")[0].size
        for thread_id in ("a", "b"):
            await journal.mark_applied(journal.entries(thread_id))
    assert os.listdir(JOURNAL) == []
    await leave("b", signer=None)
    async with opened_journal(JOURNAL) as journal:
        assert journal.entries("b")[0].size == size - SIGNATURE_SIZE


@pytest.mark.parametrize("forger", [None, Signer("another key, which is as long as that"), Signer(None)])
async def test_record_that_was_not_signed_with_the_key_is_damage_and_is_told(forger: Signer | None) -> None:
    (file,) = await leave("forged", signer=forger)
    waiting, frozen, said = await found()
    assert (waiting, frozen) == ([], ["forged"])
    assert f"{file.name}, byte" in said
    assert "signed" in said
    assert (JOURNAL / "quarantine" / file.name).read_bytes() == file.read_bytes()
    assert survey(JOURNAL, signer=SIGNER).logs[0].damaged_threads == ("forged",)


async def test_signed_journal_is_not_read_without_its_key_and_is_seen_by_who_only_looks() -> None:
    await leave("a")
    before = {path.name: path.read_bytes() for path in files()}
    with pytest.raises(CheckpointerConfigurationError, match=r"is signed, and CHECKPOINT_JOURNAL_KEY is not set"):
        await found(signer=None)
    assert {path.name: path.read_bytes() for path in files()} == before
    assert held_in(JOURNAL) == {"a"}, "retention leaves it alone, with or without the key"
    recorder = Recorder()
    config = create_sqlite_checkpointer("a.sqlite", journal="memory", journal_dir=JOURNAL)
    await open_journal(config, SharingSerializer(), recorder, home="here")
    assert any("1 operations that ended processes" in notice.message for notice in recorder.of(Notice))


async def test_record_that_was_moved_to_another_place_or_book_is_damage() -> None:
    (first,) = await leave("a", "a")
    data = first.read_bytes()
    records = [frame for frame in scan(data, SIGNER.at(first.name[:32], 1)).frames if frame.draft.kind is Kind.RECORD]
    one, two = (data[frame.offset : frame.offset + frame.length] for frame in records)
    assert len(one) == len(two)
    first.write_bytes(data.replace(two, one))
    assert (await found())[:2] == ([], ["a"]), "twice, and not there"
    for path in files():
        path.unlink()
    (mine,) = await leave("mine")
    (other,) = await leave("other", directory=Path("elsewhere"))
    mine.write_bytes(other.read_bytes())
    waiting, frozen, said = await found()
    assert (waiting, frozen) == ([], ["other"])
    assert "not for this place" in said or "header" in said


async def test_lock_file_that_somebody_else_wrote_is_damage() -> None:
    await leave("a")
    (lock,) = files("*.lock")
    data = bytearray(lock.read_bytes())
    lock.write_bytes(data[:-SIGNATURE_SIZE] + bytes(SIGNATURE_SIZE))
    assert "it is not what was written" in (await found())[2]
    lock.write_bytes(data[: -SIGNATURE_SIZE - 4])
    assert "it is not what was written" in (await found())[2]


async def test_no_flipped_bit_of_a_signed_file_is_read_past_silently() -> None:
    (file,) = await leave("a", "b")
    data = file.read_bytes()
    for bit in range(0, len(data) * 8, 37):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        seen = scan(bytes(flipped), SIGNER.at(file.name[:32], 1))
        assert seen.damages or seen.torn or seen.header is None, bit
    for size in range(len(data)):
        seen = scan(data[:size], SIGNER.at(file.name[:32], 1))
        assert seen.damages == [], size


def test_key_is_long_enough_and_never_shown() -> None:
    with pytest.raises(CheckpointerConfigurationError, match=r"CHECKPOINT_JOURNAL_KEY.*too short.*openssl rand"):
        CheckpointerConfig(journal_key="short")
    config = CheckpointerConfig(journal_key=KEY)
    assert KEY not in f"{config!r} {config.redacted()} {signer_of(config)!r} {signer_of(config).__dict__!r}"
    assert signer_of(CheckpointerConfig()) is None
