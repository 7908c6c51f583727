"""Whether a file is where it was opened: SQLite goes on writing to one that was moved, deleted or replaced since."""

from __future__ import annotations

import os


class MovedError(OSError):
    """The file that is open is not the one at its path any more."""


class OrphanedLogError(OSError):
    """There is no file at a path, but the log of one, which SQLite would drop for the sake of a new file."""


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
            f"{self.path} was moved, deleted or replaced while it was open. Put it back, with its -wal and -shm, or "
            "make a new one with `checkpointing setup`: what waits in the journal is drained into it."
        )


def check_log(path: str) -> None:
    """Return if nothing is lost by a new file at a path where there may be none.

    Raises:
        OrphanedLogError: commits of a file that was there are in its log, and only there.
    """
    if (log := orphaned_log(path)) is not None:
        raise OrphanedLogError(f"{path} is not there, but its log is: {log}")


def orphaned_log(path: str) -> str | None:
    """The file with the commits that waited to be folded into the file at a path, where that one has gone."""
    log = f"{os.path.realpath(path)}-wal"
    # In this order: whoever makes a database makes its file first.
    return log if os.path.exists(log) and os.path.getsize(log) and not os.path.exists(path) else None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
