"""Files that hold what people said to agents: only our own are opened, and new ones are private.

Another user who may write a directory can plant links, pipes and files of their own in it. So the directory is opened
first and judged by its descriptor, each file is opened relative to that, without following a link and without waiting,
and is judged once it is open: there is no moment in between.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl
    import pwd

FILE_MODE, FOLDER_MODE = 0o600, 0o700

_ANYBODY, _GROUP = 0o002, 0o020
_SHARED = 0o2070
"""What Kubernetes' fsGroup sets in a directory (it sets bits, and takes none): the group's rights and setgid."""

# Nothing is followed, waited for, or made the terminal of this process. Windows has none of these.
_CAREFULLY = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"))
_AS_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0) | os.O_RDONLY


class UntrustedFileError(OSError):
    """A file or directory may be another user's doing, and is left alone. `strerror` says why, and what to do."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(errno.EPERM, fault, path)


def directory_fault(found: os.stat_result, user: int, groups: Collection[int]) -> str | None:
    """Why a directory is not trusted; None: it is this user's, or root's and shared with a group of this process, and
    no other user may write it. Pure."""
    shared = _is_shared(found, groups)
    if found.st_uid != user and not (found.st_uid == 0 and shared):
        return (
            f"it belongs to {user_of(found.st_uid)}, and this process runs as {user_of(user)}: give it to that user "
            "(chown), or run as the one that it belongs to"
        )
    if found.st_mode & _ANYBODY or (found.st_mode & _GROUP and not shared):
        return "other users may write it, and could have forged what is in it: look at its files, then chmod go-w"
    return None


def file_fault(found: os.stat_result, folder: os.stat_result, user: int, groups: Collection[int]) -> str | None:
    """Why a file that is open is not trusted, in a directory that is. Pure."""
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file: move it elsewhere"
    if found.st_nlink > 1:
        return "it is a hard link, so that it may be another file, too: move it elsewhere"
    shared = _is_shared(folder, groups) and found.st_gid == folder.st_gid
    if found.st_uid != user and not shared:
        return (
            f"it belongs to {user_of(found.st_uid)}, and this process runs as {user_of(user)}: move it elsewhere, or "
            "give it to that user (chown) if it is known to be the journal's"
        )
    if found.st_mode & _ANYBODY or (found.st_mode & _GROUP and not shared):
        return "other users may write it, and could have forged what is in it: move it elsewhere, or chmod go-w"
    return None


@contextmanager
def own_directory(path: Path | str, *, folder: int | None = None) -> Iterator[int]:
    """A directory that is trusted, opened; with `folder`, one in the directory that is open there, and no link.

    A link on the way to it counts only if it is this user's or root's.

    Raises:
        UntrustedFileError: it is not to be trusted.
        OSError: it cannot be opened.
    """
    if folder is None:
        _check_links(Path(path))
    handle = os.open(path, _AS_FOLDER | (0 if folder is None else _CAREFULLY), dir_fd=folder)
    try:
        fault = directory_fault(os.fstat(handle), os.geteuid(), _groups())
        if fault is not None:
            raise UntrustedFileError(str(path), fault)
        yield handle
    finally:
        os.close(handle)


def open_own(name: str, flags: int, *, folder: int) -> int:
    """Open a regular file of ours that is in an open directory.

    Raises:
        UntrustedFileError: it is a link, or not to be trusted.
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(name, flags | _CAREFULLY, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UntrustedFileError(name, "it is a link: move it elsewhere") from None
        if error.errno == errno.ENXIO:
            raise UntrustedFileError(name, "it is no regular file: move it elsewhere") from None
        raise
    try:
        found = os.fstat(handle)
        fault = file_fault(found, os.fstat(folder), os.geteuid(), _groups())
        if fault is not None:
            raise UntrustedFileError(name, fault)
        os.set_blocking(handle, True)
    except BaseException:
        os.close(handle)
        raise
    return handle


def create_private(path: Path | str, *, folder: int | None = None) -> int:
    """A new private file, whatever the umask, open for reading and writing.

    Raises:
        FileExistsError: there is something of that name.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CAREFULLY, FILE_MODE, dir_fd=folder)
    if sys.platform != "win32":
        os.fchmod(handle, FILE_MODE)
    return handle


def open_or_create(name: str, flags: int = 0, *, folder: int) -> int:
    """A file of ours in an open directory, made where it is missing, open for reading and writing. Raises as `open_own`
    does."""
    with suppress(FileExistsError):
        os.close(create_private(name, folder=folder))
    return open_own(name, os.O_RDWR | flags, folder=folder)


@contextmanager
def appending(name: str, *, folder: int) -> Iterator[int]:
    """A file as `open_or_create` opens it, to append to, locked for one writer."""
    handle = open_or_create(name, os.O_APPEND, folder=folder)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def append_durably(handle: int, data: bytes) -> None:
    """Write all of `data` to the end of a file; it is on the disk when this returns."""
    while data:
        data = data[os.write(handle, data) :]
    os.fsync(handle)


def copy_own(name: str, folder: int, new_name: str, new_folder: int) -> None:
    """Copy a file of ours into a new one, both in open directories. Raises as `open_own` and `create_private` do."""
    with (
        open(open_own(name, os.O_RDONLY, folder=folder), "rb") as source,
        open(create_private(new_name, folder=new_folder), "wb") as target,
    ):
        shutil.copyfileobj(source, target)


def open_lock(path: Path) -> int:
    """A file that is only locked, made where it is missing: never a link, and nothing in it counts.

    Raises:
        OSError: it is a link, or cannot be opened.
    """
    try:
        return create_private(path)
    except FileExistsError:
        return os.open(path, os.O_RDWR | _CAREFULLY)


def make_private_folder(path: Path) -> list[Path]:
    """Make a folder and its missing parents, private to this user; returns those that were missing."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        try:
            each.mkdir(mode=FOLDER_MODE)
        except FileExistsError:  # another process was faster
            if not each.is_dir():
                raise
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return missing


def user_of(user_id: int) -> str:
    """The name of a user, or the number where there is none, as in many containers."""
    try:
        return f"user {pwd.getpwuid(user_id).pw_name}"
    except KeyError:
        return f"user {user_id}"


def _is_shared(folder: os.stat_result, groups: Collection[int]) -> bool:
    return folder.st_mode & _SHARED == _SHARED and folder.st_gid in groups


def _groups() -> Collection[int]:
    return {os.getegid(), *os.getgroups()}


def _check_links(path: Path) -> None:
    for each in (*reversed(path.parents), path):
        try:
            found = os.lstat(each)
        except OSError:
            return  # what opens it says so
        if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
            raise UntrustedFileError(str(each), f"it is a link of {user_of(found.st_uid)}: name a directory without it")
