"""The few things that the journal asks of a file system, in one directory. No decisions, and nothing is caught.

The simulation has another one of these, which tears, fills and fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

if sys.platform != "win32":
    import fcntl


class Disk(Protocol):
    """One directory. Names are those of files in it; handles are open files. Everything raises `OSError`."""

    def prepare(self) -> None:
        """Make the directory where it is missing, so that it survives a crash."""

    def names(self) -> list[str]:
        """The names of all files."""

    def create(self, name: str) -> int:
        """Open a new file for writing."""

    def open(self, name: str) -> int:
        """Open a file that is there, for reading and writing."""

    def lock(self, name: str) -> int | None:
        """Open a file, made where it is missing, and lock it until it is closed; None: another process has it."""

    def alone(self) -> AbstractContextManager[bool]:
        """Lock the directory itself for as long as this is entered, not the files in it; False: another one has it."""

    def is_named(self, name: str, handle: int) -> bool:
        """Whether an open file is still the one of this name."""

    def size(self, handle: int) -> int: ...

    def read(self, handle: int, offset: int, length: int) -> bytes: ...

    def write(self, handle: int, offset: int, data: bytes) -> None: ...

    def truncate(self, handle: int, size: int) -> None: ...

    def reserve(self, handle: int, size: int) -> None:
        """Fill a new file with zeros, so that its blocks are its own."""

    def sync(self, handle: int) -> None:
        """Return when what was written to a file survives a crash."""

    def sync_names(self) -> None:
        """Return when the names in the directory survive a crash."""

    def rename(self, name: str, new_name: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def keep_copy(self, name: str) -> None:
        """Copy a file into the folder `quarantine`, if it is not there already."""

    def close(self, handle: int) -> None: ...


_disks: WeakSet[RealDisk] = WeakSet()
"""All that are in use in this process."""


class RealDisk:
    """A directory of the file system."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handles: set[int] = set()
        _disks.add(self)

    def prepare(self) -> None:
        missing = [path for path in (self._directory, *self._directory.parents) if not path.exists()]
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in missing:
            _sync_directory(path.parent)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self._directory) if entry.is_file())

    def create(self, name: str) -> int:
        return self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)

    def open(self, name: str) -> int:
        return self._open(name, os.O_RDWR | os.O_CLOEXEC)

    def _open(self, name: str, flags: int) -> int:
        handle = os.open(self._directory / name, flags, 0o600)
        self._handles.add(handle)
        return handle

    def lock(self, name: str) -> int | None:
        handle = self._open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.is_named(name, handle):  # and not a file of that name that somebody has just removed
                return handle
        except BlockingIOError:
            pass
        except BaseException:
            self.close(handle)
            raise
        self.close(handle)
        return None

    def is_taken(self, name: str) -> bool:
        """Whether somebody has a file locked, for one who may only read it. Whoever tries to lock it just now is
        refused, so that this is asked while one is alone."""
        try:
            handle = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    @contextmanager
    def alone(self) -> Iterator[bool]:
        # No file of its own, which a full disk could refuse, and which could stay behind.
        handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)  # a process that was forked meanwhile has the same lock
        finally:
            os.close(handle)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def read(self, handle: int, offset: int, length: int) -> bytes:
        parts = []
        while length > 0 and (part := os.pread(handle, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def write(self, handle: int, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def reserve(self, handle: int, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:  # macOS
            os.pwrite(handle, bytes(size), 0)

    def sync(self, handle: int) -> None:
        if sys.platform == "darwin":
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # fsync itself does not reach the platter there
        else:
            os.fdatasync(handle)

    def sync_names(self) -> None:
        _sync_directory(self._directory)

    def rename(self, name: str, new_name: str) -> None:
        os.rename(self._directory / name, self._directory / new_name)

    def remove(self, name: str) -> None:
        os.unlink(self._directory / name)

    def keep_copy(self, name: str) -> None:
        folder = self._directory / "quarantine"
        folder.mkdir(exist_ok=True, mode=0o700)
        kept = folder / name
        if not kept.exists():
            content = (self._directory / name).read_bytes()
            partial = folder / f"{name}.partial"
            partial.write_bytes(content)
            partial.rename(kept)

    def close(self, handle: int) -> None:
        if handle in self._handles:  # else it was closed in this process, which is a forked child
            self._handles.discard(handle)
            os.close(handle)

    def leave_to_parent(self) -> None:
        """Close all files in a forked child: a lock lasts for as long as anybody has its file open."""
        while self._handles:
            os.close(self._handles.pop())

    def is_named(self, name: str, handle: int) -> bool:
        try:
            there = os.stat(self._directory / name)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(handle))


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _leave_all_to_parent() -> None:
    for disk in list(_disks):
        disk.leave_to_parent()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_all_to_parent)
