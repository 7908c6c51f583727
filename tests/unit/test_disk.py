"""What the journal asks of a file system, asked of a real one."""

from __future__ import annotations

import fcntl
import gc
import os
import runpy
import sys
from pathlib import Path

import pytest

from enhanced_checkpointing.journal import disk as disk_module
from enhanced_checkpointing.journal.disk import RealDisk


def opened_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_directory_is_made_once_and_may_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(disk_module, "_sync_directory", synced.append)
    disk = RealDisk(tmp_path / "a" / "b")
    disk.prepare()
    assert synced == [tmp_path / "a", tmp_path], "every name that is new is synced"
    disk.prepare()
    assert len(synced) == 2
    assert os.stat(tmp_path / "a" / "b").st_mode & 0o777 == 0o700


def test_file_is_written_read_cut_renamed_and_removed(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    handle = disk.create("new")
    with pytest.raises(FileExistsError):
        disk.create("new")
    disk.write(handle, 0, b"one two")
    disk.write(handle, 4, b"TWO three")
    disk.sync(handle)
    assert (disk.size(handle), disk.read(handle, 4, 3), disk.read(handle, 4, 100)) == (13, b"TWO", b"TWO three")
    disk.truncate(handle, 3)
    assert disk.read(handle, 0, 100) == b"one"
    disk.rename("new", "newer")
    disk.sync_names()
    assert disk.names() == ["newer"]
    disk.close(handle)
    again = disk.open("newer")
    assert disk.read(again, 0, 100) == b"one"
    disk.close(again)
    disk.remove("newer")
    assert disk.names() == []
    assert os.stat(tmp_path).st_mode


def test_write_that_the_system_takes_in_pieces_is_written_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, bytes(data)[:3], offset))
    disk = RealDisk(tmp_path)
    handle = disk.create("new")
    disk.write(handle, 2, b"0123456789")
    assert disk.read(handle, 0, 100) == b"\0\x000123456789"
    disk.close(handle)


def test_read_that_the_system_answers_in_pieces_is_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    disk = RealDisk(tmp_path)
    handle = disk.create("new")
    disk.write(handle, 0, b"0123456789")
    monkeypatch.setattr(os, "pread", lambda handle, length, offset: pread(handle, min(3, length), offset))
    assert disk.read(handle, 1, 8) == b"12345678"
    disk.close(handle)


@pytest.mark.parametrize("system_reserves", [True, False])
def test_room_that_is_set_aside_is_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_reserves: bool
) -> None:
    if not system_reserves:
        monkeypatch.delattr(os, "posix_fallocate")
    disk = RealDisk(tmp_path)
    handle = disk.create("spare")
    disk.reserve(handle, 10_000)
    assert disk.read(handle, 0, 20_000) == bytes(10_000)
    assert os.fstat(handle).st_blocks * 512 >= 10_000, "its blocks are its own"
    disk.close(handle)


def test_lock_keeps_others_out_until_it_is_closed(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    handle = disk.lock("a.lock")
    assert handle is not None
    before = opened_descriptors()
    assert disk.lock("a.lock") is None
    assert opened_descriptors() == before
    disk.close(handle)
    again = disk.lock("a.lock")
    assert again is not None
    disk.close(again)


@pytest.mark.parametrize("replaced", [True, False])
def test_lock_of_a_file_that_was_just_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Its owner ended between our opening and our locking; somebody else may have made a new one since."""
    disk = RealDisk(tmp_path)
    flock = fcntl.flock

    def late(handle: int, how: int) -> None:
        (tmp_path / "a.lock").unlink()
        if replaced:
            (tmp_path / "a.lock").touch()
        flock(handle, how)

    before = opened_descriptors()
    monkeypatch.setattr(fcntl, "flock", late)
    assert disk.lock("a.lock") is None
    assert opened_descriptors() == before


def test_lock_that_fails_gives_its_file_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int, how: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    before = opened_descriptors()
    with pytest.raises(OSError, match="no locks"):
        RealDisk(tmp_path).lock("a.lock")
    assert opened_descriptors() == before


def test_forked_child_closes_what_its_parent_has_open_and_takes_no_lock_along(tmp_path: Path) -> None:
    gc.collect()  # what killed processes of other tests had mapped
    disk = RealDisk(tmp_path)
    before = opened_descriptors()
    disk.create("a")
    handle = disk.lock("a.lock")
    assert handle is not None
    child = os.fork()
    if child == 0:
        try:
            left = opened_descriptors() - before
        except BaseException:  # noqa: BLE001  # a forked child must end here, whatever happens
            left = 99
        os._exit(left)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert disk.lock("a.lock") is None, "the parent has it still"
    disk_module._leave_all_to_parent()  # as in a child
    assert opened_descriptors() == before
    disk.close(handle)  # a number that may be another file's by now
    again = disk.lock("a.lock")
    assert again is not None
    disk.close(again)


def test_file_that_was_removed_or_replaced_is_not_the_one_of_its_name(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    handle = disk.create("a")
    assert disk.is_named("a", handle)
    disk.remove("a")
    assert not disk.is_named("a", handle)
    other = disk.create("a")
    assert not disk.is_named("a", handle)
    assert disk.is_named("a", other)
    disk.close(handle)
    disk.close(other)


def test_copy_is_kept_whole_once(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    (tmp_path / "a").write_bytes(b"damaged")
    disk.keep_copy("a")
    (tmp_path / "a").write_bytes(b"changed since")
    disk.keep_copy("a")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "quarantine").iterdir()] == [("a", b"damaged")]
    assert disk.names() == ["a"]


def test_macos_is_asked_for_the_platter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda handle, what: asked.append(what))
    disk = RealDisk(tmp_path)
    handle = disk.create("a")
    disk.sync(handle)
    assert asked == [51]
    disk.close(handle)


def test_module_can_be_imported_where_there_are_no_such_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert "RealDisk" in runpy.run_path(str(disk_module.__file__))
