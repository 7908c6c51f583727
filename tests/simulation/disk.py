"""The simulated disk as one process sees it: what the journal asks of it, which fails, and takes its time."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tests.simulation.platter import Content, NameChange, Platter
from tests.simulation.world import World

T = TypeVar("T")


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

    @contextmanager
    def alone(self) -> Iterator[bool]:
        self._step("alone", "")
        yield True  # there is one process at a time

    def is_named(self, name: str, handle: int) -> bool:
        return (self._platter.shared.get(name) or self._platter.names.get(name)) is self._file(handle)

    def share(self, name: str, size: int) -> tuple[int, memoryview]:
        self._step("share", name)
        content = self._platter.shared.setdefault(name, Content(bytearray(size)))
        handle = next(self._numbers)
        self.open_files[handle] = content
        return handle, memoryview(content.cached)

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
        if self._platter.shared.pop(name, None) is not None:
            return
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
