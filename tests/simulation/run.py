"""START HERE: one run of one seed. Processes live and die over a world that breaks, until all calls are answered."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from enhanced_checkpointing.journal import log_file as book
from enhanced_checkpointing.recovery import drain as replay
from enhanced_checkpointing.resilience import group_commit
from enhanced_checkpointing.saver import write_path as writes
from tests.simulation.callers import Caller
from tests.simulation.ledger import Ledger
from tests.simulation.platter import Platter
from tests.simulation.process import GRACE, Process
from tests.simulation.script import HORIZON, Fault, Script, make_script
from tests.simulation.server import Mode, Server
from tests.simulation.world import Broken, Killed, World

DRAINED_WITHIN = 120.0
"""Seconds after the last fault in which everything must be drained."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run ended. `trace_hash` is the same for every run of the same seed."""

    seed: int
    problems: list[str]
    trace: list[str]
    trace_hash: str


def play(seed: int) -> Verdict:
    """Run one seed."""
    life = _Play(seed)
    state = random.getstate()
    random.seed(seed)  # of the retries' pauses
    try:
        with _small_limits(life.script), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that a dead process never came to await
            life.run()
    except Broken as broken:
        life.world.problem(str(broken))
    except Exception as error:  # noqa: BLE001  # whatever the code under test ends with: the seed is to be told
        life.world.problem(f"unforeseen: {error!r}")
    finally:
        random.setstate(state)
    return Verdict(seed, life.world.problems, life.world.lines, life.world.trace_hash())


class _Play:
    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.script = make_script(seed)
        self._ledger = Ledger(self.script)
        self._server = Server(self.world)
        self._platter = Platter(self.world)
        self._power = False
        self._stop: asyncio.Event | None = None
        self._calm_at = self.world.now + HORIZON
        for fault in self.script.faults:
            self.world.after(fault.at, lambda fault=fault: self._break(fault))  # type: ignore[misc]

    def run(self) -> None:
        """Everything that a seed decided, and what is to be true after it."""
        self._live_to_the_end()
        for problem in (*self._ledger.differences(self._server.saver), *self._ledger.disorder(self._server.applied)):
            self.world.problem(problem)
        self._clear_directory()

    def _live_to_the_end(self) -> None:
        """Live and die until a process has come to its end with everything done."""
        while not self._live():
            self.world.note("our process is dead")
            self._server.lose_client()
            self._platter.lose_process(power=self._power)
            self.world.fuse, self._power = None, False
            self.world.sleep(self.world.random.uniform(0.01, 3.0))
            self.world.wall_offset += self.world.random.choice([0.0, 0.0, -3600.0])

    def _clear_directory(self) -> None:
        """What could not be removed when the disk failed, the next process removes that is not killed before."""
        if not self._platter.names:
            return
        self.world.note(f"left in the journal's directory: {sorted(self._platter.names)}")
        self._live_to_the_end()
        if self._platter.names:
            self.world.problem(f"K: the journal's directory is not empty: {sorted(self._platter.names)}")

    def _live(self) -> bool:
        """One process, to its end; True if nothing is left to do."""
        process = Process(
            self.world, self._server, self._platter, self.script.settings, compares_heads=self.script.compares_heads
        )
        try:
            return process.loop.run_until_complete(self._work(process))
        except Killed:
            return False
        finally:
            process.die()

    async def _work(self, process: Process) -> bool:
        self._stop = asyncio.Event()
        if not await process.open():
            return False
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        working = asyncio.create_task(self._call_all(process), name="callers")
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await working
            while not stopping.done() and (rest := max(self._calm_at, process.worker.busy_until) - self.world.now) > 0:
                await asyncio.wait({stopping}, timeout=rest)
        finished = not stopping.done()
        working.cancel()
        stopping.cancel()
        await asyncio.wait({working, stopping})
        drained = await process.close(DRAINED_WITHIN if finished else GRACE)
        if finished and not drained:
            self.world.problem(f"D: not drained in the end: {process.journal.status()}")
        status = process.journal.status()
        if status.damages or status.frozen_threads or self._platter.copies:
            self.world.problem(f"the journal says that it is damaged: {status}")
        for problem in process.left_behind():
            self.world.problem(problem)
        return finished

    async def _call_all(self, process: Process) -> None:
        callers = [Caller(process, self._ledger, thread_id) for thread_id in self.script.threads]
        await asyncio.gather(*(caller.follow() for caller in callers))

    def _break(self, fault: Fault) -> None:
        self.world.note(f"fault: {fault.what} {fault.detail} for {fault.seconds:.2f} s")
        platter, world = self._platter, self.world
        lasting = min(fault.seconds, max(0.0, self._calm_at - world.now))
        match fault.what:
            case "primary":
                self._server.become(fault.detail)
                world.after(lasting, lambda: self._server.become(Mode.UP))
            case "fails once":
                platter.fails_next = fault.detail
                world.after(lasting, lambda: setattr(platter, "fails_next", None))
            case "failing":
                platter.failing = frozenset({"write", "sync", "create", "truncate", "sync_names", fault.detail})
                world.after(lasting, lambda: setattr(platter, "failing", frozenset()))
            case "full" | "slow":
                setattr(platter, fault.what, True)
                world.after(lasting, lambda: setattr(platter, fault.what, False))
            case "kill" | "power":
                world.fuse, self._power = fault.detail, fault.what == "power"
            case "stop":
                if self._stop is not None:
                    self._stop.set()


@contextmanager
def _small_limits(script: Script) -> Iterator[None]:
    """Make the code's own limits small enough for a few operations to reach them."""
    owners = {
        "CHUNK": replay,
        "FILE_LIMIT": book,
        "TIDY_ABOVE": book,
        "BATCH": writes,
        "USED_TO_BE_ALONE": group_commit,
    }
    before = {name: getattr(owner, name) for name, owner in owners.items()}
    for name, owner in owners.items():
        setattr(owner, name, script.limits[name])
    try:
        yield
    finally:
        for name, owner in owners.items():
            setattr(owner, name, before[name])
