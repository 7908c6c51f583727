"""What the journal asks of a file system, in one directory; which kind that is, who holds a file in it, and what a
caller is told when it fails. No decisions, and nothing is caught.

The simulation has another disk, which tears, fills and fails.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, contextmanager, suppress
from mmap import mmap
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from enhanced_checkpointing.errors import CheckpointUnavailableError, JournalFullError, redact
from enhanced_checkpointing.private_files import (
    FOLDER_MODE,
    UntrustedFileError,
    copy_own,
    create_private,
    make_private_folder,
    open_or_create,
    open_own,
    own_directory,
)

if sys.platform != "win32":
    import fcntl


QUARANTINE = "quarantine"
"""The folder with copies of damaged files."""


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

    def share(self, name: str, size: int) -> tuple[int, memoryview]:
        """Open a file, made where it is missing, and map so many bytes of it: others who do so see what is written."""

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
    """A directory of the file system, of which only what is our own is opened: see `private_files`.

    Besides `OSError` in general, everything that opens something raises `UntrustedFileError`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handles: set[int] = set()
        _disks.add(self)

    def prepare(self) -> None:
        for path in make_private_folder(self._directory):
            _sync_directory(path.parent)
        with self._opened():
            pass  # it is trusted

    def _opened(self) -> AbstractContextManager[int]:
        """The directory, opened and judged anew: it may be another one by now."""
        return own_directory(self._directory)

    def names(self) -> list[str]:
        with self._opened() as folder, os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))

    def create(self, name: str) -> int:
        with self._opened() as folder:
            return self._held(create_private(name, folder=folder))

    def open(self, name: str) -> int:
        return self._open(name, os.O_RDWR)

    def _open(self, name: str, flags: int) -> int:
        with self._opened() as folder:
            return self._held(open_own(name, flags, folder=folder))

    def _held(self, handle: int) -> int:
        self._handles.add(handle)
        return handle

    def lock(self, name: str) -> int | None:
        with self._opened() as folder:
            handle = self._held(open_or_create(name, folder=folder))
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
            handle = self._open(name, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            self.close(handle)
        return False

    @contextmanager
    def alone(self) -> Iterator[bool]:
        # No file of its own, which a full disk could refuse, and which could stay behind.
        with self._opened() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)  # a process that was forked meanwhile has the same lock

    def share(self, name: str, size: int) -> tuple[int, memoryview]:
        with self._opened() as folder:
            handle = self._held(open_or_create(name, folder=folder))
        try:
            if os.fstat(handle).st_size < size:
                self.reserve(handle, size)  # else a full disk would end the process that writes to it
            return handle, memoryview(mmap(handle, size))
        except BaseException:
            self.close(handle)
            raise

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
        with self._opened() as folder:
            os.fsync(folder)

    def rename(self, name: str, new_name: str) -> None:
        with self._opened() as folder:
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=folder)

    def remove(self, name: str) -> None:
        with self._opened() as folder:
            os.unlink(name, dir_fd=folder)

    def keep_copy(self, name: str) -> None:
        with self._opened() as folder:
            with suppress(FileExistsError):
                os.mkdir(QUARANTINE, FOLDER_MODE, dir_fd=folder)
            with own_directory(QUARANTINE, folder=folder) as quarantine:
                if name not in os.listdir(quarantine):
                    partial = f"{name}.partial"
                    with suppress(FileNotFoundError):  # of a process that died meanwhile
                        os.unlink(partial, dir_fd=quarantine)
                    copy_own(name, folder, partial, quarantine)
                    os.rename(partial, name, src_dir_fd=quarantine, dst_dir_fd=quarantine)

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
            with self._opened() as folder:
                there = os.stat(name, dir_fd=folder, follow_symlinks=False)
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


NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ocfs2", "gfs2", "beegfs"}
    | {"fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "ncpfs", "davfs"}
)

IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def network_filesystem(directory: Path) -> str | None:
    """The kind of network file system that a directory is on; None on a local one, and where it cannot be told."""
    return _one_of(NETWORK, directory)


