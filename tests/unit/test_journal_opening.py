"""Which journal a configuration means, and when a start may go on with a lesser one."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing import CheckpointerConfig, create_memory_checkpointer, create_sqlite_checkpointer
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal import opening
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.journal.opening import open_journal
from enhanced_checkpointing.observability.events import Notice
from enhanced_checkpointing.private_files import directory_fault, file_fault
from enhanced_checkpointing.serialization import SharingSerializer
from tests.support.disks import bound_by_modes, folder_without_root
from tests.support.journals import add, opened_journal
from tests.support.recorder import Recorder


async def opened(config: CheckpointerConfig) -> tuple[str, list[Notice]]:
    """What kind of journal it is, after it was written to, and what was said."""
    recorder = Recorder()
    journal = await open_journal(config, SharingSerializer(), recorder, home="somewhere")
    if journal is None:
        return "off", recorder.of(Notice)
    await journal.mark_applied([await add(journal, "a")])
    await journal.close()
    return "durable" if journal.durable else "memory", recorder.of(Notice)


@pytest.fixture(autouse=True)
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some machines temporary directories are in memory."""
    monkeypatch.setattr(opening, "memory_filesystem", lambda directory: None)


def config(**fields: Any) -> CheckpointerConfig:
    return create_sqlite_checkpointer("a.sqlite", **fields)


@pytest.mark.parametrize("environment", ["development", "production"])
@pytest.mark.parametrize("kind", ["durable", "memory", "off"])
async def test_journal_is_the_one_that_was_asked_for(environment: Any, kind: Any) -> None:
    assert await opened(config(environment=environment, journal=kind)) == (kind, [])


@pytest.mark.parametrize("environment", ["development", "production"])
async def test_default_is_durable_unless_the_primary_is_in_memory(environment: Any) -> None:
    assert await opened(config(environment=environment)) == ("durable", [])
    assert await opened(create_memory_checkpointer(environment=environment)) == ("memory", [])


async def test_durable_journal_may_be_asked_for_over_memory() -> None:
    assert await opened(create_memory_checkpointer(journal="durable")) == ("durable", [])


@pytest.mark.parametrize("kind", ["memory", "off"])
async def test_directory_that_was_set_for_another_journal_is_said_to_have_no_effect(kind: Any) -> None:
    found, (notice,) = await opened(config(journal=kind, journal_dir="elsewhere"))
    assert found == kind
    assert notice == Notice("WARNING", f"CHECKPOINT_JOURNAL_DIR has no effect with CHECKPOINT_JOURNAL={kind}")
    assert "elsewhere" not in os.listdir()


async def test_directory_is_made_with_all_that_is_above_it_and_for_nobody_else() -> None:
    assert await opened(config(journal_dir="some/where/journal")) == ("durable", [])
    assert os.stat("some/where/journal").st_mode & 0o777 == 0o700


def unusable_by_name() -> None:
    """Put a file where the default directory should be."""
    os.mkdir(".checkpoints")
    Path(".checkpoints/journal").touch()


async def test_default_directory_that_cannot_be_used_costs_durability_in_development_and_says_so() -> None:
    unusable_by_name()
    kind, (notice,) = await opened(config())
    assert kind == "memory"
    assert notice.level == "WARNING"
    assert "CHECKPOINT_JOURNAL_DIR" in notice.message
    assert notice.message.endswith("Until then the journal is in memory")


@pytest.mark.parametrize(
    "fields",
    [
        {"environment": "production"},
        {"journal": "durable"},
        {"journal_dir": ".checkpoints/journal"},
        {"environment": "testing", "journal": "durable"},
    ],
)
async def test_directory_that_cannot_be_used_ends_a_start_in_production_or_when_it_was_asked_for(
    fields: dict[str, Any],
) -> None:
    unusable_by_name()
    with pytest.raises(
        CheckpointerConfigurationError, match=r"cannot be used.*\.checkpoints/journal.*Nothing was stored"
    ):
        await opened(config(**fields))


async def test_directory_that_may_not_be_written_is_refused() -> None:
    with folder_without_root() as folder:
        folder.chmod(0o500)
        with (
            bound_by_modes(),
            pytest.raises(CheckpointerConfigurationError, match=r"cannot be used \(Permission denied"),
        ):
            await opened(config(journal_dir=folder / "journal"))
        folder.chmod(0o700)


async def test_files_of_somebody_else_are_refused() -> None:
    with folder_without_root() as folder:
        (folder / f"{1:032x}.lock").touch(0o600)
        folder.chmod(0o555)
        with bound_by_modes(), pytest.raises(CheckpointerConfigurationError, match="Permission denied"):
            await opened(config(journal_dir=folder))
        folder.chmod(0o700)


