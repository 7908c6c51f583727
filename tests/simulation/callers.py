"""The application: one caller per thread, who repeats what failed, gives up now and then, and checks the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.errors import CheckpointUnavailableError, JournalFullError
from tests.simulation.ledger import Ledger
from tests.simulation.process import Process
from tests.simulation.script import Read, Write, config_of

LATE = 0.1
"""Seconds that a call may take longer than its deadline (invariant L)."""


class Caller:
    """Follows the script of one thread from where an earlier process left it."""

    def __init__(self, process: Process, ledger: Ledger, thread_id: str) -> None:
        self._process = process
        self._world = process.world
        self._ledger = ledger
        self._thread_id = thread_id
        self._shown: dict[str, str] = {}
        """The newest checkpoint that this process has shown, by namespace."""

    async def follow(self) -> None:
        while (batch := self._ledger.batch(self._thread_id)) is not None:
            await asyncio.sleep(batch.pause)
            open_writes = [write for write in batch.writes if id(write) not in self._ledger.acknowledged]
            await asyncio.gather(*(self._write(write) for write in open_writes), *map(self._read, batch.reads))
            if any(write.method == "adelete_thread" for write in batch.writes):
                self._shown.clear()
            self._ledger.position[self._thread_id] += 1

    async def _write(self, write: Write) -> None:
        """Repeat a call until it is acknowledged."""
        while True:
            patience = self._world.random.choice([None, None, None, self._world.random.uniform(0.0, 1.5)])
            method = getattr(self._process.parts.saver, write.method)
            # LangGraph reads a thread before it writes to it, by which the saver knows that it has no owner.
            self._process.parts.threads.owners.without_owner[self._thread_id] = None
            error = await self._call(f"{write.method} {write.operation.thread_id}", method(*write.arguments), patience)
            if not isinstance(error, BaseException):
                self._ledger.acknowledge(write)
                return
            await asyncio.sleep(self._world.random.uniform(0.0, 1.0))

    async def _read(self, read: Read) -> None:
        key = read.thread_id, read.checkpoint_ns
        before, written = self._ledger.known(key), self._ledger.written(key)
        shown = self._shown.get(read.checkpoint_ns, "")
        held = self._holds_checkpoint(read)
        answer = await self._call(f"read {read}", self._ask(read), None)
        if isinstance(answer, BaseException):
            if held and self._holds_checkpoint(read):
                self._world.problem(f"{read} was not answered, although the journal holds what was asked for: {answer}")
            return
        for fault in self._ledger.faults_of(read, answer, before, written):
            self._world.problem(fault)
        if read.kind == "newest":
            newest = max((found.checkpoint["id"] for found in answer), default="")
            if newest < shown:
                self._world.problem(f"M: {read} shows {newest!r} after {shown} was shown")
            self._shown[read.checkpoint_ns] = max(newest, self._shown.get(read.checkpoint_ns, ""))

    async def _ask(self, read: Read) -> list[CheckpointTuple]:
        saver, config = self._process.parts.saver, config_of(read.thread_id, read.checkpoint_ns, read.checkpoint_id)
        if read.kind == "list":
            return [found async for found in saver.alist(config)]
        found = await saver.aget_tuple(config)
        return [] if found is None else [found]

    async def _call(self, what: str, call: Coroutine[Any, Any, Any], patience: float | None) -> Any:
        """Make a call, give it up after `patience` seconds, and return its answer or how it failed."""
        begun = self._world.now
        self._world.note(f"{what} is called")
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait({task}, timeout=patience)
        finally:
            task.cancel()
        await asyncio.wait({task})
        seconds = self._world.now - begun
        if seconds > self._process.config.deadline + LATE:
            self._world.problem(f"L: {what} took {seconds:.3f} s")
        if task.cancelled():
            self._world.note(f"{what}: given up")
            return asyncio.CancelledError()
        error = task.exception()
        if error is not None and not isinstance(error, (CheckpointUnavailableError, JournalFullError)):
            self._world.problem(f"{what} failed with {error!r}")
        answer = task.result() if error is None else error
        self._world.note(f"{what}: {type(answer).__name__ if error is not None else 'done'}")
        return answer

    def _holds_checkpoint(self, read: Read) -> bool:
        """Whether the newest checkpoint of a namespace is in the journal of this process."""
        if read.kind != "newest":
            return False
        held = False
        for entry in self._process.journal.entries(read.thread_id):
            if entry.name == "delete":
                held = False
            elif entry.name == "put" and entry.checkpoint_ns == read.checkpoint_ns:
                held = True
        return held
