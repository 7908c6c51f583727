"""What is to happen in a run, decided by its seed before it begins: the calls of the application, and the faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata

from enhanced_checkpointing.operations import DeleteThread, Operation, accept_put, accept_writes
from enhanced_checkpointing.serialization import SharingSerializer
from tests.simulation.server import Mode

HORIZON = 25.0
"""Seconds after which nothing breaks any more."""


@dataclass(frozen=True, slots=True)
class Write:
    """A call that changes something, repeated until it is acknowledged. `arguments` are those of the saver's method."""

    method: str
    arguments: tuple[Any, ...]
    operation: Operation


@dataclass(frozen=True, slots=True)
class Read:
    """A call that changes nothing: "newest", "one" (the named checkpoint) or "list"."""

    kind: str
    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str | None = None


@dataclass(slots=True)
class Batch:
    """Calls made at the same time, whose order does not matter; the next batch begins when all of them are answered."""

    pause: float
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something breaks `at` seconds after the start, for so many seconds: the primary, the disk or our process."""

    at: float
    what: str
    seconds: float
    detail: Any = None


@dataclass(frozen=True, slots=True)
class Script:
    """Everything that a seed decides beforehand, except for what chance does in the world."""

    threads: dict[str, list[Batch]]
    faults: list[Fault]
    settings: dict[str, Any]
    compares_heads: bool
    limits: dict[str, int]
    """Of the code's own constants, those that are made small, so that few operations reach them."""


def make_script(seed: int) -> Script:
    random = Random(f"script {seed}")
    author = _Author(random)
    names = [f"t{number}" for number in range(random.randint(1, 4))]
    deadline = random.choice([1.0, 1.0, 3.0, 5.0])
    settings = {
        "deadline": deadline,
        "probe_backoff_max": random.choice([1.0, 4.0]),
        "drain_concurrency": random.choice([1, 2, 4]),
        "standby_max_bytes": random.choice([2_000, 64 * 1024 * 1024, 64 * 1024 * 1024]),
        "journal_max_bytes": random.choice([10_000, 10_000_000, 10_000_000]),
        "on_unknown_thread": "raise",
        "retries": random.choice([0, 2]),
    }
    limits = {"CHUNK": random.choice([1, 3, 64]), "FILE_LIMIT": random.choice([3000, 10**6]), "TIDY_ABOVE": 1500}
    limits["BATCH"] = random.choice([2, 128])
    threads = {name: list(author.thread(name, random.randint(3, 12))) for name in names}
    faults = sorted(_faults(random, deadline), key=lambda fault: fault.at)
    compares_heads = random.random() < 0.5
    limits["USED_TO_BE_ALONE"] = random.choice([0, 8])
    return Script(threads, faults, settings, compares_heads, limits)


