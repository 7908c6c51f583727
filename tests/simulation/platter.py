"""A disk in the simulated world: what is cached and what would survive a crash are kept apart."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tests.simulation.world import World

T = TypeVar("T")

SECTOR = 512


@dataclass(slots=True, eq=False)
class Content:
    """One file. `unsynced` are the changes since its last sync: (offset, data) of a write, (size, None) of a cut."""

    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, at: int, data: bytes | None) -> None:
        _change(self.cached, at, data)
        self.unsynced.append((at, data))

    def arrive(self) -> None:
        """All of it reaches the disk."""
        for at, data in self.unsynced:
            _change(self.durable, at, data)
        self.unsynced.clear()


@dataclass(frozen=True, slots=True)
class NameChange:
    """A name that got a file, or lost the one that it had."""

    added: tuple[str, Content] | None
    removed: str | None


class Platter:
    """The directory of the journal. It outlives our process, and what is synced outlives the machine's power."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.names: dict[str, Content] = {}
        self.locked: set[Content] = set()
        self.full = False
        self.slow = False
        self.failing: frozenset[str] = frozenset()
        """What fails from now on, by the name of the call."""
        self.fails_next: str | None = None
        """What fails once."""
        self.copies: set[str] = set()
        self._durable_names: dict[str, Content] = {}
        self._changes: list[NameChange] = []

    def rename(self, change: NameChange) -> None:
        _rename(self.names, change)
        self._changes.append(change)

    def sync_names(self) -> None:
        for change in self._changes:
            _rename(self._durable_names, change)
        self._changes.clear()

    def lose_process(self, *, power: bool) -> None:
        """The process died; with it the machine, if the `power` failed."""
        self.locked.clear()
        if not power:
            return
        random = self._world.random
        kept = [change for change in self._changes if random.random() < 0.5]
        for change in random.choice([kept, self._changes[: len(kept)]]):
            _rename(self._durable_names, change)
        self._changes.clear()
        self.names = dict(self._durable_names)
        for content in self.names.values():
            self.tear(content)
            content.cached = bytearray(content.durable)

    def tear(self, content: Content) -> None:
        """Of what is not synced let some of the changes arrive, and of the others some sectors."""
        random = self._world.random
        whole = random.choice([0, len(content.unsynced), random.randint(0, len(content.unsynced))])
        changes, content.unsynced = content.unsynced, []
        for at, data in changes[:whole]:
            _change(content.durable, at, data)
        rest = changes[whole:]
        share = random.choice([0.0, 0.5, 0.9])
        size = len(content.durable)
        sectors = {at // SECTOR + n for at, data in rest for n in range(-(-len(data or b"") // SECTOR) + 1)}
        for sector in sorted(sectors):
            start, end = sector * SECTOR, min((sector + 1) * SECTOR, len(content.cached))
            if start < end and random.random() < share:
                _change(content.durable, start, bytes(content.cached[start:end]))
        if rest and len(content.durable) > size and random.random() < 0.5:
            _change(content.durable, len(content.cached), None)  # the size arrived, not all of what is in it


class SimulatedDisk:
    """The platter as one process sees it."""

    def __init__(self, world: World, platter: Platter) -> None:
        self._world = world
        self._platter = platter
        self.open_files: dict[int, Content] = {}
        self._numbers = itertools.count(1)

    def prepare(self) -> None:
        self._step("prepare", "")

    def names(self) -> list[str]:
        self._step("names", "")
        return sorted(self._platter.names)

    def create(self, name: str) -> int:
        self._step("create", name)
        if name in self._platter.names:
            raise OSError(errno.EEXIST, "File exists", name)
        return self._opened(self._new(name))

    def open(self, name: str) -> int:
        self._step("open", name)
        return self._opened(self._named(name))

    def lock(self, name: str) -> int | None:
        self._step("lock", name)
        content = self._platter.names.get(name) or self._new(name)
        if content in self._platter.locked:
            return None
        self._platter.locked.add(content)
        return self._opened(content)

    def size(self, handle: int) -> int:
        return len(self._file(handle).cached)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        self._step("read", f"{offset}+{length}")
        return bytes(self._file(handle).cached[offset : offset + length])

    def write(self, handle: int, offset: int, data: bytes) -> None:
        content = self._file(handle)
        room = len(content.cached) - offset if self._platter.full else len(data)
        try:
            self._step("write", f"{offset}+{len(data)}")
        except OSError:
            content.change(offset, data[: self._world.random.randint(0, max(0, min(room, len(data))))])
            raise
        if room < len(data):
            content.change(offset, data[: max(0, room)])
            raise OSError(errno.ENOSPC, "No space left on device")
        content.change(offset, data)
        self._world.step("written")

    def truncate(self, handle: int, size: int) -> None:
        self._step("truncate", str(size))
        self._file(handle).change(size, None)

    def reserve(self, handle: int, size: int) -> None:
        self._step("reserve", str(size))
        if self._platter.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._file(handle).change(0, bytes(size))

    def sync(self, handle: int) -> None:
        content = self._file(handle)
        try:
            self._step("sync", "")
        except OSError:
            self._platter.tear(content)  # what is lost now stays in the cache, and no later sync brings it back
            raise
        content.arrive()
        self._world.step("synced")

    def sync_names(self) -> None:
        self._step("sync_names", "")
        self._platter.sync_names()

    def rename(self, name: str, new_name: str) -> None:
        self._step("rename", f"{name} {new_name}")
        self._platter.rename(NameChange((new_name, self._named(name)), name))

    def remove(self, name: str) -> None:
        self._step("remove", name)
        self._named(name)
        self._platter.rename(NameChange(None, name))

    def keep_copy(self, name: str) -> None:
        self._step("keep_copy", name)
        self._platter.copies.add(name)

    def close(self, handle: int) -> None:
        content = self._file(handle)
        del self.open_files[handle]
        if content not in self.open_files.values():
            self._platter.locked.discard(content)

    def _new(self, name: str) -> Content:
        if self._platter.full and self._world.random.random() < 0.5:
            raise OSError(errno.ENOSPC, "No space left on device", name)
        content = Content()
        self._platter.rename(NameChange((name, content), None))
        return content

    def _opened(self, content: Content) -> int:
        handle = next(self._numbers)
        self.open_files[handle] = content
        return handle

    def _named(self, name: str) -> Content:
        if name not in self._platter.names:
            raise OSError(errno.ENOENT, "No such file or directory", name)
        return self._platter.names[name]

    def _file(self, handle: int) -> Content:
        if handle not in self.open_files:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return self.open_files[handle]

    def _step(self, call: str, what: str) -> None:
        self._world.step(f"disk {call} {what}".rstrip())
        if call in self._platter.failing or call == self._platter.fails_next:
            if call == self._platter.fails_next:
                self._platter.fails_next = None
            self._world.note(f"disk fails to {call}")
            raise OSError(errno.EIO, "Input/output error")


class SimulatedWorker:
    """Runs the journal's work one piece after another, each of which takes its time."""

    def __init__(self, world: World, platter: Platter) -> None:
        self._world = world
        self._platter = platter
        self.busy_until = 0.0
        """When the last work that it was given will be done."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        random = self._world.random
        seconds = random.uniform(0.2, 6.0) if self._platter.slow else random.uniform(0.0001, 0.003)
        self.busy_until = max(self.busy_until, self._world.now) + seconds

        def job() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001  # it belongs to whoever waits for the future
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        loop.call_at(self.busy_until, job)
        return future


def _change(data: bytearray, at: int, new: bytes | None) -> None:
    """Write at an offset, or for None make it that long."""
    if len(data) < at:
        data.extend(bytes(at - len(data)))
    if new is None:
        del data[at:]
    else:
        data[at : at + len(new)] = new


def _rename(names: dict[str, Content], change: NameChange) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.added is not None:
        name, content = change.added
        names[name] = content