def memory_filesystem(directory: Path) -> str | None:
    """The kind of file system in memory that a directory is on; None on a disk, and where it cannot be told."""
    return _one_of(IN_MEMORY, directory)


def _one_of(kinds: Set[str], directory: Path) -> str | None:
    import psutil  # takes tens of milliseconds, and only a start and a check of the journal ask it

    directory, found = directory.resolve(), (0, "")
    for mount in psutil.disk_partitions(all=True):
        point = Path(mount.mountpoint)
        if directory.is_relative_to(point) and len(point.parts) >= found[0]:  # of two on one point, the later hides one
            found = len(point.parts), mount.fstype
    return found[1] if found[1] in kinds else None


LOCKS = Path("/proc/locks")


def holders(path: Path, locks: Path = LOCKS) -> tuple[int, ...]:
    """The processes that hold a lock on a file or directory, as far as this machine tells: Linux, the same container.

    Raises:
        OSError: there is no such file.
    """
    if not locks.exists():
        return ()
    return holders_in(locks.read_text(), path.stat())


def holders_in(text: str, file: os.stat_result) -> tuple[int, ...]:
    """The process ids in the words of `/proc/locks`. Pure.

    Some file systems show another device there than to whoever looks at a file, so that this one counts only where
    several files have the same number.
    """
    found: dict[int, tuple[int, int]] = {}
    for line in text.splitlines():
        fields = line.replace("-> ", "").split()
        if len(fields) < 6 or fields[1] != "FLOCK":
            continue
        major, minor, inode = fields[5].split(":")
        if int(inode) == file.st_ino and int(fields[4]) > 0:
            found[int(fields[4])] = int(major, 16), int(minor, 16)
    here = os.major(file.st_dev), os.minor(file.st_dev)
    same = [process_id for process_id, device in found.items() if device == here]
    return tuple(sorted(same or found))


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a directory that waiting does not mend."""


def refusal(error: OSError) -> JournalFullError | CheckpointUnavailableError:
    """The error of a write that the journal's disk did not take."""
    fate = (
        "so this write was not accepted: it is neither in the primary nor in the journal. Nothing older was dropped, "
        "and what is there goes on being drained."
    )
    if error.errno in FULL:
        return JournalFullError(
            f"The disk of the journal is full ({reason(error)}), {fate} Make room where CHECKPOINT_JOURNAL_DIR is, or "
            "bring the primary back."
        )
    return CheckpointUnavailableError(
        f"The journal cannot be written ({reason(error)}), {fate} Look at the disk of CHECKPOINT_JOURNAL_DIR, or bring "
        "the primary back."
    )


def unusable(error: OSError) -> str:
    """Why a start with this directory is refused."""
    if isinstance(error, UntrustedFileError):
        return (
            f"The journal's directory cannot be trusted ({reason(error)}), so nothing in it was read or changed. Do "
            "that, or set CHECKPOINT_JOURNAL_DIR to a directory that is this process's user's and that no other user "
            "may write."
        )
    return (
        f"The journal's directory cannot be used ({reason(error)}), so what is acknowledged in an outage could not "
        "survive this process. Nothing was stored. Set CHECKPOINT_JOURNAL_DIR to a directory on a local disk that this "
        "process may write, or accept that with CHECKPOINT_JOURNAL=memory."
    )


def unreadable(error: OSError) -> str:
    """Why a start is refused that could not see what earlier processes acknowledged."""
    return (
        f"The journal cannot be read ({reason(error)}), and may hold what an earlier process acknowledged. Nothing in "
        "it was changed. Mend the disk of CHECKPOINT_JOURNAL_DIR; or set it to another directory, which leaves what is "
        "in this one behind."
    )


def reason(error: OSError) -> str:
    """What the system says, with the name of the file."""
    if isinstance(error, UntrustedFileError):
        return redact(f"{error.filename}: {error.strerror}")
    return redact(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
