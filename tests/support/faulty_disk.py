"""A disk whose calls fail, wait or find it full when a test says so; what it does otherwise is real."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enhanced_checkpointing.journal.disk import RealDisk

COUNTED = frozenset({"write", "sync", "truncate", "create", "reserve", "rename", "remove", "sync_names"})
"""The calls that change something, which are those that `fails_at` counts."""


class Died(BaseException):
    """The process was killed: nothing after this runs in it."""


class FaultyDisk(RealDisk):
    """Counts its calls in `calls`. The `fails_at`-th that changes something fails, counted from 1.

    `error`: an errno; None: the process dies there. `lasting`: all that come after it fail, too. `short`: a write that
    fails has written the first half. `full`: no file can take more bytes than it has. `gate`: a sync waits until it
    is set. Syncs are not made, as no power fails here.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fails_at: int | None = None,
        error: int | None = errno.EIO,
        lasting: bool = False,
        short: bool = False,
    ) -> None:
        super().__init__(directory)
        self.calls: list[str] = []
        self.fails_at = fails_at
        self.error = error
        self.lasting = lasting
        self.short = short
        self.full = False
        self.failing: set[str] = set()
        """The calls that fail from now on, by name."""
        self.gate: threading.Event | None = None
        self.busy_locks = 0
        """How many locks somebody else takes first."""

    def heal(self) -> None:
        self.fails_at, self.full = None, False
        self.failing.clear()

    @property
    def counted(self) -> int:
        """How many calls there were that change something."""
        return sum(call in COUNTED for call in self.calls)

    def count(self, name: str) -> int:
        return self.calls.count(name)

    def _step(self, name: str) -> None:
        self.calls.append(name)
        counted = self.counted
        at = self.fails_at if name in COUNTED else None
        if name in self.failing or (at is not None and (counted == at or (self.lasting and counted > at))):
            if self.error is None:
                raise Died
            raise OSError(self.error, os.strerror(self.error))

    def prepare(self) -> None:
        self._step("prepare")
        super().prepare()

    def names(self) -> list[str]:
        self._step("names")
        return super().names()

    def create(self, name: str) -> int:
        self._step("create")
        return super().create(name)

    def open(self, name: str) -> int:
        self._step("open")
        return super().open(name)

    def lock(self, name: str) -> int | None:
        self._step("lock")
        if self.busy_locks:
            self.busy_locks -= 1
            return None
        return super().lock(name)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        self._step("alone")
        with super().alone() as alone:
            yield alone

    def read(self, handle: int, offset: int, length: int) -> bytes:
        self._step("read")
        return super().read(handle, offset, length)

    def write(self, handle: int, offset: int, data: bytes) -> None:
        try:
            self._step("write")
        except (OSError, Died):
            if self.short:
                super().write(handle, offset, data[: len(data) // 2])
            raise
        room = self.size(handle) - offset
        if self.full and room < len(data):
            super().write(handle, offset, data[: max(0, room)])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(handle, offset, data)

    def truncate(self, handle: int, size: int) -> None:
        self._step("truncate")
        super().truncate(handle, size)

    def reserve(self, handle: int, size: int) -> None:
        self._step("reserve")
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().reserve(handle, size)

    def sync(self, handle: int) -> None:
        if self.gate is not None:
            self.gate.wait(10.0)
        self._step("sync")

    def sync_names(self) -> None:
        self._step("sync_names")

    def rename(self, name: str, new_name: str) -> None:
        self._step("rename")
        super().rename(name, new_name)

    def remove(self, name: str) -> None:
        self._step("remove")
        super().remove(name)

    def keep_copy(self, name: str) -> None:
        self._step("keep_copy")
        super().keep_copy(name)
