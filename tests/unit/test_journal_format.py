"""The journal of every release that there was is read back for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from enhanced_checkpointing.journal import workers as thread_table
from enhanced_checkpointing.journal.api import UNKNOWN
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.journal.format import FORMAT, SIGNED_FORMAT, Kind, Signer, scan
from tests.support.journals import opened_journal, operations_in
from tests.support.make_journal_data import PENDING, SIGNER, WRITTEN_AT, make

DATA = Path(__file__).parents[1] / "data"


def kept(version: int) -> Path:
    """A copy of what the release of that format wrote."""
    copy = Path(shutil.copytree(DATA / f"journal_format_{version}", "journal"))
    copy.chmod(0o700)
    for file in copy.iterdir():
        file.chmod(0o600)
    return copy


def signer_of(version: int) -> Signer | None:
    return SIGNER if version == SIGNED_FORMAT else None


def test_every_format_that_there_was_is_kept() -> None:
    assert sorted(path.name for path in DATA.glob("journal_format_*")) == [
        f"journal_format_{version}" for version in range(1, SIGNED_FORMAT + 1)
    ]


@pytest.mark.parametrize("version", range(1, SIGNED_FORMAT + 1))
async def test_journal_of_every_format_is_read_back(version: int) -> None:
    async with opened_journal(kept(version), signer=signer_of(version)) as journal:
        assert {thread_id: await operations_in(journal, thread_id) for thread_id in journal.held_threads()} == {
            thread_id: [operation.replayable() for operation in operations] for thread_id, operations in PENDING.items()
        }
        heads = [entry.base_head for entry in journal.entries("thread ü")]
        assert heads == [None, "1f000000-0000-6000-8000-000000000001", UNKNOWN]
        assert {entry.journaled_at for entry in journal.entries("thread ü")} == {WRITTEN_AT}
        (log,) = journal._logs.taken_over
        assert list(log.dead_letters.values()) == ["invalid byte sequence: ü"]
        assert journal.dead_letters() == [], "they are tried again"
        assert journal.redirected("diverted") == "diverted~outage~1"
        assert journal.status().damages == 0
        assert journal.waiting_threads() == ["thread ü", "refused", "diverted"]


@pytest.mark.parametrize("version", range(1, SIGNED_FORMAT + 1))
async def test_journal_of_every_format_can_be_drained(version: int) -> None:
    async with opened_journal(kept(version), signer=signer_of(version)) as journal:
        for thread_id in journal.waiting_threads():
            await journal.mark_applied(journal.entries(thread_id))
    async with opened_journal(Path("journal"), signer=signer_of(version)) as journal:
        assert journal.held_threads() == []


def test_what_is_kept_has_every_kind_of_frame() -> None:
    found = [scan(path.read_bytes()) for path in sorted((DATA / f"journal_format_{FORMAT}").glob("*.journal"))]
    assert {frame.draft.kind for each in found for frame in each.frames} == set(Kind)
    assert len(found) > 1


@pytest.mark.parametrize("version", [FORMAT, SIGNED_FORMAT])
async def test_same_bytes_are_written_today(version: int) -> None:
    """A change of the format that forgets to give it a new number fails here."""
    await make(Path("today"), signer_of(version))
    kept_files, today = kept(version), Path("today")
    names = RealDisk(kept_files).names()
    assert [name for name in RealDisk(today).names() if name != thread_table.TABLE_NAME] == names
    for name in names:
        assert (today / name).read_bytes() == (kept_files / name).read_bytes(), name
