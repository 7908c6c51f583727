"""Three worker processes of one application, and conversations whose turns go to any of them.

Run as a program it is one worker: a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from enhanced_checkpointing import CheckpointerError
from enhanced_checkpointing.observability.events import Diverged, Event
from tests.support.checkpointer import opened, postgres, saver_of
from tests.support.recorder import Recorder
from tests.support.two_processes import one_node

ROOT = Path(__file__).parents[2]
CONVERSATIONS = 8
ANSWER_SECONDS = 8.0
"""How long a client waits for an answer: far longer than any deadline."""

START_SECONDS = 60.0


class Worker:
    """One process, as its clients see it."""

    def __init__(self, url: str, journal_dir: Path) -> None:
        self._command = [sys.executable, "-m", "tests.support.three_workers", url, str(journal_dir)]
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self.diverged: set[str] = set()
        """The threads of which it said that they have another branch."""

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def kill(self) -> None:
        assert self._process is not None
        assert self._reading is not None
        self._process.kill()
        await self._process.wait()
        await self._reading

    async def ask(self, seconds: float = ANSWER_SECONDS, **question: Any) -> Any:
        """Its answer.

        Raises:
            ConnectionError: it died, or does not answer.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        number = random.getrandbits(48)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._process.stdin.write(json.dumps({"number": number, **question}).encode() + b"\n")
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise ConnectionError("no answer") from None
        finally:
            del self._asked[number]

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said = json.loads(line)
            if "diverged" in said:
                self.diverged.add(said["diverged"])
            elif (asked := self._asked.get(said["number"])) is not None and not asked.done():
                asked.set_result(said)
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ConnectionError("it died"))


@dataclass
class Tally:
    """What became of the turns of all conversations. `told`: the threads that a worker named as diverged."""

    answered: int = 0
    refused: int = 0
    backwards: list[str] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    """For every conversation whose head lacks turns that were answered: these."""
    told: set[str] = field(default_factory=set)
    unhealthy: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        silently = sorted(set(self.lost) - self.told)
        return (
            f"{self.answered} turns answered, {self.refused} refused, {len(self.backwards)} answers went backwards, "
            f"{len(self.lost)} of {CONVERSATIONS} conversations lost {sum(map(len, self.lost.values()))} turns, "
            f"{len(silently)} of them silently"
        )


class Fleet:
    """The workers, and conversations that go on until they are told to end."""

    def __init__(self, workers: list[Worker], seed: int) -> None:
        self.workers = workers
        self.tally = Tally()
        self._random = random.Random(seed)
        self._turns: dict[str, list[str]] = {f"conversation {number}": [] for number in range(CONVERSATIONS)}
        """The turns of each conversation that were answered."""

    async def talk_during(self, scene: Callable[[], Awaitable[None]]) -> Tally:
        """Let all conversations go on until the scene has ended, and everything has come home."""
        ended = asyncio.Event()
        talking = [asyncio.create_task(self._talk(thread_id, ended)) for thread_id in self._turns]
        await scene()
        ended.set()
        await asyncio.gather(*talking)
        await self._come_home()
        self.tally.told = set().union(*(worker.diverged for worker in self.workers))
        return self.tally

    async def _talk(self, thread_id: str, ended: asyncio.Event) -> None:
        turn = 0
        while not ended.is_set():
            turn += 1
            said = f"turn {turn}"
            try:
                answer = await self._random.choice(self.workers).ask(thread=thread_id, say=said)
            except ConnectionError:
                answer = {}
            if "log" not in answer:
                self.tally.refused += 1
            else:
                self.tally.answered += 1
                if missing := [before for before in self._turns[thread_id] if before not in answer["log"]]:
                    self.tally.backwards.append(f"{thread_id}, {said}: without {missing}")
                self._turns[thread_id].append(said)
            await asyncio.sleep(0.02)

    async def _come_home(self) -> None:
        ends_at = time.monotonic() + 20
        while time.monotonic() < ends_at:
            reports = [await worker.ask(health=True) for worker in self.workers]
            self.tally.unhealthy = [
                report for report in reports if not (report["primary_healthy"] and report["pending"] == 0)
            ]
            if not self.tally.unhealthy:
                return
            await asyncio.sleep(0.1)

    def look(self, url: str) -> None:
        """Compare what was answered with what the database has at the head of each conversation."""
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
            saver = PostgresSaver(connection)
            for thread_id, turns in self._turns.items():
                found = saver.get_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
                log = found.checkpoint["channel_values"].get("log", []) if found is not None else []
                if missing := [turn for turn in turns if turn not in log]:
                    self.tally.lost[thread_id] = missing


@asynccontextmanager
async def fleet(urls: list[str], journal_dir: Path, seed: int = 1) -> AsyncIterator[Fleet]:
    """A worker for each URL, all of them with one journal directory."""
    workers = [Worker(url, journal_dir) for url in urls]
    await asyncio.gather(*(worker.start() for worker in workers))
    try:
        for worker in workers:
            await worker.ask(START_SECONDS, health=True)
        yield Fleet(workers, seed)
    finally:
        for worker in workers:
            await worker.kill()


# One worker


class _TellsOfBranches(Recorder):
    def emit(self, event: Event) -> None:
        if isinstance(event, Diverged):
            _say({"diverged": event.thread_id})


async def _serve(url: str, journal_dir: Path) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with opened(postgres(url, journal_dir=journal_dir, on_unknown_thread="raise")) as manager:
        manager.listen(_TellsOfBranches())
        graph = one_node("say", lambda state: {"log": ["said"]}).compile(checkpointer=saver_of(manager))

        async def answer(question: dict[str, Any]) -> None:
            said: dict[str, Any]
            if "health" in question:
                report = manager.health_status
                said = {"primary_healthy": report["primary_healthy"], "pending": report["journal"]["pending"]}
            else:
                config: RunnableConfig = {"configurable": {"thread_id": question["thread"]}}
                try:
                    said = {"log": (await graph.ainvoke({"log": [question["say"]]}, config))["log"]}
                except CheckpointerError as error:
                    said = {"error": str(error)}
            _say({"number": question["number"], **said})

        answering: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(answer(json.loads(line)))
            answering.add(task)
            task.add_done_callback(answering.discard)


def _say(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))
