"""What the application was told, and whether that was true: the model that a run is checked against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.operations import DeleteThread, Operation, Put, PutWrites, apply_shared
from enhanced_checkpointing.serialization import SharingSerializer
from tests.simulation.script import Batch, Read, Script, Write
from tests.simulation.server import Applied, describe, run_now
from tests.support.dump import dump_memory

Key = tuple[str, str]
"""A thread and one of its namespaces."""


class Ledger:
    """Follows each thread through its script. All batches before the one that a thread is at are acknowledged."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.position = dict.fromkeys(script.threads, 0)
        self.acknowledged: set[int] = set()
        """The `id()` of every write that was acknowledged; the script keeps them alive."""

    def acknowledge(self, write: Write) -> None:
        self.acknowledged.add(id(write))

    def batch(self, thread_id: str) -> Batch | None:
        """The batch that a thread is at, or None at its end."""
        position, batches = self.position[thread_id], self._script.threads[thread_id]
        return batches[position] if position < len(batches) else None

    @property
    def done(self) -> bool:
        return all(self.batch(thread_id) is None for thread_id in self.position)

    # Reads: invariants N, M and E

    def known(self, key: Key) -> dict[str, Put]:
        """The acknowledged checkpoints of a namespace, oldest first."""
        found: dict[str, Put] = {}
        for operation in self._operations(key[0], self.position[key[0]] + 1):
            if isinstance(operation, DeleteThread):
                found.clear()
            elif isinstance(operation, Put) and (operation.thread_id, operation.checkpoint_ns) == key:
                found[operation.checkpoint_id] = operation
        return found

    def written(self, key: Key) -> dict[str, set[tuple[str, str]]]:
        """By checkpoint, the task and channel of every acknowledged write."""
        found: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for operation in self._operations(key[0], self.position[key[0]] + 1):
            if isinstance(operation, PutWrites) and operation.checkpoint_ns == key[1]:
                found[operation.checkpoint_id].update((operation.task_id, channel) for channel, _ in operation.writes)
        return found

    def faults_of(
        self, read: Read, found: list[CheckpointTuple], before: dict[str, Put], written: dict[str, set[tuple[str, str]]]
    ) -> Iterable[str]:
        """What is wrong with an answer, given the checkpoints and writes acknowledged before it was asked for."""
        key = read.thread_id, read.checkpoint_ns
        possible = before | self._under_way(key)
        ids = [item.checkpoint["id"] for item in found]
        if read.kind == "newest" and before and (not ids or ids[0] < max(before)):
            yield f"M, N: {read} shows {ids}, although {max(before)} was acknowledged"
        if read.kind == "one" and read.checkpoint_id in before and not ids:
            yield f"N: {read} shows nothing, although it was acknowledged"
        if read.kind == "list" and not before.keys() <= set(ids):
            yield f"N: {read} shows {ids}, without some of {sorted(before)}"
        for item in found:
            put = possible.get(item.checkpoint["id"])
            if put is None:
                yield f"E: {read} shows {item.checkpoint['id']}, which is not there"
            elif item.checkpoint["channel_values"] != put.live_values:
                yield f"E: {read} shows {item.checkpoint['id']} with other values: {item.checkpoint['channel_values']}"
            shown = {(task_id, channel) for task_id, channel, _ in item.pending_writes or ()}
            if lost := written.get(item.checkpoint["id"], set()) - shown:
                yield f"E: {read} shows {item.checkpoint['id']} without the writes {sorted(lost)}"

    def _under_way(self, key: Key) -> dict[str, Put]:
        batch = self.batch(key[0])
        puts = [write.operation for write in batch.writes if isinstance(write.operation, Put)] if batch else []
        return {put.checkpoint_id: put for put in puts if put.checkpoint_ns == key[1]}

    def _operations(self, thread_id: str, end: int) -> Iterable[Operation]:
        for batch in self._script.threads[thread_id][:end]:
            yield from (write.operation for write in batch.writes if id(write) in self.acknowledged)

    # The end: invariants D, E and O

    def differences(self, saver: InMemorySaver) -> Iterable[str]:
        """Compare the primary with a saver to which everything was applied once, in order."""
        twin = InMemorySaver(serde=SharingSerializer())
        for batches in self._script.threads.values():
            for batch in batches:
                for write in batch.writes:
                    run_now(apply_shared(twin, write.operation))
        actual, expected = dump_memory(saver), dump_memory(twin)
        for table, rows in expected.items():
            for what, some, others in (("lacks", rows, actual[table]), ("has besides", actual[table], rows)):
                if odd := next((row for row in some if row not in others), None):
                    yield f"D, E: in the end {table} {what} {_brief(odd)}"

    def disorder(self, applied: list[Applied]) -> Iterable[str]:
        """See that operations reached the primary for the last time in the order of their batches.

        Deletions of one thread are all alike: of those, the last one is compared.
        """
        last = {_key(entry.operation): (number, entry) for number, entry in enumerate(applied)}
        for batches in self._script.threads.values():
            place = {_key(write.operation): n for n, batch in enumerate(batches) for write in batch.writes}
            order = sorted((found for key, found in last.items() if key in place), key=lambda found: found[0])
            newest = (-1, "")
            for _, entry in order:
                position = place[_key(entry.operation)]
                if position < newest[0]:
                    late = f"{describe(entry.operation)} was applied ({entry.way}, at {entry.at:.4f})"
                    yield f"O: {late} after {newest[1]}"
                newest = max(newest, (position, describe(entry.operation)))


def _key(operation: Operation) -> tuple[str, ...]:
    if isinstance(operation, DeleteThread):
        return ("delete", operation.thread_id)
    task = operation.task_id if isinstance(operation, PutWrites) else ""
    return (operation.name, operation.thread_id, operation.checkpoint_ns, operation.checkpoint_id, task)


def _brief(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={str(content)[:40]}" for name, content in row.items())
