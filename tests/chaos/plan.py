"""Which graph runs when, and the file in which a worker writes down what it did, for whoever comes after it."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

from tests.support.graphs import GRAPHS, Durability, GraphCase

Note: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class WorkerOptions:
    """What the arena tells a worker on its command line. Times are seconds."""

    url: str
    folder: str
    seed: int
    deadline: float

    @property
    def ledger(self) -> Path:
        return Path(self.folder, "ledger.jsonl")


@dataclass(frozen=True)
class Run:
    """One conversation of one graph, on a thread of its own."""

    number: int
    case: GraphCase
    durability: Durability
    caller: str
    """"task": awaits the graph's asynchronous methods; "thread": calls the synchronous ones."""

    @property
    def kind(self) -> str:
        """Runs of one kind leave the same rows."""
        return f"{self.case.name}-{self.durability}-{self.caller}"

    @property
    def thread_id(self) -> str:
        return f"run-{self.number:05}-{self.kind}"


def all_kinds() -> list[Run]:
    """One run of each kind."""
    kinds = itertools.product(GRAPHS.values(), get_args(Durability), ("task", "thread"))
    return [Run(number, *kind) for number, kind in enumerate(kinds)]


def run_of(seed: int, number: int) -> Run:
    """The run with this number: every kind once in each round, in an order that the seed decides."""
    kinds = all_kinds()
    random.Random(f"{seed}/{number // len(kinds)}").shuffle(kinds)
    return replace(kinds[number % len(kinds)], number=number)


class Ledger:
    """A file of JSON lines that outlives a SIGKILL: each line is handed to the kernel in one write."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def note(self, kind: str, **facts: Any) -> None:
        os.write(self._descriptor, (json.dumps({"kind": kind, **facts}) + "\n").encode())

    def close(self) -> None:
        os.close(self._descriptor)


class LedgerReader:
    """Reads what was written since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self) -> Iterator[Note]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written now: the rest of it would come as a line of its own
                self._offset += len(line)
                yield json.loads(line)


@dataclass
class Progress:
    """How far a run had come when its process was killed: its newest turn, and the head from which that turn began."""

    turn: int = -1
    head: str | None = None
    ended: bool = False


def progress_of(path: Path) -> dict[int, Progress]:
    """What the ledger knows of every run that was begun."""
    runs: dict[int, Progress] = {}
    for note in LedgerReader(path).news():
        if note["kind"] == "begun":
            runs[note["run"]] = Progress()
        elif note["kind"] == "turn":
            runs[note["run"]] = Progress(note["turn"], note["head"])
        elif note["kind"] in ("done", "failed"):
            runs[note["run"]].ended = True
    return runs
