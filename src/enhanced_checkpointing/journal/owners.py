"""Who holds a file of the journal locked, told without taking the lock."""

from __future__ import annotations

import os
from pathlib import Path

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
