"""Which threads were erased, and when: what was made of them before must not come back, from no process's memory.

In the journal's directory is one append-only file of lines, each with a hash of the database and the thread's id, and
the time; every process of the directory reads it. Its name begins with a dot: earlier releases leave it alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from enhanced_checkpointing.identifiers import created_at
from enhanced_checkpointing.private_files import append_durably, appending, make_private_folder, open_own, own_directory

NAME = ".erased"


class Tombstones:
    """Those of one database, told by its `home`. Without a directory they are this process's only.

    `add` and `refresh` use the disk, and raise `OSError`; what is asked is answered from memory.
    """

    def __init__(self, directory: Path | None, home: str) -> None:
        self.directory = directory
        self._home = home
        self.erased: dict[str, float] = {}
        """By the hash of a thread: when it was. Always this very dictionary, so that a call may look at it alone."""
        self._read = 0

    @property
    def has_any(self) -> bool:
        """Whether anything was erased, as far as this process knows."""
        return bool(self.erased)

    def set(self, thread_ids: Iterable[str], at: float) -> None:
        """Know in this process that threads were erased at this time, wall-clock seconds."""
        self.erased.update({self._key(thread_id): at for thread_id in thread_ids})

    def add(self, thread_ids: Iterable[str], at: float) -> None:
        """Let every process of the directory know; it is durable when this returns."""
        if self.directory is None:
            return
        # With a line's end in front, as a process may have died within the line before.
        lines = "".join(f"\n{self._key(thread_id)} {at!r}\n" for thread_id in thread_ids).encode()
        make_private_folder(self.directory)
        with own_directory(self.directory) as folder, appending(NAME, folder=folder) as handle:
            append_durably(handle, lines)
            os.fsync(folder)

    def refresh(self) -> bool:
        """Read what other processes have added; whether there was anything."""
        if self.directory is None:
            return False
        try:
            with own_directory(self.directory) as folder:
                handle = open_own(NAME, os.O_RDONLY, folder=folder)
        except FileNotFoundError:
            return False
        with open(handle, "rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        before = len(self.erased), sum(self.erased.values())
        for line in whole.splitlines():
            key, _, told = line.decode(errors="replace").partition(" ")
            with suppress(ValueError):  # a line that is cut short was never acknowledged
                if len(key) == len(self._key("")):
                    self.erased[key] = max(float(told), self.erased.get(key, 0.0))
        return before != (len(self.erased), sum(self.erased.values()))

    def erased_at(self, thread_id: str) -> float | None:
        """When a thread was erased; None: it was not."""
        return self.erased.get(self._key(thread_id)) if self.erased else None

    def forbids(self, thread_id: str, *checkpoint_ids: str | None) -> bool:
        """Whether what belongs to one of these checkpoints is gone for good: the checkpoint was made before its thread
        was erased, or its id does not tell when."""
        at = self.erased_at(thread_id)
        return at is not None and any((created_at(one) or 0.0) <= at for one in checkpoint_ids if one is not None)

    def _key(self, thread_id: str) -> str:
        return hashlib.blake2b(f"{self._home}\0{thread_id}".encode(), digest_size=16).hexdigest()
