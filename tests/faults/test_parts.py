"""Two runs of the same graph leave the same rows in a real PostgreSQL, and any other row is seen."""

from __future__ import annotations

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from tests.support.dump import assert_equal_dumps, dump_postgres
from tests.support.graphs import GRAPHS, Durability, GraphCase, run_case

CHANGES = {
    "a lost checkpoint": "DELETE FROM checkpoints WHERE ctid = (SELECT max(ctid) FROM checkpoints)",
    "a lost blob": "DELETE FROM checkpoint_blobs WHERE ctid = (SELECT max(ctid) FROM checkpoint_blobs)",
    "a lost write": "DELETE FROM checkpoint_writes WHERE ctid = (SELECT max(ctid) FROM checkpoint_writes)",
    "other metadata": """UPDATE checkpoints SET metadata = metadata || '{"step": 99}'
        WHERE ctid = (SELECT min(ctid) FROM checkpoints)""",
    "another parent": """UPDATE checkpoints SET parent_checkpoint_id = (SELECT min(checkpoint_id) FROM checkpoints)
        WHERE checkpoint_id = (SELECT max(checkpoint_id) FROM checkpoints)""",
    "a value that was changed": """UPDATE checkpoint_blobs SET type = 'bytes'
        WHERE ctid = (SELECT max(ctid) FROM checkpoint_blobs)""",
    "a doubled write": """INSERT INTO checkpoint_writes
        SELECT thread_id, checkpoint_ns, checkpoint_id, task_id, idx + 1000, channel, type, blob, task_path
        FROM checkpoint_writes LIMIT 1""",
}


async def run_in(url: str, case: GraphCase, durability: Durability) -> dict[str, object]:
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()
        return await run_case(case, saver, "thread", durability=durability)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("case", GRAPHS.values(), ids=GRAPHS)
async def test_two_runs_of_a_graph_leave_equal_dumps(
    case: GraphCase, durability: Durability, database_url: str, twin_database_url: str
) -> None:
    assert await run_in(database_url, case, durability) == await run_in(twin_database_url, case, durability)
    dump = dump_postgres(database_url)
    assert_equal_dumps(dump, dump_postgres(twin_database_url))
    assert dump["checkpoints"]
    assert dump["checkpoint_blobs"]
    assert dump["checkpoint_writes"] or durability == "exit"


@pytest.mark.parametrize("change", CHANGES)
async def test_dump_with_one_changed_row_differs(change: str, database_url: str, twin_database_url: str) -> None:
    for url in (database_url, twin_database_url):
        await run_in(url, GRAPHS["subgraph"], "sync")
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert connection.execute(CHANGES[change].encode()).rowcount == 1
    with pytest.raises(AssertionError, match="the dumps differ, first here"):
        assert_equal_dumps(dump_postgres(database_url), dump_postgres(twin_database_url))