class _Author:
    """Writes histories as a graph would: parents, versions only for what changed, writes on the newest checkpoint."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._serializer = SharingSerializer()
        self._ids = 0
        self._heads: dict[tuple[str, str], tuple[str, dict[str, Any], dict[str, str]]] = {}

    def thread(self, thread_id: str, count: int) -> Iterator[Batch]:
        namespaces = ["", "child:1", "other"][: self._random.randint(1, 3)]
        for _ in range(count):
            batch = Batch(self._random.expovariate(1.0) * self._random.choice([0.05, 1.0, 3.0]))
            kind = self._random.random()
            if kind < 0.1 and (thread_id, namespaces[0]) in self._heads:
                batch.writes.append(self._delete(thread_id))
            else:
                begun = namespaces if (thread_id, "") in self._heads else [""]  # subgraphs come after their parent
                for checkpoint_ns in self._random.sample(begun, self._random.randint(1, len(begun))):
                    batch.writes += self._calls(thread_id, checkpoint_ns)
                batch.reads += self._reads(thread_id, self._random.choice(namespaces))
            yield batch
            yield Batch(0.0, [], self._reads(thread_id, self._random.choice(namespaces)))

    def _calls(self, thread_id: str, checkpoint_ns: str) -> Iterator[Write]:
        head = self._heads.get((thread_id, checkpoint_ns))
        if head is not None and self._random.random() < 0.5:
            for task in range(self._random.randint(1, 2)):
                yield self._writes(thread_id, checkpoint_ns, head[0], f"task{task}-{self._ids}")
        if head is None or self._random.random() < 0.7:
            yield self._put(thread_id, checkpoint_ns)

    def _put(self, thread_id: str, checkpoint_ns: str) -> Write:
        parent, values, versions = self._heads.get((thread_id, checkpoint_ns), (None, {}, {}))
        self._ids += 1
        changed: dict[str, Any] = {"count": [self._ids], "step": self._ids}
        if not values or self._random.random() < 0.2:
            changed["profile"] = {"name": "Ada", "text": "x" * self._random.choice([10, 700, 2500])}
        new_versions: ChannelVersions = dict.fromkeys(changed, f"{self._ids:032}.0")
        values, versions = values | changed, versions | {name: str(new) for name, new in new_versions.items()}
        checkpoint = Checkpoint(
            v=4,
            id=f"{self._ids:08}",
            ts="2026-01-01T00:00:00+00:00",
            channel_values=values,
            channel_versions=dict(versions),
            versions_seen={},
            updated_channels=None,
        )
        self._heads[thread_id, checkpoint_ns] = checkpoint["id"], values, versions
        config, metadata = (
            config_of(thread_id, checkpoint_ns, parent),
            CheckpointMetadata(source="loop", step=self._ids),
        )
        operation = accept_put(
            config, checkpoint, metadata, new_versions, freeze=self._serializer.freeze, known_blob=lambda *_: None
        )
        return Write("aput", (config, checkpoint, metadata, new_versions), operation)

    def _writes(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, task_id: str) -> Write:
        self._ids += 1
        config = config_of(thread_id, checkpoint_ns, checkpoint_id)
        writes = [("count", ["w", self._ids]), (self._random.choice(["step", "__interrupt__"]), self._ids)]
        operation = accept_writes(config, writes, task_id, "", serializer=self._serializer)
        return Write("aput_writes", (config, writes, task_id), operation)

    def _delete(self, thread_id: str) -> Write:
        self._heads = {key: head for key, head in self._heads.items() if key[0] != thread_id}
        return Write("adelete_thread", (thread_id,), DeleteThread(thread_id))

    def _reads(self, thread_id: str, checkpoint_ns: str) -> list[Read]:
        reads = [Read("newest", thread_id, checkpoint_ns)] if self._random.random() < 0.6 else []
        if self._random.random() < 0.15:
            reads.append(Read("list", thread_id, checkpoint_ns))
        if (head := self._heads.get((thread_id, checkpoint_ns))) is not None and self._random.random() < 0.15:
            reads.append(Read("one", thread_id, checkpoint_ns, head[0]))
        return reads


def _faults(random: Random, deadline: float) -> Iterator[Fault]:
    """Each seed breaks some of the parts, some of them again and again."""
    at = random.uniform(0.0, 3.0)
    primary, disk, process = random.random() < 0.9, random.random() < 0.6, random.random() < 0.7
    while primary and at < HORIZON:
        seconds = random.choice([random.uniform(0.1, 1.0), random.uniform(1.0, 4 * deadline)])
        yield Fault(at, "primary", seconds, random.choice([mode for mode in Mode if mode is not Mode.UP]))
        at += seconds + random.expovariate(0.3)
    for _ in range(random.randint(1, 5) if disk else 0):
        what = random.choice(["fails once", "fails once", "failing", "full", "slow"])
        calls = random.choice(
            ["write", "sync", "sync", "truncate", "create", "sync_names", "remove", "rename", "read", "open"]
        )
        yield Fault(random.uniform(0.0, HORIZON), what, random.uniform(0.2, 6.0), calls)
    for _ in range(random.randint(1, 4) if process else 0):
        what = random.choice(["power", "kill", "kill", "stop"])
        yield Fault(random.uniform(0.0, HORIZON), what, random.uniform(0.01, 2.0), random.randint(0, 30))


def config_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
    return {"configurable": configurable | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}
