"""What a batch costs PostgreSQL as statements of values, one for each operation, and as one statement of arrays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from benchmarks.laboratory import Laboratory, Result, Table
from benchmarks.savers import bare_postgres
from benchmarks.workload import Conversation, State
from enhanced_checkpointing.backends.postgres.rows import APART, statements
from enhanced_checkpointing.backends.postgres.wire import execute
from enhanced_checkpointing.operations import Operation, accept_put, accept_writes
from enhanced_checkpointing.serialization import SharingSerializer

COUNTS = (1, 2, 4, 8, 16, 32)
OPERATIONS = 2_000
QUICK_OPERATIONS = 40
WARM_UP = 5


async def measure(laboratory: Laboratory) -> Result:
    result, rows = Result(), []
    async with laboratory.database() as database:
        url = laboratory.url(database)
        async with bare_postgres(url):
            pass  # makes the tables
        for count in COUNTS:
            laboratory.say(f"statements of {count} operations")
            connection = await AsyncConnection.connect(url, autocommit=True, prepare_threshold=0, row_factory=dict_row)
            async with connection:
                values, arrays = await _compare(connection, count, laboratory.quick)
            chosen = "a statement each" if count <= APART else "arrays"
            rows.append((str(count), f"{values:,.0f}", f"{arrays:,.0f}", f"{values / arrays:.2f}", chosen))
            result.figures[f"statements/{count}/ratio"] = values / arrays
    columns = (
        "operations at once",
        "a statement each, µs per operation",
        "arrays, µs per operation",
        "ratio",
        "chosen",
    )
    note = "One connection on loopback, one round trip and one commit either way: puts and writes by turns, medians."
    result.tables.append(Table("Two forms of one batch, PostgreSQL", columns, rows, note))
    return result


async def _compare(connection: AsyncConnection[dict[str, object]], count: int, quick: bool) -> tuple[float, float]:
    """Microseconds per operation of both forms, in turns."""
    times: dict[int, list[float]] = {count: [], 0: []}
    batches = {apart: _batches(count) for apart in times}
    for number in range(WARM_UP + (QUICK_OPERATIONS if quick else OPERATIONS) // count):
        for apart, some in batches.items():
            prepared = statements(next(some), apart=apart)
            started_at = time.perf_counter()
            await execute(connection, prepared)
            if number >= WARM_UP:
                times[apart].append(1e6 * (time.perf_counter() - started_at) / count)
    return statistics.median(times[count]), statistics.median(times[0])


def _batches(count: int) -> Iterator[list[Operation]]:
    """Batches without end: of half of the threads a put, of the others the writes on their newest checkpoint."""
    serializer = SharingSerializer()
    conversations = [Conversation(State()) for _ in range(count)]
    pending: dict[str, Operation] = {}
    while True:
        batch: list[Operation] = []
        for place, conversation in enumerate(conversations):
            waiting = pending.pop(conversation.thread_id, None)
            if waiting is not None:
                batch.append(waiting)
                continue
            (step,) = conversation.prepare(1)
            put = accept_put(
                conversation.config,
                step.checkpoint,
                step.metadata,
                step.new_versions,
                freeze=serializer.freeze,
                known_blob=lambda *_: None,
            )
            conversation.config = put.stored_config()
            writes = accept_writes(conversation.config, step.writes, step.task_id, "", serializer=serializer)
            batch.append(put)
            if place % 2 == 0 or put.parent_checkpoint_id is not None:  # so that half of them are out of step
                pending[conversation.thread_id] = writes
        yield batch