async def test_directory_that_others_may_write_is_refused_and_so_is_a_link_in_it() -> None:
    """What is planted in it, and by whom: tests/faults/test_planted_files.py."""
    os.mkdir("journal")
    os.chmod("journal", 0o777)
    with pytest.raises(CheckpointerConfigurationError, match=r"cannot be trusted \(.*other users may write it"):
        await opened(config(journal_dir="journal"))
    os.chmod("journal", 0o755)
    os.symlink("elsewhere", f"journal/{1:032x}.lock")
    with pytest.raises(CheckpointerConfigurationError, match=r"cannot be trusted \(.*lock: it is a link"):
        await opened(config(journal_dir="journal"))


US, GROUP = 1000, 77


def seen(mode: int, user: int = US, group: int = 0, links: int = 1) -> os.stat_result:
    return os.stat_result((mode, 1, 1, links, user, group, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("directory", "trusted"),
    [
        (seen(0o40700), True),
        (seen(0o40755), True),
        (seen(0o40775), False),
        (seen(0o40777), False),
        (seen(0o41777), False),
        (seen(0o42770, group=GROUP), True),
        (seen(0o40700, user=0), False),
        (seen(0o40775, user=0, group=GROUP), False),
        (seen(0o42775, user=0, group=GROUP), True),
        (seen(0o42770, user=0, group=GROUP), True),
        (seen(0o42770, user=0, group=8), False),
        (seen(0o42777, user=0, group=GROUP), False),
        (seen(0o42775, user=7, group=GROUP), False),
    ],
)
def test_directory_is_ours_or_shared_as_kubernetes_shares_it(directory: os.stat_result, trusted: bool) -> None:
    assert (directory_fault(directory, US, {GROUP}) is None) == trusted


@pytest.mark.parametrize(
    ("file", "alone", "shared"),
    [
        (seen(0o100600), True, True),
        (seen(0o100644), True, True),
        (seen(0o100600, links=2), False, False),
        (seen(0o10600), False, False),
        (seen(0o100602), False, False),
        (seen(0o100660), False, False),
        (seen(0o100660, group=GROUP), False, True),
        (seen(0o100660, user=7, group=GROUP), False, True),
        (seen(0o100600, user=7), False, False),
    ],
)
def test_file_is_ours_or_that_of_the_group_where_the_directory_is(
    file: os.stat_result, alone: bool, shared: bool
) -> None:
    assert (file_fault(file, seen(0o40700), US, {GROUP}) is None) == alone
    assert (file_fault(file, seen(0o42770, user=0, group=GROUP), US, {GROUP}) is None) == shared


async def test_network_file_system_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "network_filesystem", lambda directory: "nfs4" if directory.is_absolute() else None)
    with pytest.raises(CheckpointerConfigurationError, match=r"network file system \(nfs4\)"):
        await opened(config(journal="durable"))
    assert os.listdir() == []
    kind, (notice,) = await opened(config())
    assert (kind, notice.level) == ("memory", "WARNING")


async def test_windows_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(CheckpointerConfigurationError, match=r"flock, which Windows does not have"):
        await opened(config(journal="durable"))


async def test_directory_in_memory_is_used_and_said_not_to_survive_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "memory_filesystem", lambda directory: "tmpfs" if directory.is_absolute() else None)
    kind, (notice,) = await opened(config(journal_dir="journal"))
    assert (kind, notice.level) == ("durable", "WARNING")
    assert "in memory (tmpfs)" in notice.message
    assert "survives this process, but not the machine" in notice.message


async def leave_backlog() -> None:
    """Two operations of a process that is gone, in the default directory."""
    async with opened_journal(Path(".checkpoints/journal")) as journal:
        for name in ("a", "b"):
            await add(journal, name)


def files_in_default_directory() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(".checkpoints/journal").iterdir()}


@pytest.mark.parametrize("kind", ["memory", "off"])
async def test_backlog_that_a_start_without_the_durable_journal_does_not_drain_is_said_and_left(kind: Any) -> None:
    await leave_backlog()
    before = files_in_default_directory()
    found, (notice,) = await opened(config(journal=kind))
    assert (found, notice.level) == (kind, "WARNING")
    assert notice.message.startswith("2 operations that ended processes acknowledged wait in ")
    assert notice.message.endswith("start once with CHECKPOINT_JOURNAL=durable")
    assert files_in_default_directory() == before


async def test_backlog_of_a_process_that_runs_is_its_own() -> None:
    async with opened_journal(Path(".checkpoints/journal")) as journal:
        await add(journal, "a")
        assert await opened(config(journal="memory")) == ("memory", [])


async def test_backlog_that_cannot_be_looked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: RealDisk) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    await leave_backlog()
    monkeypatch.setattr(RealDisk, "names", fail)
    kind, (notice,) = await opened(config(journal="memory"))
    assert kind == "memory"
    assert "cannot be told (Input/output error)" in notice.message


async def test_windows_has_no_backlogs(monkeypatch: pytest.MonkeyPatch) -> None:
    await leave_backlog()
    monkeypatch.setattr(sys, "platform", "win32")
    assert await opened(config(journal="memory")) == ("memory", [])
