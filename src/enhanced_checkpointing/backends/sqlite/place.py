"""Whether a file is where it should be: SQLite goes on writing to one that was moved, deleted or replaced since it was
opened, and drops the log of one that has gone for the sake of a new one."""

from __future__ import annotations

import os


class MovedError(OSError):
    """The file that is open is not the one at its path any more."""


class OrphanedLogError(OSError):
    """There is no file at a path, or an empty one, but the log of one."""


class Place:
    """The path of a file that has just been opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = _identity(path)

    @property
    def is_vacant(self) -> bool:
        """Whether there is no file at the path."""
        return _identity(self.path) is None

    def is_kept(self) -> bool:
        """Whether the file that was opened is still there."""
        return _identity(self.path) == self._file

    def check(self) -> None:
        """Return if the file that was opened is still there.

        Raises:
            MovedError: it is not; who opens the path would not find what is written to it.
        """
        if not self.is_kept():
            raise self.moved()

    def moved(self) -> MovedError:
        return MovedError(
            f"{self.path} was moved, deleted or replaced while it was open. Put it back, with its -wal and -shm; "
            "or move those two away, too, and make a new one with `checkpointing setup`: what waits in the journal is "
            "drained into it."
        )


def check_log(path: str) -> None:
    """Return if nothing is lost by a new file at a path where there may be none.

    Raises:
        OrphanedLogError: commits of a file that was there may be in its log, and only there.
    """
    if (log := orphaned_log(path)) is not None:
        raise OrphanedLogError(orphan_text(path, log))


def orphan_text(path: str, log: str) -> str:
    """What is told of a log without its file."""
    if os.path.exists(path):
        return f"{path} is empty, but its log is there: {log}"
    return f"{path} is not there, but its log is there: {log}"


def orphaned_log(path: str) -> str | None:
    """The file with what may wait to be folded into the file at a path, where that one has gone or is empty."""
    log = f"{os.path.realpath(path)}-wal"
    # In this order: whoever makes a database writes its file first, and whoever closes it last removes its log.
    return log if _size(log) and not _size(path) else None


def is_something_else(path: str) -> bool:
    """Whether there is something at a path that is no file, such as a folder or a device."""
    return os.path.exists(path) and not os.path.isfile(path)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # where it is there and cannot be looked at, opening it tells why
        return 0


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
